/** The site's config.json, the backend that the user chose on an earlier visit, and the service's key. */
import { UserError } from "./errors.js";

const STORAGE_KEY = "drone-page-backend";
const DO_NOT_KEEP_KEY = "drone-page-do-not-keep";
const API_KEY = "drone-page-api-key";

/** Where storage is blocked, the key lasts until the page is closed. */
let apiKey = "";

/** Origin of the service, the only one that gets the key. */
let apiOrigin = null;

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
  const apiUrl = folderUrl(api);
  apiOrigin = apiUrl?.origin ?? null;
  return {
    apiUrl,
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

/** The API key of this tab, empty without one. */
export function savedKey() {
  try {
    return sessionStorage.getItem(API_KEY) ?? "";
  } catch {
    return apiKey;
  }
}

/** Keeps the key for this tab alone: never in localStorage, where it would outlive the visit. */
export function saveKey(key) {
  apiKey = key;
  try {
    if (key) sessionStorage.setItem(API_KEY, key);
    else sessionStorage.removeItem(API_KEY);
  } catch {
    // Kept above.
  }
}

/** The headers that carry the key to the service; none for any other origin. */
export function keyHeaders(url) {
  const key = savedKey();
  return key && url.origin === apiOrigin ? { Authorization: `Bearer ${key}` } : {};
}
