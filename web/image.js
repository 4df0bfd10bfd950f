/** Opens and checks the user's image file, and computes the pixels that the model sees. */
import { UserError } from "./errors.js";
import { stripResizer } from "./resize.js";

/** Rows that are read from the canvas at a time: bounds memory and keeps the page responsive. */
const STRIP_ROWS = 256;

/** An image is blank if no channel spans this much at a side of 128 px, as in drone/serving/blank.py. */
const BLANK_SIDE_PX = 128, MIN_RANGE = 16;

/** Frames of an animation that are searched for one that is not blank. */
const MAX_FRAMES = 16;

const ANIMATED_TYPES = { GIF: "image/gif", PNG: "image/png", WebP: "image/webp", AVIF: "image/avif" };

const FORMATS = "JPEG, PNG, GIF, WebP, BMP, AVIF, TIFF or PPM";

/** Formats of files that hold more than an image. */
const FILES = ["video", "PDF", "SVG"];

/** Formats that the service decodes where a browser may not. */
const SERVICE_FORMATS = ["TIFF", "PPM", "AVIF", "BMP"];

/**
 * Opens an image and checks it against the limits.
 *
 * @returns {Promise<object>} {file, name, url, width, height, format, isDeep}; width and height are 0
 *   where only the service can decode the image; `isDeep` is true for 16 bits. The caller revokes `url`.
 * @throws {UserError} if the file is not an image, is damaged or exceeds a limit.
 */
export async function openImage(file, name, limits) {
  checkFileSize(file, limits);
  // By content, not by name or type: a renamed text file is not an image.
  const start = new Uint8Array(await file.slice(0, 2048).arrayBuffer());
  const format = sniffFormat(start);
  if (!format) throw new UserError(`Not an image of a supported format (${FORMATS}).`);
  // The browser would draw it, and the service would not.
  if (format === "SVG") throw undecodable(format);
  const url = URL.createObjectURL(file);
  try {
    const { width, height } = await readSize(url, format);
    const image = { file, name, url, width, height, format, isDeep: format === "PNG" && start[24] === 16 };
    checkLimits(image, limits);
    // An <img> shows what it can of a damaged image; decoding rejects it, as Pillow does.
    if (width) (await decode(image)).close();
    return image;
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

/** @throws {UserError} if the file or the image is larger or smaller than the model takes. */
export function checkLimits({ file, width, height }, limits) {
  checkFileSize(file, limits);
  const size = `The image has ${width} x ${height} pixels`;
  if (width * height > limits.max_pixels) {
    throw new UserError(`${size}; the limit is ${limits.max_pixels / 1e6} million.`);
  }
  if (width && Math.min(width, height) < limits.min_side_px) {
    throw new UserError(`${size}; the minimum is ${limits.min_side_px} x ${limits.min_side_px}.`);
  }
}

function checkFileSize(file, limits) {
  if (!file.size) throw new UserError("The file is empty.");
  if (file.size > limits.max_bytes) {
    let [size, limit] = [file.size, limits.max_bytes].map(formatBytes);
    // Rounded, a file just above the limit would seem to have the size of the limit.
    if (size === limit) [size, limit] = [`${file.size} bytes`, `${limits.max_bytes} bytes`];
    throw new UserError(`The file has ${size}; the limit is ${limit}.`);
  }
}

/** "850 bytes", "12 kB" or "3.4 MB", in units of 1024. */
export function formatBytes(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 2 ** 20) return `${Math.ceil(bytes / 1024)} kB`;
  return `${Math.round(bytes / 2 ** 20 * 10) / 10} MB`;
}

/** The format that a file's first bytes indicate, or null. */
function sniffFormat(bytes) {
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("\x89PNG\r\n")) return "PNG";
  if (text.startsWith("GIF8")) return "GIF";
  if (text.startsWith("BM")) return "BMP";
  if (text.startsWith("II*\0") || text.startsWith("MM\0*")) return "TIFF";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WebP";
  if (text.slice(4, 8) === "ftyp" && /avi[fs]/.test(text.slice(8, 32))) return "AVIF";
  if (text.slice(4, 8) === "ftyp" && /hei[cfxms]|hev[cxms]|mif1|msf1/.test(text.slice(8, 32))) return "HEIC";
  if (text.slice(4, 8) === "ftyp") return "video";
  if (text.startsWith("\xff\x0a") || text.startsWith("\0\0\0\x0cJXL ")) return "JPEG XL";
  if (text.startsWith("\xff\x4f\xff\x51") || text.startsWith("\0\0\0\x0cjP  ")) return "JPEG 2000";
  if (text.startsWith("8BPS")) return "Photoshop";
  if (text.startsWith("%PDF-")) return "PDF";
  if (/^(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)/.test(text) && /<svg[\s>]/.test(text)) return "SVG";
  if (text.startsWith("\x1a\x45\xdf\xa3") || /^RIFF....AVI /s.test(text)) return "video";
  if (/^P[1-6]\s/.test(text)) return "PPM";
  return null;
}

/** Width and height after EXIF rotation. An <img> needs the header only; a huge image is not decoded. */
async function readSize(url, format) {
  const img = new Image();
  const loaded = new Promise((resolve, reject) => {
    img.onload = resolve;
    img.onerror = () => reject(undecodable(format));
  });
  img.src = url;
  try {
    await loaded;
  } catch (error) {
    if (SERVICE_FORMATS.includes(format)) return { width: 0, height: 0 };
    throw error;
  }
  return { width: img.naturalWidth, height: img.naturalHeight };
}

