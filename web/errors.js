/** An error whose message is shown to the user. Any other exception is a bug in the page. */
export class UserError extends Error {
  /**
   * @param {string} message plain text.
   * @param {{retryable?: boolean, notFound?: boolean, needsKey?: boolean}} [flags]
   *   retryable: whether the page offers "Try again";
   *   notFound: whether there is no service or model at the address at all;
   *   needsKey: whether the service wants an API key, or another one.
   */
  constructor(message, { retryable = false, notFound = false, needsKey = false } = {}) {
    super(message);
    this.retryable = retryable;
    this.notFound = notFound;
    this.needsKey = needsKey;
  }
}

/** A temporary failure: `retry` makes another attempt after it. */
export class TransientError extends Error {
  /** @param {number} [retryAfterS] minimum wait in seconds that the server asks for. */
  constructor(message, retryAfterS = 0) {
    super(message);
    this.retryAfterS = retryAfterS;
  }
}
