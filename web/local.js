/** Runs the model in this browser with onnxruntime-web, from {folder}model.json and {folder}model.onnx. */
import { UserError } from "./errors.js";
import { NONE, validateModelInfo } from "./model-info.js";
import { keyHeaders } from "./settings.js";

const RUNTIME_FOLDER = new URL("vendor/", import.meta.url);

/** What alarms take a class for, as in drone/labels.py. */
const ROLES = ["bird", "drone", "other"];

export class LocalModel {
  #onProgress = null;
  #starting = null;
  #runtime = null;
  #session = null;

  /** @param {URL} folder ends with a slash. */
  constructor(folder) {
    this.folder = folder;
    /** The model's info once it is loaded, else null. */
    this.info = null;
  }

  /** @throws {UserError} `notFound` where there is no model. */
  async loadInfo() {
    const url = new URL("model.json", this.folder);
    const response = await fetchFile(url, { cache: "no-cache" });
    this.info = validateModelInfo(await response.json().catch(() => null), url.pathname);
    return this.info;
  }

  /** Whether runtime and model are loaded. */
  get ready() {
    return this.#session !== null;
  }

  /**
   * Loads runtime and model once; concurrent calls share the download.
   * @param {(bytes: number) => void} onProgress gets the total number of bytes received.
   */
  async load(onProgress) {
    this.#onProgress = onProgress;
    this.#starting ??= this.#start().catch((error) => {
      this.#starting = null; // The next call tries again.
      throw error;
    });
    this.#session = await this.#starting;
  }

  /**
   * Returns the prediction in the form of the service's POST /predict.
   * @param {Uint8ClampedArray} pixels RGB, (sidePx, sidePx, 3).
   */
  async predict(pixels) {
    const { classes, temperature = 1 } = this.info;
    const sidePx = Math.sqrt(pixels.length / 3);
    const shape = [1, sidePx, sidePx, 3];
    const input = new this.#runtime.Tensor("uint8", new Uint8Array(pixels.buffer), shape);
    const { probabilities, known, evidence } = await this.#session.run({ pixels: input });
    const calibrated = applyTemperature(probabilities.data, temperature);
    const prediction = toPrediction(classes, calibrated, known.data[0], this.info);
    const numCells = evidence.data.length / classes.length;
    const start = prediction.index * numCells;
    const values = evidence.data.slice(start, start + numCells);
    return { ...prediction, evidence: toEvidence(classes[prediction.index], values) };
  }

  async #start() {
    let received = 0;
    const count = (bytes) => this.#onProgress?.((received += bytes));
    try {
      // All downloads come first: the runtime cannot be initialised a second time after a failure.
      const [runtime, wasm, model] = await Promise.all([
        import(new URL("ort.wasm.bundle.min.mjs", RUNTIME_FOLDER)),
        download(new URL("ort-wasm-simd-threaded.wasm", RUNTIME_FOLDER), count),
        // Revalidated like model.json: a cached older model must not run under the new model's info.
        download(new URL("model.onnx", this.folder), count, { cache: "no-cache" }),
      ]);
      runtime.env.wasm.wasmBinary = wasm;
      // Threads need COOP and COEP headers, which a plain host does not send.
      runtime.env.wasm.numThreads = 1;
      runtime.env.logLevel = "error";
      this.#runtime = runtime;
      return await runtime.InferenceSession.create(new Uint8Array(model));
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError(`The model did not start in this browser: ${error.message}`, { retryable: true });
    }
  }
}

/** Softmax of logits / temperature, computed from the probabilities at temperature 1. */
function applyTemperature(probabilities, temperature) {
  const powers = Array.from(probabilities, (value) => value ** (1 / temperature));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}

function toPrediction(classes, probabilities, known, model) {
  const { unsure_below: unsureBelow = 0, known_above: knownAbove = 0.5, alarm_above: alarmAbove = null } = model;
  const byClass = Object.fromEntries(classes.map((name, at) => [name, probabilities[at]]));
  const isNone = known < knownAbove;
  const byRole = sumByRole(probabilities, model.roles);
  const kinds = Object.keys(byRole);
  const likeliest = kinds.reduce((best, role) => (byRole[role] > byRole[best] ? role : best));
  const kind = kinds.length > 1 && !isNone ? likeliest : null;
  // As the service decides: the most probable class of the most probable role.
  const confidence = Math.max(...probabilities.filter((_, at) => model.roles[at] === likeliest));
  const index = probabilities.findIndex((value, at) => value === confidence && model.roles[at] === likeliest);
  const drone = kinds.length > 1 ? byRole.drone ?? null : null;
  return {
    label: isNone ? NONE : classes[index],
    index,
    probabilities: byClass,
    confidence,
    drone,
    kind,
    kind_probability: kind && byRole[kind],
    unsure: confidence < unsureBelow,
    known,
    ...(alarmAbove !== null && { alarm: !isNone && drone >= alarmAbove }),
    model,
  };
}

/** Sums the probabilities of the classes of each role that a class has. */
function sumByRole(probabilities, roles) {
  const sums = {};
  for (const role of ROLES.filter((name) => roles.includes(name))) {
    sums[role] = probabilities.reduce((sum, value, at) => (roles[at] === role ? sum + value : sum), 0);
  }
  return sums;
}

/**
 * Returns evidence in the form of the service's POST /predict.
 * @param {string} name of the class.
 * @param {Float32Array} values of its map, row by row, of any sign.
 */
function toEvidence(name, values) {
  const side = Math.sqrt(values.length);
  const highest = Math.max(...values);
  const scaled = Array.from(values, (value) => (value > 0 ? value / highest : 0));
  const rows = Array.from({ length: side }, (_, row) => scaled.slice(row * side, (row + 1) * side));
  return { class: name, map: rows };
}

async function fetchFile(url, options) {
  const response = await fetch(url, { ...options, headers: keyHeaders(url) }).catch(() => {
    throw new UserError(`${url.pathname} cannot be loaded: the network is down.`, { retryable: true });
  });
  if (response.ok) return response;
  const message = `${url.pathname} cannot be loaded (${response.status}).`;
  const needsKey = response.status === 401;
  throw new UserError(message, { retryable: true, notFound: response.status < 500, needsKey });
}

async function download(url, onBytes, options = {}) {
  const response = await fetchFile(url, options);
  const chunks = [];
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      onBytes(value.length);
    }
  } catch {
    throw new UserError(`The download of ${url.pathname} was interrupted.`, { retryable: true });
  }
  return new Blob(chunks).arrayBuffer();
}
