/** Classifies an image, with the service or in this browser, and shows the progress. */
import { UserError } from "./errors.js";
import { checkDepth, checkLimits, formatBytes, toPixels, toPng, undecodable } from "./image.js";
import { inputSidePx, limitsOf } from "./model-info.js";
import { abortable } from "./retry.js";
import { showStatus } from "./view.js";

/** Above this side a PNG of the resized image is larger than the image file itself. */
const MAX_PNG_SIDE_PX = 448;

/** Returns the service's prediction. Retries are shown in the status line. */
export function classifyWithService(api, image, signal, mayKeep) {
  showStatus("Sending the image to the service ...");
  checkLimits(image, limitsOf(api.info));
  const encode = async (info) => {
    // The first attempt may be the one that loads the model's limits.
    checkLimits(image, limitsOf(info));
    return encodeUpload(image, info, signal);
  };
  return api.predict(encode, signal, mayKeep, {
    onAttempt: (number, maxAttempts) => {
      if (number > 1) showStatus(`Attempt ${number} of ${maxAttempts} ...`);
    },
    onWait: (number, maxAttempts, waitS) => {
      showStatus(`No response yet. Attempt ${number} of ${maxAttempts} in ${Math.ceil(waitS)} s ...`);
    },
  });
}

/** The image at the model's input size, or the file itself where only the service can make that. */
async function encodeUpload(image, info, signal) {
  // Of 16 bits a browser shows the upper 8; the service sees all.
  if (!image.width || image.isDeep || info.preprocessing.resampling !== "bilinear") return image.file;
  const sidePx = inputSidePx(info, image);
  if (sidePx > MAX_PNG_SIDE_PX) return image.file;
  return toPng(await toPixels(image, sidePx, signal), sidePx);
}

/** Returns the prediction of the model in this browser, which is loaded if it is not yet. */
export async function classifyInBrowser(model, image, signal) {
  const { info } = model;
  checkLimits(image, limitsOf(info));
  if (!image.width) throw undecodable(image.format);
  await checkDepth(image);
  const { resampling = "bilinear" } = info.preprocessing;
  if (resampling !== "bilinear") {
    throw new UserError(`This page cannot resize images with this model's filter (${resampling}).`);
  }
  if (!model.ready) showStatus("Loading the model ...");
  await abortable(signal, model.load((bytes) => {
    if (!signal.aborted) showStatus(`Loading the model: ${formatBytes(bytes)} ...`);
  }));
  showStatus("Classifying the image ...");
  const pixels = await toPixels(image, inputSidePx(info, image), signal);
  return abortable(signal, model.predict(pixels));
}
