import { Passing, Problem } from "./problems.js";

/** Longer than this nobody looks at a page that waits. */
const LONGEST_WAIT_S = 60;

/**
 * Does something that may fail for a while, at most `tries` times.
 *
 * Between tries it waits `firstWaitS`, then twice that, and so on, each time between half and all of it:
 * pages that failed together do not come back together.
 *
 * @param {(signal: AbortSignal) => Promise} attempt throws Passing where another try may help.
 * @param {{tries: number, firstWaitS: number, timeoutS: number, signal: AbortSignal,
 *   onAttempt?: (number: number, tries: number) => void,
 *   onWait?: (number: number, tries: number, waitS: number) => void}} settings
 */
export async function withTries(attempt, settings) {
  const { tries, firstWaitS, timeoutS, signal, onAttempt, onWait } = settings;
  for (let number = 1; ; number++) {
    onAttempt?.(number, tries);
    try {
      return await withTimeout(attempt, timeoutS, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Passing)) throw error;
      const waitS = Math.max(error.afterS, firstWaitS * 2 ** (number - 1) * (0.5 + Math.random() / 2));
      if (number === tries) {
        throw new Problem(`No answer in ${tries} tries. ${error.message}`, { again: true });
      }
      if (waitS > LONGEST_WAIT_S) {
        const message = `${error.message} It asks to wait ${Math.round(waitS)} seconds.`;
        throw new Problem(message, { again: true });
      }
      onWait?.(number + 1, tries, waitS);
      await pause(waitS, signal);
    }
  }
}

async function withTimeout(attempt, timeoutS, signal) {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), timeoutS * 1000);
  const stop = () => late.abort();
  signal.addEventListener("abort", stop, { once: true });
  if (signal.aborted) stop();
  try {
    return await attempt(late.signal);
  } catch (error) {
    signal.throwIfAborted();
    if (late.signal.aborted) throw new Passing(`The service took longer than ${timeoutS} seconds.`);
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
  });
}
