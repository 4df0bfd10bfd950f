/** The page's state and event handlers. */
import { Api } from "./api.js";
import { Camera } from "./camera.js";
import { classifyInBrowser, classifyWithService } from "./classify.js";
import { listenForFiles } from "./drop.js";
import { UserError } from "./errors.js";
import { showEvidence, switchEvidence } from "./evidence.js";
import { formatBytes, openImage } from "./image.js";
import { LocalModel } from "./local.js";
import { classesText, keepsText, limitsOf, modelName } from "./model-info.js";
import {
  readConfig, saveBackend, saveDoNotKeep, saveKey, savedBackend, savedDoNotKeep, savedKey,
} from "./settings.js";
import {
  $, clearError, clearPrediction, findClass, showBusy, showError, showImage, showKeeps, showPrediction,
  showStatus,
} from "./view.js";

/** The backends that run the model; null where this page lacks one. */
const backends = { service: null, browser: null };

/** Where a model for the browser is looked for, null where there is none. */
let modelFolder = null;

/** Name of the selected backend, null without any. */
let selected = null;

/** The open image, from `openImage`. */
let image = null;

/** Aborted when the image is replaced or removed, so that nothing of it is shown afterwards. */
let imageController = new AbortController();

/** Controller of the prediction that is under way, if any. */
let pending = null;

const camera = new Camera($("video"));

// ---- image ----

function clearImage() {
  imageController.abort();
  imageController = new AbortController();
  endPending();
  if (image) URL.revokeObjectURL(image.url);
  image = null;
  showImage(null);
  clearPrediction();
  showEvidence(null);
  clearError();
  showStatus("");
}

async function useFile(file, name, note = "") {
  closeCamera();
  clearImage();
  const { signal } = imageController;
  try {
    const opened = await openImage(file, name, limitsOf(backends[selected]?.info));
    if (signal.aborted) {
      URL.revokeObjectURL(opened.url);
      return;
    }
    image = opened;
    showImage(image);
    showStatus(note || "The image is ready. Press Submit to classify it.");
    $("submit").focus();
  } catch (error) {
    if (!signal.aborted) reportError(error);
  }
}

function removeImage() {
  clearImage();
  showStatus("The image was removed.");
  $("choose-file").focus();
}

// ---- prediction ----

async function submit() {
  await started;
  if (!image || pending) return;
  if (!selected) {
    reportError(noBackend());
    return;
  }
  clearPrediction();
  showEvidence(null);
  clearError();
  const controller = new AbortController();
  const { signal } = controller;
  const onService = selected === "service";
  pending = controller;
  showBusy(true);
  try {
    const classify = onService ? classifyWithService : classifyInBrowser;
    // What is sent before the notice could be read is not kept.
    const mayKeep = !$("keeps").hidden && !$("do-not-keep").checked;
    const prediction = await classify(backends[selected], image, signal, mayKeep);
    // A request can succeed although it was aborted meanwhile.
    signal.throwIfAborted();
    showModelInfo(); // A service that has just woken has told only now what it keeps.
    showStatus(`${prediction.label}.`);
    showPrediction(prediction, onService ? "on the service" : "in this browser");
    showEvidence(prediction.evidence);
    if (document.activeElement === $("cancel")) $("prediction").focus();
  } catch (error) {
    if (signal.aborted) return;
    const retry = !(error instanceof UserError) || error.retryable;
    reportError(error, { retry, useBrowser: onService && Boolean(backends.browser) });
  } finally {
    if (pending === controller) endPending();
  }
}

function endPending() {
  pending?.abort();
  pending = null;
  showBusy(false);
}

function cancel() {
  endPending();
  showStatus("Cancelled. The image is still here.");
}

function reportError(error, actions) {
  const expected = error instanceof UserError;
  if (error.needsKey) showKeyField();
  if (!expected) console.error(error);
  showError(expected ? error.message : `Something went wrong on this page: ${error.message}`, actions);
}

// ---- backends ----

/** Shows the choice between backends and selects the saved one, or else the first. */
function offerBackends() {
  const available = availableBackends();
  $("backends").hidden = available.length < 2;
  if (!available.length) {
    selected = null;
    $("model-info").textContent = "";
    throw noBackend();
  }
  const saved = savedBackend();
  selectBackend(available.includes(saved) ? saved : available[0]);
}

function availableBackends() {
  return ["service", "browser"].filter((name) => backends[name]);
}

function noBackend() {
  return new UserError("There is neither a service nor a model at the addresses in config.json.");
}

function selectBackend(name) {
  if (pending) cancel();
  selected = name;
  $(`backend-${name}`).checked = true;
  if (name === "service") wakeService();
  else preloadModel();
}

function switchBackend(name) {
  saveBackend(name);
  clearError();
  selectBackend(name);
}

/** Loads the model's info ahead of the first prediction: a sleeping service takes a while to start. */
async function wakeService() {
  showModelInfo("Waiting for the service ...");
  try {
    await backends.service.loadInfo(new AbortController().signal);
    if (selected === "service") showModelInfo();
  } catch (error) {
    if (error.notFound) removeService();
    else if (error.needsKey) askForKey(error);
    else if (selected === "service") showModelInfo("The service does not respond yet; Submit tries again.");
  }
}

