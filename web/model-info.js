/** What GET /model or model/model.json says of a model: classes, preprocessing and limits. */
import { UserError } from "./errors.js";

/** The label of an image that shows none of the classes, as in drone/labels.py. */
export const NONE = "none of these";

/** Limits that apply until the model's own are loaded. */
const DEFAULT_LIMITS = { max_bytes: 20 * 2 ** 20, max_pixels: 64e6, min_side_px: 1 };

/**
 * Returns `info` if it has what the page needs.
 * @param {string} location is named in the error.
 * @throws {UserError} `notFound` for anything else, such as a host's error page: there is no model.
 */
export function validateModelInfo(info, location) {
  const sidePx = info?.preprocessing?.side_px;
  if (!Array.isArray(info?.classes) || !Array.isArray(info?.roles) || !Number.isInteger(sidePx) || sidePx < 1) {
    throw new UserError(`There is no model at ${location}.`, { notFound: true });
  }
  return info;
}

/** The limits on images: {max_bytes, max_pixels, min_side_px}; the defaults without `info`. */
export function limitsOf(info) {
  const minSidePx = info?.preprocessing?.min_side_px;
  return { ...DEFAULT_LIMITS, ...(minSidePx && { min_side_px: minSidePx }), ...info?.limits };
}

/** The names of the classes; of many the first ones and their number. */
export function classesText({ classes }) {
  const shown = classes.slice(0, 8).join(", ");
  return classes.length > 8 ? `${shown} and ${classes.length - 8} more classes` : shown;
}

/** "drone-classifier 7", or whichever of name and version the model has. */
export function modelName(model) {
  return [model?.name, model?.version].filter((part) => part != null && part !== "").join(" ");
}

/**
 * The side in pixels of the model's input for an image. A model of mixed resolutions has several; the one
 * nearest to the image's longer side is taken, the smaller of two equally near.
 */
export function inputSidePx(info, { width, height }) {
  const longerPx = Math.max(width, height);
  const sidesPx = info.sides_px?.length ? info.sides_px : [info.preprocessing.side_px];
  return sidesPx.reduce((nearest, sidePx) =>
    Math.abs(longerPx - sidePx) < Math.abs(longerPx - nearest) ? sidePx : nearest);
}

/** What a service says that it keeps of images, as a sentence; "" if it keeps none. */
export function keepsText({ keeps } = {}) {
  if (!keeps) return "";
  const kinds = [
    ...(keeps.unsure ? ["images that the model is unsure of"] : []),
    ...(keeps.none ? [`those that are ${NONE}`] : []),
    ...(keeps.share ? [`a sample of ${Number((100 * keeps.share).toPrecision(3))} % of all`] : []),
  ];
  return `To improve the model, this service keeps ${kinds.join(", ")} for up to ${keeps.days} days; ` +
    "people may look at them and label them, and labelled ones are kept for training.";
}
