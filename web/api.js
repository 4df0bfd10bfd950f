/** Client of the prediction service: GET {baseUrl}model and POST {baseUrl}predict. */
import { TransientError, UserError } from "./errors.js";
import { validateModelInfo } from "./model-info.js";
import { abortable, retry } from "./retry.js";
import { keyHeaders } from "./settings.js";

/** Gateways send these while a service starts or is overloaded. */
const TRANSIENT_STATUSES = [429, 502, 503, 504];

/** Hosts of static files send these where there is no service. */
const NO_SERVICE_STATUSES = [403, 404, 405, 501];

export class Api {
  #infoRequest = null;

  /**
   * @param {URL} baseUrl ends with a slash.
   * @param {{maxAttempts: number, firstWaitS: number, timeoutS: number}} retrySettings see `retry`.
   */
  constructor(baseUrl, retrySettings) {
    this.baseUrl = baseUrl;
    this.retrySettings = retrySettings;
    /** The model's info once it is loaded, else null. */
    this.info = null;
  }

  /** Loads the model's info. The request also wakes a service that has scaled to zero. */
  loadInfo(signal) {
    return retry(() => this.#loadInfo(), { ...this.retrySettings, signal });
  }

  /**
   * Returns the prediction for an image.
   * @param {(info: object) => Promise<Blob>} encode makes the upload once the model's info is loaded.
   * @param {AbortSignal} signal
   * @param {boolean} mayKeep whether the service may keep the image.
   * @param {{onAttempt: Function, onWait: Function}} callbacks see `retry`.
   */
  predict(encode, signal, mayKeep, callbacks) {
    let body = null;
    const attempt = async (attemptSignal) => {
      const info = await abortable(attemptSignal, this.#loadInfo());
      body ??= await encode(info);
      attemptSignal.throwIfAborted();
      const prediction = await fetchJson(new URL("predict?evidence=true", this.baseUrl), {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream", ...(!mayKeep && forbidding(info)) },
        body,
        signal: attemptSignal,
      });
      return validatePrediction(prediction);
    };
    return retry(attempt, { ...this.retrySettings, signal, ...callbacks });
  }

  /** One request at a time: a second one would start a second instance of a sleeping service. */
  async #loadInfo() {
    if (this.info) return this.info;
    const signal = AbortSignal.timeout(this.retrySettings.timeoutS * 1000);
    this.#infoRequest ??= fetchJson(new URL("model", this.baseUrl), { signal })
      .catch((error) => {
        if (signal.aborted) throw new TransientError("The service did not respond in time.");
        throw error;
      })
      .finally(() => (this.#infoRequest = null));
    this.info = validateModelInfo(await this.#infoRequest, "the service's address");
    return this.info;
  }
}

/** Only for a service that keeps images: another one may not allow the header. */
function forbidding(info) {
  return info.keeps ? { [info.keeps.forbid_header]: "1" } : {};
}

async function fetchJson(url, options) {
  const headers = { ...options.headers, ...keyHeaders(url) };
  let response, text;
  try {
    response = await fetch(url, { ...options, headers, credentials: "omit", cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (options.signal.aborted) throw error;
    // fetch does not tell a network that is down from a response that CORS or the policy blocks.
    throw new TransientError("The service cannot be reached.");
  }
  if (response.ok) return parseJson(text);
  if (TRANSIENT_STATUSES.includes(response.status)) {
    throw new TransientError(`The service is not ready (${response.status}).`, retryAfterS(response));
  }
  if (response.status === 401) throw keyError(Boolean(headers.Authorization));
  throw responseError(response.status, parseJson(text));
}

function keyError(wasSent) {
  const message = wasSent ? "The service does not accept this API key." : "The service needs an API key.";
  return new UserError(`${message} Enter it in the field API key.`, { needsKey: true });
}

function responseError(status, body) {
  const message = body?.error?.message;
  const retryable = status >= 500 || status === 408;
  if (typeof message === "string") {
    const request = body.request_id ? ` (request ${body.request_id})` : "";
    return new UserError(message + request, { retryable });
  }
  if (NO_SERVICE_STATUSES.includes(status)) {
    return new UserError(`There is no service at its address (${status}).`, { notFound: true });
  }
  // The form of a gateway's own errors: {"message": "..."}.
  const detail = typeof body?.message === "string" ? `: ${body.message}` : "";
  return new UserError(`The service responded with an error (${status})${detail}.`, { retryable });
}

function validatePrediction(prediction) {
  const { label, probabilities } = prediction ?? {};
  if (typeof label !== "string" || typeof probabilities !== "object" || !probabilities) {
    throw new UserError("The service sent a response that this page cannot read.", { retryable: true });
  }
  return prediction;
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // The HTML of a gateway's error page or of a folder listing.
  }
}

/** The Retry-After header in seconds, 0 without one. Other origins have to expose it to the page. */
function retryAfterS(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return 0;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return seconds > 0 ? seconds : 0;
}
