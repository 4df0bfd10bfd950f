/** What the page shows. Whatever comes from a file or from a service goes in as text, never as HTML. */
import { nameOf } from "./facts.js";
import { sizeText } from "./picture.js";

export const $ = (id) => document.getElementById(id);

export function showStatus(text) {
  $("status").textContent = text;
}

/** @param {{again?: boolean, instead?: boolean}} [ways] which ways out are offered. */
export function showTrouble(message, { again = false, instead = false } = {}) {
  showStatus("");
  $("trouble").replaceChildren(element("p", { textContent: message }));
  $("again").hidden = !again;
  $("instead").hidden = !instead;
  $("ways-out").hidden = !again && !instead;
}

export function clearTrouble() {
  $("trouble").replaceChildren();
  $("ways-out").hidden = true;
}

/** @param {object | null} picture of `openPicture`. */
export function showPicture(picture) {
  $("preview").hidden = !picture;
  $("invite").hidden = Boolean(picture);
  $("remove").hidden = !picture;
  $("submit").disabled = !picture;
  $("choose").textContent = picture ? "Choose another" : "Choose a picture";
  if (!picture) {
    $("shown").removeAttribute("src");
    $("name").textContent = $("size").textContent = "";
    return;
  }
  $("shown").hidden = !picture.width;
  $("unseen").hidden = Boolean(picture.width);
  if (picture.width) $("shown").src = picture.url;
  $("shown").alt = `The picture: ${picture.name}`;
  $("name").textContent = picture.name;
  const sides = picture.width ? `${picture.width} × ${picture.height}, ` : "";
  $("size").textContent = `(${sides}${sizeText(picture.file.size)})`;
}

/** While a question is open, Cancel stands where Submit was, and takes the focus over. */
export function showBusy(busy) {
  const [from, to] = busy ? [$("submit"), $("cancel")] : [$("cancel"), $("submit")];
  const focused = document.activeElement === from;
  $("submit").hidden = busy;
  $("cancel").hidden = !busy;
  document.body.setAttribute("aria-busy", String(busy));
  if (focused) to.focus();
}

/** @param {object} answer as POST /predict gives it. */
export function showAnswer(answer, by) {
  $("answer").textContent = `${answer.label}: ${percent(answer.confidence)}`;
  $("kind").textContent = kindText(answer);
  $("kind").hidden = !answer.kind;
  $("unsure").hidden = !answer.unsure;
  const ranked = Object.entries(answer.probabilities).sort(([, one], [, other]) => other - one);
  $("bars").replaceChildren(...ranked.map(([name, value]) => bar(name, value, name === answer.label)));
  const model = nameOf(answer.model);
  $("source").textContent = `${model ? `Model ${model}, answered` : "Answered"} by ${by}.`;
  $("result").hidden = false;
}

export function clearAnswer() {
  $("result").hidden = true;
  $("bars").replaceChildren();
  $("answer").textContent = $("kind").textContent = $("source").textContent = "";
}

function kindText({ kind, drone }) {
  if (!kind) return "";
  const share = kind === "drone" ? drone : 1 - drone;
  return `${kind === "drone" ? "A drone" : "A bird"}${drone == null ? "" : ` (${percent(share)})`}`;
}

function bar(name, value, first) {
  const fill = element("div", { className: "fill" });
  fill.style.width = `${100 * value}%`;
  const track = element("div", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true"); // The number beside it says the same.
  const words = [element("span", { textContent: name }), element("span", { textContent: percent(value) })];
  return element("li", { className: first ? "first" : "" }, ...words, track);
}

/** 99.96 % of probability is not certainty. */
function percent(value) {
  const shown = (100 * value).toFixed(1);
  if (shown === "100.0" && value < 1) return "> 99.9 %";
  return shown === "0.0" && value > 0 ? "< 0.1 %" : `${shown} %`;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
