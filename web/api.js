/** The service: GET {base}model, POST {base}predict. */
import { checkedFacts } from "./facts.js";
import { Passing, Problem, unless } from "./problems.js";
import { withTries } from "./retry.js";

/** What a gateway says while a service starts or is overrun. */
const PASSING_STATUS = [429, 502, 503, 504];

/** What a host of files says where there is no service. */
const ABSENT_STATUS = [403, 404, 405, 501];

export class Api {
  /**
   * @param {URL} base ends with a slash.
   * @param {{tries: number, firstWaitS: number, timeoutS: number}} patience
   */
  constructor(base, patience) {
    this.base = base;
    this.patience = patience;
    this.known = null;
    this.asked = null;
  }

  /** The model's facts; asking also wakes a service that sleeps. */
  facts(signal) {
    return withTries(() => this.#facts(), { ...this.patience, signal });
  }

  /**
   * The answer to a picture.
   * @param {(facts: object) => Promise<Blob>} prepare makes the upload once the facts are known.
   * @param {AbortSignal} signal ends it at any time.
   * @param {{onAttempt: Function, onWait: Function}} tell hears of each try.
   */
  predict(prepare, signal, tell) {
    let body = null;
    const attempt = async (trySignal) => {
      const facts = await unless(trySignal, this.#facts());
      body ??= await prepare(facts);
      trySignal.throwIfAborted();
      const answer = await ask(new URL("predict", this.base), {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream" },
        body,
        signal: trySignal,
      });
      return checkedAnswer(answer);
    };
    return withTries(attempt, { ...this.patience, signal, ...tell });
  }

  /** One question at a time: a second one would wake a second copy of the service. */
  async #facts() {
    if (this.known) return this.known;
    const signal = AbortSignal.timeout(this.patience.timeoutS * 1000);
    this.asked ??= ask(new URL("model", this.base), { signal })
      .catch((error) => {
        if (signal.aborted) throw new Passing("The service did not say which model it has.");
        throw error;
      })
      .finally(() => (this.asked = null));
    this.known = checkedFacts(await this.asked, "the service's address");
    return this.known;
  }
}

async function ask(url, options) {
  let response, text;
  try {
    response = await fetch(url, { ...options, credentials: "omit", cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (options.signal.aborted) throw error;
    // fetch says no more than this, whether the network is down or the other side forbids reading.
    throw new Passing("The service cannot be reached.");
  }
  if (response.ok) return parsed(text);
  if (PASSING_STATUS.includes(response.status)) {
    throw new Passing(`The service is not ready (${response.status}).`, retryAfterS(response));
  }
  throw refused(response.status, parsed(text));
}

function refused(status, body) {
  const said = body?.error?.message;
  const again = status >= 500 || status === 408;
  if (typeof said === "string") {
    const request = body.request_id ? ` (request ${body.request_id})` : "";
    return new Problem(said + request, { again });
  }
  if (ABSENT_STATUS.includes(status)) {
    return new Problem(`There is no service at its address (${status}).`, { absent: true });
  }
  // A gateway that was not told our form says {"message": "..."}, if anything.
  const words = typeof body?.message === "string" ? `: ${body.message}` : "";
  return new Problem(`The service answered with an error (${status})${words}.`, { again });
}

function checkedAnswer(answer) {
  const { label, probabilities } = answer ?? {};
  if (typeof label !== "string" || typeof probabilities !== "object" || !probabilities) {
    throw new Problem("The service gave an answer that this page does not understand.", { again: true });
  }
  return answer;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // A gateway's page, a folder's listing: no words for a person in it.
  }
}

/** Seconds or a date. Another origin shows this header only if it exposes it. */
function retryAfterS(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return 0;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return seconds > 0 ? seconds : 0;
}
