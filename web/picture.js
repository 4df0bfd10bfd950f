/** A file that a person gives: whether it is a picture, and the pixels that the model sees. */
import { Problem } from "./problems.js";
import { squeezer } from "./pixels.js";

/** Rows read at a time: little memory, and the page stays awake in between. */
const STRIP_ROWS = 256;

const KNOWN = "JPEG, PNG, GIF, WebP, BMP, AVIF, TIFF or PPM";

/** Kinds that the service reads even where a browser does not. */
const SERVICE_READS = ["TIFF", "PPM", "AVIF", "BMP"];

/**
 * What a person gave, checked: {file, name, url, width, height, kind}. Width is 0 where this browser
 * cannot decode it and the service can. `url` shows it, and is to be revoked.
 */
export async function openPicture(file, name, limits) {
  checkBytes(file, limits);
  const kind = kindOf(new Uint8Array(await file.slice(0, 32).arrayBuffer()));
  // Content decides, never the name: a renamed text is no picture.
  if (!kind) throw new Problem(`This is not a picture of a known kind (${KNOWN}).`);
  const url = URL.createObjectURL(file);
  try {
    const { width, height } = await sizeOf(url, kind);
    const picture = { file, name, url, width, height, kind };
    check(picture, limits);
    // An <img> shows what there is of a damaged picture; this refuses it, as Pillow does.
    if (width) (await decoded(picture)).close();
    return picture;
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

/** Throws a Problem if the picture is larger or smaller than the model takes. */
export function check({ file, width, height }, limits) {
  checkBytes(file, limits);
  if (width * height > limits.max_pixels) {
    throw new Problem(`The picture is too large: ${width} x ${height} pixels; ` +
      `at most ${limits.max_pixels / 1e6} million.`);
  }
  if (width && Math.min(width, height) < limits.min_side_px) {
    throw new Problem(`The picture is too small: ${width} x ${height} pixels; ` +
      `each side needs at least ${limits.min_side_px}.`);
  }
}

function checkBytes(file, limits) {
  if (!file.size) throw new Problem("The file is empty.");
  if (file.size > limits.max_bytes) {
    throw new Problem(`The file is too large: ${sizeText(file.size)}; at most ${sizeText(limits.max_bytes)}.`);
  }
}

/** "3.4 MB" and the like. */
export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 2 ** 20) return `${Math.ceil(bytes / 1024)} kB`;
  return `${Math.round(bytes / 2 ** 20 * 10) / 10} MB`;
}

/** The kind of picture that the first bytes promise, or null. */
export function kindOf(bytes) {
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("\x89PNG\r\n")) return "PNG";
  if (text.startsWith("GIF8")) return "GIF";
  if (text.startsWith("BM")) return "BMP";
  if (text.startsWith("II*\0") || text.startsWith("MM\0*")) return "TIFF";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WebP";
  if (text.slice(4, 8) === "ftyp" && /avi[fs]/.test(text.slice(8))) return "AVIF";
  if (text.slice(4, 8) === "ftyp" && /hei[cfx]|mif1|msf1/.test(text.slice(8))) return "HEIC";
  if (/^P[1-6]\s/.test(text)) return "PPM";
  return null;
}

/** Sides upright, from the header alone: a picture that is far too large is never decoded for this. */
async function sizeOf(url, kind) {
  const image = new Image();
  const seen = new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(undecodable(kind));
  });
  image.src = url;
  try {
    await seen;
  } catch (problem) {
    if (SERVICE_READS.includes(kind)) return { width: 0, height: 0 };
    throw problem;
  }
  return { width: image.naturalWidth, height: image.naturalHeight };
}

function undecodable(kind) {
  const common = ["JPEG", "PNG", "GIF", "WebP"].includes(kind);
  return new Problem(common ? "The picture is damaged or cut short."
    : `This browser cannot read this ${kind} picture; save it as JPEG or PNG.`);
}

/**
 * The pixels that the model sees: upright, over white, squashed to a square; RGB, (side, side, 3).
 * The same as drone/serving/preprocess.py gives, but for decoders that differ in a last bit.
 */
export async function toPixels(picture, side, signal) {
  const bitmap = await decoded(picture);
  try {
    return await squash(bitmap, side, signal);
  } finally {
    bitmap.close();
  }
}

async function decoded({ file, kind }) {
  // Colour profiles are left aside, as in training.
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  try {
    return await createImageBitmap(file, options);
  } catch {
    throw undecodable(kind);
  }
}

async function squash(bitmap, side, signal) {
  const { width, height } = bitmap;
  const square = squeezer(width, height, side);
  const strip = canvas(width, Math.min(STRIP_ROWS, height));
  const context = strip.getContext("2d", { willReadFrequently: true, alpha: false });
  for (let top = 0; top < height; top += STRIP_ROWS) {
    signal.throwIfAborted();
    const rows = Math.min(STRIP_ROWS, height - top);
    context.fillStyle = "#fff"; // What lies under a transparent pixel.
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, rows);
    square.add(data, top, rows);
    await breath();
  }
  return square.finish();
}

/** Those pixels as a PNG file: nothing is lost on the way to the service. */
export async function toPng(pixels, side) {
  const square = canvas(side, side);
  const context = square.getContext("2d");
  const image = context.createImageData(side, side);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    image.data.set(pixels.subarray(from, from + 3), to);
    image.data[to + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return new Promise((resolve, reject) => {
    const made = (blob) => (blob ? resolve(blob) : reject(new Problem("This browser made no PNG.")));
    square.toBlob(made, "image/png");
  });
}

function canvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** Lets the browser draw and take clicks. */
function breath() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => resolve(channel.port1.close());
    channel.port2.postMessage(null);
  });
}
