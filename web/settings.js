/** config.json beside the page, and what a person chose last time. */
import { Problem } from "./problems.js";

const STORE = "drone-page-way";

/** `api` and `model` as URLs or null; how long and how often to ask. */
export async function readConfig() {
  let config;
  try {
    config = await (await fetch("config.json", { cache: "no-cache" })).json();
  } catch {
    throw new Problem("config.json beside this page cannot be read.");
  }
  const { api = ".", model = "model", tries = 4, first_wait_s = 1, timeout_s = 35 } = config;
  return {
    api: folder(api),
    model: folder(model),
    patience: { tries, firstWaitS: first_wait_s, timeoutS: timeout_s },
  };
}

/** A name is put after the last slash of a base, so there has to be one at its end. */
function folder(place) {
  return place === null ? null : new URL(`${(place || ".").replace(/\/+$/, "")}/`, document.baseURI);
}

/** "api", "browser" or null. Some browsers keep nothing; then it is asked each time. */
export function rememberedWay() {
  try {
    return localStorage.getItem(STORE);
  } catch {
    return null;
  }
}

export function rememberWay(way) {
  try {
    localStorage.setItem(STORE, way);
  } catch {
    // Nothing is kept here.
  }
}
