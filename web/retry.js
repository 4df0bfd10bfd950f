/** Retries with exponential backoff, timeouts, and promises that can be aborted. */
import { TransientError, UserError } from "./errors.js";

/** No user watches a waiting page for longer, so a longer Retry-After ends the retries. */
const MAX_WAIT_S = 60;

/**
 * Calls `attempt` until it succeeds, at most `maxAttempts` times.
 *
 * The wait starts at `firstWaitS` and doubles after each attempt. It is multiplied by a random factor from
 * 0.5 to 1, so that pages that failed together do not retry together.
 *
 * @param {(signal: AbortSignal) => Promise} attempt throws TransientError where a retry can help.
 * @param {{maxAttempts: number, firstWaitS: number, timeoutS: number, signal: AbortSignal,
 *   onAttempt?: (number: number, maxAttempts: number) => void,
 *   onWait?: (number: number, maxAttempts: number, waitS: number) => void}} settings
 *   `timeoutS` limits each attempt; `signal` ends attempts and waits at any time; the callbacks get the
 *   number of the attempt that starts or is waited for.
 * @throws {UserError} after the last attempt, or where the server asks for a wait above 60 s.
 */
export async function retry(attempt, settings) {
  const { maxAttempts, firstWaitS, timeoutS, signal, onAttempt, onWait } = settings;
  for (let number = 1; ; number++) {
    onAttempt?.(number, maxAttempts);
    try {
      return await withTimeout(attempt, timeoutS, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof TransientError)) throw error;
      const backoffS = firstWaitS * 2 ** (number - 1) * (0.5 + Math.random() / 2);
      const waitS = Math.max(error.retryAfterS, backoffS);
      if (number === maxAttempts) {
        const message = `No response after ${maxAttempts} attempts. ${error.message}`;
        throw new UserError(message, { retryable: true });
      }
      if (waitS > MAX_WAIT_S) {
        const message = `${error.message} Try again in ${Math.round(waitS)} seconds.`;
        throw new UserError(message, { retryable: true });
      }
      onWait?.(number + 1, maxAttempts, waitS);
      await sleep(waitS, signal);
    }
  }
}

/** Settles like `promise`, or rejects as soon as `signal` aborts; the work behind the promise continues. */
export function abortable(signal, promise) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

async function withTimeout(attempt, timeoutS, signal) {
  // Not AbortSignal.any: Safari has it only since 17.4.
  const controller = new AbortController();
  const abort = () => controller.abort();
  const timer = setTimeout(abort, timeoutS * 1000);
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  try {
    return await attempt(controller.signal);
  } catch (error) {
    signal.throwIfAborted();
    if (controller.signal.aborted) {
      throw new TransientError(`The service took longer than ${timeoutS} seconds.`);
    }
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  }
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", abort, { once: true });
    if (signal.aborted) abort();
  });
}