function askForKey(error) {
  showKeyField();
  if (selected === "service") showModelInfo(error.message);
}

function showKeyField() {
  $("key-field").hidden = false;
}

/** Loads what a service without its key has refused. */
async function useKey() {
  saveKey($("api-key").value.trim());
  clearError();
  backends.browser ??= await findModel();
  $("backends").hidden = availableBackends().length < 2;
  // Not by selecting it again: the click that left the field may have been on Submit.
  if (selected === "service") wakeService();
}

/** With the default config.json a page on a plain host finds out here that it has no service. */
function removeService() {
  if (!backends.service) return;
  backends.service = null;
  $("backends").hidden = true;
  if (selected === "browser") return;
  try {
    offerBackends();
    showStatus("There is no service here: the model runs in this browser.");
  } catch (error) {
    reportError(error);
  }
}

/** Loads the model before the first prediction, which reports the error if this fails. */
async function preloadModel() {
  showModelInfo();
  await backends.browser.load((bytes) => {
    if (selected === "browser") $("model-info").textContent = `Loading the model: ${formatBytes(bytes)} ...`;
  }).catch(() => {});
  if (selected === "browser") showModelInfo();
}

function showModelInfo(placeholder = "") {
  const { info, ready } = backends[selected];
  // The model in this browser keeps nothing.
  showKeeps(selected === "service" && info ? keepsText(info) : "");
  if (!info) {
    $("model-info").textContent = placeholder;
    return;
  }
  const { max_bytes: maxBytes, max_pixels: maxPixels } = limitsOf(info);
  const state = selected === "browser" && !ready ? " (not loaded)" : "";
  $("model-info").textContent = `Model ${modelName(info)}${state}: ${classesText(info)}. ` +
    `Images up to ${formatBytes(maxBytes)} and ${maxPixels / 1e6} million pixels.`;
}

async function findModel() {
  if (!modelFolder) return null;
  const model = new LocalModel(modelFolder);
  try {
    await model.loadInfo();
    return model;
  } catch (error) {
    if (error.needsKey) showKeyField();
    return null; // A page without a model of its own uses the service.
  }
}

// ---- camera ----

async function openCamera() {
  $("camera").hidden = false;
  $("open-camera").disabled = true;
  showStatus("Waiting for the browser's permission to use the camera ...");
  clearError();
  try {
    if (!(await camera.open())) return;
    showStatus("The camera is on. Press Capture to take the image.");
    $("capture").focus();
  } catch (error) {
    closeCamera();
    reportError(error);
  }
}

function closeCamera() {
  const focused = $("camera").contains(document.activeElement);
  camera.close();
  $("camera").hidden = true;
  $("open-camera").disabled = false;
  if (focused) $("open-camera").focus();
}

async function capture() {
  try {
    await useFile(await camera.capture(), "camera.png");
  } catch (error) {
    reportError(error);
  }
}

// ---- start ----

function onClick(id, handler) {
  $(id).addEventListener("click", handler);
}

function submitAgain() {
  $("submit").focus();
  submit();
}

function wireFileInput(buttonId, inputId) {
  const input = $(inputId);
  onClick(buttonId, () => input.click());
  input.addEventListener("change", () => {
    const [file] = input.files;
    // Without this, picking the same file again would fire no event.
    input.value = "";
    if (file) useFile(file, file.name);
  });
}

function wireCamera() {
  $("open-camera").hidden = !Camera.available;
  onClick("open-camera", openCamera);
  onClick("capture", capture);
  onClick("close-camera", () => {
    closeCamera();
    showStatus("");
  });
  $("camera").addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeCamera();
  });
}

function wire() {
  wireFileInput("choose-file", "file");
  wireFileInput("phone-camera", "phone-photo");
  wireCamera();
  listenForFiles($("drop-zone"), useFile, showStatus);
  onClick("remove", removeImage);
  onClick("submit", submit);
  onClick("cancel", cancel);
  onClick("retry", submitAgain);
  onClick("use-browser", () => {
    switchBackend("browser");
    submitAgain();
  });
  $("api-key").addEventListener("change", useKey);
  $("show-evidence").addEventListener("change", switchEvidence);
  $("find-class").addEventListener("input", () => findClass($("find-class").value));
  $("do-not-keep").checked = savedDoNotKeep();
  $("do-not-keep").addEventListener("change", () => saveDoNotKeep($("do-not-keep").checked));
  for (const name of ["service", "browser"]) {
    $(`backend-${name}`).addEventListener("change", () => switchBackend(name));
  }
}

async function start() {
  wire();
  try {
    const config = await readConfig();
    modelFolder = config.modelFolder;
    $("api-key").value = savedKey();
    $("key-field").hidden = !savedKey();
    if (config.apiUrl) backends.service = new Api(config.apiUrl, config.retrySettings);
    backends.browser = await findModel();
    offerBackends();
  } catch (error) {
    reportError(error);
  }
}

const started = start();
