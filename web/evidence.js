/** What an answer rests on: the evidence of each part of the image for a class, laid over the image. */
import "./heat-map.js";
import { $ } from "./view.js";

/**
 * Offers to show the evidence, and shows it if that is switched on already.
 * @param {object | undefined} evidence in the form of POST /predict; without it there is nothing to show.
 */
export function showEvidence(evidence) {
  // An image that this browser cannot decode has no preview to lay it over.
  const canShow = Boolean(evidence) && !$("image").hidden;
  $("evidence").hidden = !canShow;
  $("heat-map").setAttribute("values", canShow ? encode(evidence.map) : "");
  $("evidence-text").dataset.text = canShow ? textOf(evidence) : "";
  switchEvidence();
}

/** Shows or hides the evidence as the switch says. */
export function switchEvidence() {
  const { checked } = $("show-evidence");
  $("heat-map").hidden = !checked;
  $("evidence-text").textContent = checked ? $("evidence-text").dataset.text : "";
}

function textOf({ class: name, map }) {
  if (!map.flat().some((value) => value > 0)) return `No part of the image speaks for ${name}.`;
  return `The brighter a part of the image, the more it speaks for ${name}.`;
}

/** One byte per cell in base64, as `<heat-map>` takes it. */
function encode(map) {
  return btoa(String.fromCharCode(...map.flat().map((value) => Math.round(255 * value))));
}
