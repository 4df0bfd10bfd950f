/** The model in this browser, by onnxruntime-web: {folder}model.json and {folder}model.onnx. */
import { checkedFacts } from "./facts.js";
import { Problem } from "./problems.js";

const ENGINE = new URL("vendor/", import.meta.url);

/** The one class that is not a drone, as in drone/labels.py. */
const BIRD = "Flying Birds";

export class LocalModel {
  /** @param {URL} folder ends with a slash. */
  constructor(folder) {
    this.folder = folder;
    this.known = null;
    this.starting = null;
  }

  /** The model's facts; a Problem that says `absent` where there is no model. */
  async facts() {
    const url = new URL("model.json", this.folder);
    const response = await got(url, { cache: "no-cache" });
    this.known = checkedFacts(await response.json().catch(() => null), url.pathname);
    return this.known;
  }

  /** Whether it can answer at once. */
  get ready() {
    return this.session !== undefined;
  }

  /**
   * Loads engine and model; a second call waits for the first one.
   * @param {(bytes: number) => void} onProgress hears how much has come.
   */
  async load(onProgress) {
    this.onProgress = onProgress;
    this.starting ??= this.#start().catch((error) => {
      this.starting = null;
      throw error;
    });
    this.session = await this.starting;
  }

  /**
   * The answer to a picture, in the form that the service gives.
   * @param {Uint8ClampedArray} pixels RGB, (side, side, 3).
   */
  async predict(pixels) {
    const { classes, temperature = 1, unsure_below: limit = 0 } = this.known;
    const side = Math.sqrt(pixels.length / 3);
    const shape = [1, side, side, 3];
    const input = new this.engine.Tensor("uint8", new Uint8Array(pixels.buffer), shape);
    const { probabilities: output } = await this.session.run({ pixels: input });
    return described(classes, calibrated(output.data, temperature), limit, this.known);
  }

  async #start() {
    let come = 0;
    const count = (bytes) => this.onProgress?.((come += bytes));
    try {
      // The engine cannot be started twice, so it starts once all its parts are here.
      const [engine, wasm, model] = await Promise.all([
        import(new URL("ort.wasm.bundle.min.mjs", ENGINE)),
        download(new URL("ort-wasm-simd-threaded.wasm", ENGINE), count),
        // Looked after each time, as its facts are: an older model must not answer under their name.
        download(new URL("model.onnx", this.folder), count, { cache: "no-cache" }),
      ]);
      engine.env.wasm.wasmBinary = wasm;
      engine.env.wasm.numThreads = 1; // More need headers that a plain folder does not send.
      engine.env.logLevel = "error";
      this.engine = engine;
      return await engine.InferenceSession.create(new Uint8Array(model));
    } catch (error) {
      if (error instanceof Problem) throw error;
      throw new Problem(`The model did not start in this browser: ${error.message}`, { again: true });
    }
  }
}

/** Probabilities to the power of 1 / temperature, summing to 1. */
export function calibrated(probabilities, temperature) {
  const raised = Array.from(probabilities, (value) => value ** (1 / temperature));
  const total = raised.reduce((sum, value) => sum + value, 0);
  return raised.map((value) => value / total);
}

function described(classes, probabilities, unsureBelow, model) {
  const confidence = Math.max(...probabilities);
  const index = probabilities.indexOf(confidence);
  const named = Object.fromEntries(classes.map((name, at) => [name, probabilities[at]]));
  const knowsBirds = classes.includes(BIRD);
  const drone = knowsBirds ? 1 - named[BIRD] : null;
  return {
    label: classes[index],
    index,
    probabilities: named,
    confidence,
    drone,
    kind: knowsBirds ? (drone > 0.5 ? "drone" : "bird") : null,
    unsure: confidence < unsureBelow,
    model,
  };
}

async function got(url, options) {
  const response = await fetch(url, options).catch(() => {
    throw new Problem(`${url.pathname} cannot be loaded: the network is down.`, { again: true });
  });
  if (response.ok) return response;
  const absent = response.status < 500;
  throw new Problem(`${url.pathname} cannot be loaded (${response.status}).`, { again: true, absent });
}

async function download(url, count, options = {}) {
  const response = await got(url, options);
  const chunks = [];
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      count(value.length);
    }
  } catch {
    throw new Problem(`${url.pathname} came only in part.`, { again: true });
  }
  return new Blob(chunks).arrayBuffer();
}
