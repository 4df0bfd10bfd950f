/** What a person is told. Anything else that is thrown is a defect of the page. */
export class Problem extends Error {
  /**
   * @param {string} message for the person, as plain text.
   * @param {{again?: boolean, absent?: boolean}} [more]
   *   again: whether asking once more can help;
   *   absent: whether what was asked is not there at all.
   */
  constructor(message, { again = false, absent = false } = {}) {
    super(message);
    this.again = again;
    this.absent = absent;
  }
}

/** A failure that passes by itself: the next try may well succeed. */
export class Passing extends Error {
  /** @param {number} [afterS] seconds that the other side asks to wait. */
  constructor(message, afterS = 0) {
    super(message);
    this.afterS = afterS;
  }
}

/** Gives what `promise` gives, unless `signal` is aborted first; the work itself goes on. */
export function unless(signal, promise) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}
