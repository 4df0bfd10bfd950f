/**
 * `<heat-map values="BASE64">` covers its parent with a square grid of values: one byte per cell, row
 * by row, 0 transparent. The parent has `position: relative` and the shape of the image below.
 *
 * web/ and drone/data/ hold the same file: the page loads it, and reports embed it.
 */
{
  /** matplotlib's colour map inferno at the eighths from 0 to 1. */
  const INFERNO = [
    [0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9],
    [249, 203, 53], [252, 255, 164],
  ];

  /** Opacity of the highest value; that of the others is in proportion. */
  const MAX_ALPHA = 0.75;

  /** Side of the drawing, which the browser stretches over the image. */
  const SIDE_PX = 56;

  const mix = (first, second, share) => first + (second - first) * share;

  /** Returns [index before, index after, share] for a position between the centres of cells. */
  function between(position, count) {
    const at = Math.min(Math.max(position - 0.5, 0), count - 1);
    return [Math.floor(at), Math.ceil(at), at % 1];
  }

  /** Interpolates the values, (side * side) from 0 to 1, at a place in shares of the sides. */
  function valueAt(values, side, x, y) {
    const [left, right, across] = between(x * side, side);
    const [top, bottom, down] = between(y * side, side);
    const row = (number) => mix(values[number * side + left], values[number * side + right], across);
    return mix(row(top), row(bottom), down);
  }

  /** Returns red, green and blue, 0 to 255, of a value from 0 to 1. */
  function colourOf(value) {
    const at = value * (INFERNO.length - 1);
    const [before, after] = [INFERNO[Math.floor(at)], INFERNO[Math.ceil(at)]];
    return before.map((part, channel) => mix(part, after[channel], at % 1));
  }

  class HeatMap extends HTMLElement {
    static observedAttributes = ["values"];
    #canvas = Object.assign(document.createElement("canvas"), { width: SIDE_PX, height: SIDE_PX });

    constructor() {
      super();
      // Not a style element, which the page's policy forbids.
      Object.assign(this.#canvas.style, { width: "100%", height: "100%", display: "block" });
      this.attachShadow({ mode: "open" }).append(this.#canvas);
    }

    connectedCallback() {
      Object.assign(this.style, { position: "absolute", inset: "0", pointerEvents: "none" });
      this.setAttribute("aria-hidden", "true");
    }

    attributeChangedCallback(name, before, encoded) {
      const values = Array.from(atob(encoded ?? ""), (char) => char.charCodeAt(0) / 255);
      const context = this.#canvas.getContext("2d");
      context.clearRect(0, 0, SIDE_PX, SIDE_PX);
      if (values.length) context.putImageData(this.#draw(values), 0, 0);
    }

    #draw(values) {
      const drawing = new ImageData(SIDE_PX, SIDE_PX);
      for (let at = 0; at < SIDE_PX ** 2; at++) {
        const [x, y] = [at % SIDE_PX, Math.floor(at / SIDE_PX)].map((pixel) => (pixel + 0.5) / SIDE_PX);
        const value = valueAt(values, Math.sqrt(values.length), x, y);
        drawing.data.set([...colourOf(value), 255 * MAX_ALPHA * value], 4 * at);
      }
      return drawing;
    }
  }

  customElements.define("heat-map", HeatMap);
}
