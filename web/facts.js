import { Problem } from "./problems.js";

/** What is assumed of a picture until a model has said its own limits. */
export const DEFAULT_LIMITS = { max_bytes: 20 * 2 ** 20, max_pixels: 64e6, min_side_px: 1 };

/**
 * The facts of a model, from GET /model or model/model.json, checked as far as the page needs them.
 * What answers with anything else is not a model of ours: a folder's listing, a host's error page.
 */
export function checkedFacts(value, where) {
  const side = value?.preprocessing?.side_px;
  if (!Array.isArray(value?.classes) || !Number.isInteger(side) || side < 1) {
    throw new Problem(`There is no model at ${where}.`, { absent: true });
  }
  return value;
}

/** The limits that a picture has to keep. */
export function limitsOf(facts) {
  const smallest = facts?.preprocessing?.min_side_px;
  return { ...DEFAULT_LIMITS, ...(smallest && { min_side_px: smallest }), ...facts?.limits };
}

/** "drone-classifier 7", or as much of it as is known. */
export function nameOf(model) {
  return [model?.name, model?.version].filter((part) => part != null && part !== "").join(" ");
}

/**
 * The side in pixels that a model takes a picture at: its only one, or of a model of mixed
 * resolutions the one nearest to the picture's longer side; a tie goes to the smaller.
 */
export function sideFor(facts, { width, height }) {
  const longer = Math.max(width, height);
  const sides = facts.sides_px?.length ? facts.sides_px : [facts.preprocessing.side_px];
  return sides.reduce((best, side) =>
    Math.abs(longer - side) < Math.abs(longer - best) ? side : best);
}
