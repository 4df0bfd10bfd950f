/**
 * Pillow's BILINEAR resize (libImaging/Resample.c), to the bit. The model was trained on pictures that
 * Pillow made smaller; a canvas does it otherwise, and the answers would move.
 */

/** Weights are integers of this many bits after the point, as Pillow has them for 8-bit pictures. */
const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);

/**
 * Which inputs make each output, and with which weight.
 * @returns {{first: Int32Array, count: Int32Array, weights: Int32Array, stride: number}}
 */
function coefficients(inSize, outSize) {
  const scale = inSize / outSize;
  const support = Math.max(scale, 1);
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const weights = new Int32Array(outSize * stride);
  const row = new Float64Array(stride);
  for (let out = 0; out < outSize; out++) {
    const center = (out + 0.5) * scale;
    const from = Math.max(0, Math.trunc(center - support + 0.5));
    const to = Math.min(inSize, Math.trunc(center + support + 0.5));
    // The order of these operations is Pillow's: another one rounds some weights differently.
    let total = 0;
    for (let i = 0; i < to - from; i++) {
      row[i] = triangle((i + from - center + 0.5) * (1 / support));
      total += row[i];
    }
    for (let i = 0; i < to - from; i++) {
      const share = total === 0 ? row[i] : row[i] / total;
      weights[out * stride + i] = Math.trunc(0.5 + share * (1 << PRECISION_BITS));
    }
    first[out] = from;
    count[out] = to - from;
  }
  return { first, count, weights, stride };
}

function triangle(x) {
  return Math.max(0, 1 - Math.abs(x));
}

/**
 * The resize of a picture whose rows come strip by strip, from the top.
 * `add(rgba, top, rows)` takes the next strip, opaque; `finish()` gives RGB, (side, side, 3).
 */
export function squeezer(width, height, side) {
  const across = coefficients(width, side);
  const down = coefficients(height, side);
  // Rounding in between makes the order of the two passes show. This is Pillow 13's choice.
  const downFirst = height - side > Math.max(0, 2 * (width - side));
  const columns = new Columns(down, downFirst ? width : side);
  return {
    add(rgba, top, rows) {
      const rgb = withoutAlpha(rgba, width * rows);
      columns.add(downFirst ? rgb : squeezeRows(rgb, width, rows, across), top, rows);
    },
    finish() {
      const rows = columns.bytes();
      return downFirst ? squeezeRows(rows, width, side, across) : rows;
    },
  };
}

function withoutAlpha(rgba, pixels) {
  const rgb = new Uint8ClampedArray(pixels * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}

/** RGB rows, each made as wide as `across` says: (rows, side, 3). */
function squeezeRows(rgb, width, rows, across) {
  const { first, count, weights, stride } = across;
  const side = first.length;
  const out = new Uint8ClampedArray(rows * side * 3);
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < side; x++, at += 3) {
      let red = HALF, green = HALF, blue = HALF;
      let from = (y * width + first[x]) * 3;
      for (let k = x * stride, end = k + count[x]; k < end; k++, from += 3) {
        const weight = weights[k];
        red += rgb[from] * weight;
        green += rgb[from + 1] * weight;
        blue += rgb[from + 2] * weight;
      }
      // The clamped array takes care of 256.
      out[at] = red >> PRECISION_BITS;
      out[at + 1] = green >> PRECISION_BITS;
      out[at + 2] = blue >> PRECISION_BITS;
    }
  }
  return out;
}

/** Sums of weighted rows: the pass from many rows to few, without having all of them at once. */
class Columns {
  constructor(down, width) {
    this.down = down;
    this.length = width * 3;
    this.sums = new Int32Array(down.first.length * this.length).fill(HALF);
  }

  add(rgb, top, rows) {
    const { first, count, weights, stride } = this.down;
    for (let out = 0; out < first.length; out++) {
      const from = Math.max(first[out], top);
      const to = Math.min(first[out] + count[out], top + rows);
      for (let y = from; y < to; y++) {
        this.#addRow(out, rgb, (y - top) * this.length, weights[out * stride + y - first[out]]);
      }
    }
  }

  #addRow(out, rgb, at, weight) {
    const { sums, length } = this;
    for (let x = 0, to = out * length; x < length; x++) sums[to + x] += rgb[at + x] * weight;
  }

  bytes() {
    return Uint8ClampedArray.from(this.sums, (sum) => sum >> PRECISION_BITS);
  }
}
