/** The site's config.json, and the backend that the user chose on an earlier visit. */
import { UserError } from "./errors.js";

const STORAGE_KEY = "drone-page-backend";
const DO_NOT_KEEP_KEY = "drone-page-do-not-keep";

/**
 * Reads config.json; docs/page.md lists its keys and defaults.
 * @returns {Promise<{apiUrl: URL | null, modelFolder: URL | null, retrySettings: object}>}
 *   `retrySettings` are those of `retry`.
 */
export async function readConfig() {
  let config;
  try {
    config = await (await fetch("config.json", { cache: "no-cache" })).json();
  } catch {
    throw new UserError("Cannot read config.json beside this page: it is missing or not valid JSON.");
  }
  const { api = ".", model = "model", tries = 4, first_wait_s = 1, timeout_s = 35 } = config;
  return {
    apiUrl: folderUrl(api),
    modelFolder: folderUrl(model),
    retrySettings: { maxAttempts: tries, firstWaitS: first_wait_s, timeoutS: timeout_s },
  };
}

/** Ends with a slash; without one, resolving a name against it would replace the last part of the path. */
function folderUrl(path) {
  return path === null ? null : new URL(`${(path || ".").replace(/\/+$/, "")}/`, document.baseURI);
}

/** "service", "browser" or null. Reading throws in browsers that block storage. */
export function savedBackend() {
  try {
    return localStorage.getItem(STORAGE_KEY);
  } catch {
    return null;
  }
}

export function saveBackend(backend) {
  try {
    localStorage.setItem(STORAGE_KEY, backend);
  } catch {
    // Without storage the choice lasts for this visit.
  }
}

/** Whether the user has forbidden to keep images. */
export function savedDoNotKeep() {
  try {
    return localStorage.getItem(DO_NOT_KEEP_KEY) === "true";
  } catch {
    return false;
  }
}

export function saveDoNotKeep(forbidden) {
  try {
    localStorage.setItem(DO_NOT_KEEP_KEY, String(forbidden));
  } catch {
    // Without storage the choice lasts for this visit.
  }
}