/** The error for an image that this browser cannot decode. */
export function undecodable(format) {
  const universal = ["JPEG", "PNG", "GIF", "WebP"].includes(format);
  return new UserError(universal ? "The image is damaged or truncated."
    : `This browser cannot read ${format} ${FILES.includes(format) ? "files" : "images"}; save it as JPEG or PNG.`);
}

/**
 * The pixels that the model sees: EXIF rotation applied, alpha composited over white, resized to a square
 * without regard to the aspect ratio. The same as drone/serving/preprocess.py, up to decoders that differ
 * in the last bit.
 * @returns {Promise<Uint8ClampedArray>} RGB, (sidePx, sidePx, 3).
 */
export async function toPixels(image, sidePx, signal) {
  const bitmap = await decode(image);
  try {
    return await resizeToSquare(bitmap, sidePx, signal);
  } finally {
    bitmap.close();
  }
}

async function decode(image) {
  const { file, format } = image;
  // Colour profiles are ignored, as in training.
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  try {
    return await shownFrame(image, await createImageBitmap(file, options));
  } catch {
    throw undecodable(format);
  }
}

/** The first frame of an animation that is not blank, if the browser can decode single frames. */
async function shownFrame({ file, format }, first) {
  const type = ANIMATED_TYPES[format];
  if (!type || !globalThis.ImageDecoder || spread(first) >= MIN_RANGE) return first;
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type, colorSpaceConversion: "none" });
  try {
    await decoder.tracks.ready;
    // Until then not all frames may be counted.
    await decoder.completed;
    const count = Math.min(decoder.tracks.selectedTrack.frameCount, MAX_FRAMES);
    for (let frameIndex = 1; frameIndex < count; frameIndex++) {
      const { image: frame } = await decoder.decode({ frameIndex });
      const bitmap = await createImageBitmap(frame).finally(() => frame.close());
      if (spread(bitmap) >= MIN_RANGE) {
        first.close();
        return bitmap;
      }
      bitmap.close();
    }
  } catch {
    // Damage behind the first frame is no loss.
  } finally {
    decoder.close();
  }
  return first;
}

/**
 * Checks that the browser shows what the model was trained on: of 16 bits it takes the upper 8 only, while
 * training scales values that use a part of the range.
 */
export async function checkDepth(image) {
  if (!image.isDeep) return;
  const bitmap = await decode(image);
  const { min, max } = extremes(bitmap);
  bitmap.close();
  if (max < 64 || max - min < 32) {
    throw new UserError("This image uses a part of its 16 bits only, and this browser would show it as nearly " +
      "black. Save it with 8 bits, or use the service.");
  }
}

/** The largest difference of a channel's values, seen at a small side. */
function spread(bitmap) {
  return Math.max(...extremes(bitmap).ranges);
}

function extremes(bitmap) {
  const canvas = createCanvas(BLANK_SIDE_PX, BLANK_SIDE_PX);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.imageSmoothingQuality = "high"; // Averages.
  context.fillStyle = "#fff";
  context.fillRect(0, 0, BLANK_SIDE_PX, BLANK_SIDE_PX);
  context.drawImage(bitmap, 0, 0, BLANK_SIDE_PX, BLANK_SIDE_PX);
  const { data } = context.getImageData(0, 0, BLANK_SIDE_PX, BLANK_SIDE_PX);
  const low = [255, 255, 255], high = [0, 0, 0];
  for (let at = 0; at < data.length; at++) {
    const channel = at % 4;
    if (channel === 3) continue;
    if (data[at] < low[channel]) low[channel] = data[at];
    if (data[at] > high[channel]) high[channel] = data[at];
  }
  const ranges = high.map((value, channel) => value - low[channel]);
  return { ranges, min: Math.min(...low), max: Math.max(...high) };
}

async function resizeToSquare(bitmap, sidePx, signal) {
  const { width, height } = bitmap;
  const resizer = stripResizer(width, height, sidePx);
  const strip = createCanvas(width, Math.min(STRIP_ROWS, height));
  const context = strip.getContext("2d", { willReadFrequently: true, alpha: false });
  for (let top = 0; top < height; top += STRIP_ROWS) {
    signal.throwIfAborted();
    const rows = Math.min(STRIP_ROWS, height - top);
    context.fillStyle = "#fff"; // Transparent pixels are composited over white.
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, rows);
    resizer.add(data, top, rows);
    await yieldToEvents();
  }
  return resizer.finish();
}

/** Encodes RGB pixels, (sidePx, sidePx, 3), as PNG, which is lossless. */
export function toPng(pixels, sidePx) {
  const canvas = createCanvas(sidePx, sidePx);
  const context = canvas.getContext("2d");
  const rgba = context.createImageData(sidePx, sidePx);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    rgba.data.set(pixels.subarray(from, from + 3), to);
    rgba.data[to + 3] = 255;
  }
  context.putImageData(rgba, 0, 0);
  // Chromium delays canvas.toBlob until the page is idle, 0.4 to 1 s after a click.
  const base64 = canvas.toDataURL("image/png").split(",")[1];
  const png = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  return new Blob([png], { type: "image/png" });
}

function createCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** Lets the browser paint and handle clicks. setTimeout would add 4 ms for each strip. */
function yieldToEvents() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => resolve(channel.port1.close());
    channel.port2.postMessage(null);
  });
}
