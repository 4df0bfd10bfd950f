/**
 * Pillow's BILINEAR resize (libImaging/Resample.c), bit-exact. The model is trained on images that Pillow
 * resized; a canvas filters differently, which would shift the predictions.
 */
/*
 * The Python Imaging Library (PIL) is
 *
 *     Copyright © 1997-2011 by Secret Labs AB
 *     Copyright © 1995-2011 by Fredrik Lundh and contributors
 *
 * Pillow is the friendly PIL fork. It is
 *
 *     Copyright © 2010 by Jeffrey 'Alex' Clark and contributors
 *
 * Like PIL, Pillow is licensed under the open source MIT-CMU License:
 *
 * By obtaining, using, and/or copying this software and/or its associated
 * documentation, you agree that you have read, understood, and will comply
 * with the following terms and conditions:
 *
 * Permission to use, copy, modify and distribute this software and its
 * documentation for any purpose and without fee is hereby granted,
 * provided that the above copyright notice appears in all copies, and that
 * both that copyright notice and this permission notice appear in supporting
 * documentation, and that the name of Secret Labs AB or the author not be
 * used in advertising or publicity pertaining to distribution of the software
 * without specific, written prior permission.
 *
 * SECRET LABS AB AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS
 * SOFTWARE, INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS.
 * IN NO EVENT SHALL SECRET LABS AB OR THE AUTHOR BE LIABLE FOR ANY SPECIAL,
 * INDIRECT OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM
 * LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE
 * OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR
 * PERFORMANCE OF THIS SOFTWARE.
 */

/** Fractional bits of the integer weights, as in Pillow for 8-bit images. */
const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);

/**
 * Resizes an image that arrives in strips of rows, from the top, so that it is never in memory as a whole.
 *
 * @returns {{add: (rgba: Uint8ClampedArray, top: number, rows: number) => void,
 *   finish: () => Uint8ClampedArray}} `add` takes the next strip, opaque, (rows, width, 4);
 *   `finish` returns RGB, (sidePx, sidePx, 3).
 */
export function stripResizer(width, height, sidePx) {
  const horizontal = precomputeWeights(width, sidePx);
  const vertical = precomputeWeights(height, sidePx);
  // Each pass rounds, so their order matters. This is the rule of Pillow 13.
  const verticalFirst = height - sidePx > Math.max(0, 2 * (width - sidePx));
  const verticalPass = new VerticalPass(vertical, verticalFirst ? width : sidePx);
  return {
    add(rgba, top, rows) {
      const rgb = dropAlpha(rgba, width * rows);
      verticalPass.add(verticalFirst ? rgb : resizeRows(rgb, width, rows, horizontal), top, rows);
    },
    finish() {
      const rgb = verticalPass.finish();
      return verticalFirst ? resizeRows(rgb, width, sidePx, horizontal) : rgb;
    },
  };
}

/**
 * Computes the inputs that contribute to each output, and their weights.
 * @returns {{first: Int32Array, count: Int32Array, weights: Int32Array, stride: number}} output `i` is the
 *   sum of inputs `first[i] + k` times `weights[i * stride + k]`, for `k < count[i]`.
 */
function precomputeWeights(inSize, outSize) {
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
    // Operations in Pillow's order: any other rounds some weights differently.
    let total = 0;
    for (let i = 0; i < to - from; i++) {
      row[i] = triangle((i + from - center + 0.5) * (1 / support));
      total += row[i];
    }
    for (let i = 0; i < to - from; i++) {
      const weight = total === 0 ? row[i] : row[i] / total;
      weights[out * stride + i] = Math.trunc(0.5 + weight * (1 << PRECISION_BITS));
    }
    first[out] = from;
    count[out] = to - from;
  }
  return { first, count, weights, stride };
}

function triangle(x) {
  return Math.max(0, 1 - Math.abs(x));
}

function dropAlpha(rgba, pixels) {
  const rgb = new Uint8ClampedArray(pixels * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}

/** The horizontal pass: (rows, width, 3) to (rows, sidePx, 3). */
function resizeRows(rgb, width, rows, horizontal) {
  const { first, count, weights, stride } = horizontal;
  const sidePx = first.length;
  const resized = new Uint8ClampedArray(rows * sidePx * 3);
  for (let y = 0, at = 0; y < rows; y++) {
    for (let x = 0; x < sidePx; x++, at += 3) {
      let red = HALF, green = HALF, blue = HALF;
      let from = (y * width + first[x]) * 3;
      for (let k = x * stride, end = k + count[x]; k < end; k++, from += 3) {
        const weight = weights[k];
        red += rgb[from] * weight;
        green += rgb[from + 1] * weight;
        blue += rgb[from + 2] * weight;
      }
      // Rounding can reach 256; the clamped array stores that as 255, as Pillow does.
      resized[at] = red >> PRECISION_BITS;
      resized[at + 1] = green >> PRECISION_BITS;
      resized[at + 2] = blue >> PRECISION_BITS;
    }
  }
  return resized;
}

/** The vertical pass, as running sums over the rows that have arrived. */
class VerticalPass {
  constructor(vertical, width) {
    this.vertical = vertical;
    this.rowLength = width * 3;
    this.sums = new Int32Array(vertical.first.length * this.rowLength).fill(HALF);
  }

  add(rgb, top, rows) {
    const { first, count, weights, stride } = this.vertical;
    for (let out = 0; out < first.length; out++) {
      const from = Math.max(first[out], top);
      const to = Math.min(first[out] + count[out], top + rows);
      for (let y = from; y < to; y++) {
        this.#addRow(out, rgb, (y - top) * this.rowLength, weights[out * stride + y - first[out]]);
      }
    }
  }

  #addRow(out, rgb, from, weight) {
    const { sums, rowLength } = this;
    for (let x = 0, to = out * rowLength; x < rowLength; x++) sums[to + x] += rgb[from + x] * weight;
  }

  finish() {
    return Uint8ClampedArray.from(this.sums, (sum) => sum >> PRECISION_BITS);
  }
}
