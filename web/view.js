/** Updates the page. Text of files and services is set as textContent, never as HTML. */
import { formatBytes } from "./image.js";
import { NONE, modelName } from "./model-info.js";

/** Bars that are shown without opening the list of the others. */
const MAX_BARS = 5;

export const $ = (id) => document.getElementById(id);

export function showStatus(text) {
  $("status").textContent = text;
}

/** @param {{retry?: boolean, useBrowser?: boolean}} [actions] the buttons to offer. */
export function showError(message, { retry = false, useBrowser = false } = {}) {
  showStatus("");
  $("error").replaceChildren(createElement("p", { textContent: message }));
  $("retry").hidden = !retry;
  $("use-browser").hidden = !useBrowser;
  $("error-actions").hidden = !retry && !useBrowser;
}

export function clearError() {
  $("error").replaceChildren();
  $("error-actions").hidden = true;
}

/** @param {object | null} image from `openImage`. */
export function showImage(image) {
  $("preview").hidden = !image;
  $("drop-hint").hidden = Boolean(image);
  $("remove").hidden = !image;
  $("submit").disabled = !image;
  $("choose-file").textContent = image ? "Choose another" : "Choose an image";
  if (!image) {
    $("image").removeAttribute("src");
    $("image-name").textContent = $("image-size").textContent = "";
    return;
  }
  $("image").hidden = !image.width;
  $("no-preview").hidden = Boolean(image.width);
  if (image.width) $("image").src = image.url;
  $("image").alt = `The image: ${image.name}`;
  $("image-name").textContent = image.name;
  const sides = image.width ? `${image.width} × ${image.height}, ` : "";
  $("image-size").textContent = `(${sides}${formatBytes(image.file.size)})`;
}

/** @param {string} text what the service keeps of images; empty hides the notice and the choice. */
export function showKeeps(text) {
  $("keeps-text").textContent = text;
  $("keeps").hidden = !text;
}

/** Shows Cancel in place of Submit. Hiding a focused button would lose the focus, so it moves along. */
export function showBusy(busy) {
  const [from, to] = busy ? [$("submit"), $("cancel")] : [$("cancel"), $("submit")];
  const focused = document.activeElement === from;
  $("submit").hidden = busy;
  $("cancel").hidden = !busy;
  document.body.setAttribute("aria-busy", String(busy));
  if (focused) to.focus();
}

/**
 * @param {object} prediction in the form of POST /predict.
 * @param {string} where the model ran, such as "in this browser".
 */
export function showPrediction(prediction, where) {
  const isNone = prediction.label === NONE;
  const confidence = formatPercent(prediction.confidence);
  $("prediction").textContent = isNone ? "None of these" : `${prediction.label}: ${confidence}`;
  $("alarm").textContent = prediction.alarm ? `Alarm: drone with a probability of ${formatPercent(prediction.drone)}` : "";
  $("alarm").hidden = !prediction.alarm;
  $("none").textContent = isNone ? noneText(prediction) : "";
  $("none").hidden = !isNone;
  $("kind").textContent = kindText(prediction);
  $("kind").hidden = !prediction.kind;
  $("unsure").hidden = !prediction.unsure || isNone;
  const ranked = Object.entries(prediction.probabilities).sort(([, a], [, b]) => b - a);
  const bars = ranked.map(([name, value]) => createBar(name, value, name === prediction.label));
  // One class more would not be worth opening a list.
  const count = bars.length > MAX_BARS + 1 ? MAX_BARS : bars.length;
  $("probabilities").replaceChildren(...bars.slice(0, count));
  $("more-probabilities").replaceChildren(...bars.slice(count));
  $("more-classes").hidden = count === bars.length;
  $("more-classes-summary").textContent = `${bars.length - count} more classes`;
  findClass($("find-class").value);
  const name = modelName(prediction.model);
  $("predicted-by").textContent = `Predicted ${name ? `by ${name} ` : ""}${where}.`;
  $("result").hidden = false;
}

/** Shows those of the less probable classes whose names have a text in them. */
export function findClass(text) {
  const wanted = text.trim().toLowerCase();
  for (const bar of $("more-probabilities").children) {
    bar.hidden = !bar.firstChild.textContent.toLowerCase().includes(wanted);
  }
}

export function clearPrediction() {
  $("result").hidden = true;
  $("probabilities").replaceChildren();
  $("more-probabilities").replaceChildren();
  $("prediction").textContent = $("kind").textContent = $("predicted-by").textContent = "";
}

function noneText({ known, probabilities }) {
  return `The image is not like those that the model was trained on (known score ${formatPercent(known)}), ` +
    `so the probabilities of the ${Object.keys(probabilities).length} classes say little.`;
}

const KINDS = { bird: "A bird", drone: "A drone", other: "Neither a bird nor a drone" };

function kindText({ kind, kind_probability: probability }) {
  if (!kind) return "";
  return `${KINDS[kind]}${probability == null ? "" : ` (${formatPercent(probability)})`}`;
}

function createBar(name, value, top) {
  const fill = createElement("div", { className: "fill" });
  fill.style.width = `${100 * value}%`;
  const track = createElement("div", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true"); // Screen readers get the number beside it.
  const texts = [name, formatPercent(value)].map((textContent) => createElement("span", { textContent }));
  return createElement("li", { className: top ? "top" : "" }, ...texts, track);
}

/** Never "100.0 %" for a probability below 1, nor "0.0 %" for one above 0. */
function formatPercent(value) {
  const percent = (100 * value).toFixed(1);
  if (percent === "100.0" && value < 1) return "> 99.9 %";
  return percent === "0.0" && value > 0 ? "< 0.1 %" : `${percent} %`;
}

function createElement(tag, properties, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}
