/** Puts the parts together: what a person does, and what follows from it. */
import { Api } from "./api.js";
import { Camera } from "./camera.js";
import { limitsOf, nameOf, sideFor } from "./facts.js";
import { watchGifts } from "./gifts.js";
import { LocalModel } from "./local.js";
import { check, openPicture, sizeText, toPixels, toPng } from "./picture.js";
import { Problem, unless } from "./problems.js";
import { readConfig, rememberWay, rememberedWay } from "./settings.js";
import {
  $, clearAnswer, clearTrouble, showAnswer, showBusy, showPicture, showStatus, showTrouble,
} from "./view.js";

/** A picture that the model takes larger is sent as it is. */
const MOST_PNG_PX = 448;

/** Both or one of them; null is a way that this page does not have. */
const ways = { api: null, browser: null };
let way = null;

let picture = null;

/** Aborted when another picture comes or this one goes: nothing of it may show after that. */
let life = new AbortController();

/** The open question, if any. */
let question = null;

const camera = new Camera($("video"));

// ---- the picture ----

function forget() {
  life.abort();
  life = new AbortController();
  endQuestion();
  if (picture) URL.revokeObjectURL(picture.url);
  picture = null;
  showPicture(null);
  clearAnswer();
  clearTrouble();
  showStatus("");
}

async function take(file, name, note = "") {
  closeCamera();
  forget();
  const { signal } = life;
  try {
    const opened = await openPicture(file, name, limits());
    if (signal.aborted) {
      URL.revokeObjectURL(opened.url);
      return;
    }
    picture = opened;
    showPicture(picture);
    showStatus(note || "The picture is ready. Submit asks what it shows.");
    $("submit").focus();
  } catch (error) {
    if (!signal.aborted) tell(error);
  }
}

function limits() {
  return limitsOf(ways[way]?.known);
}

// ---- the answer ----

async function submit() {
  await started;
  if (!picture || question) return;
  if (!way) {
    tell(nobody());
    return;
  }
  clearAnswer();
  clearTrouble();
  const mine = new AbortController();
  question = mine;
  showBusy(true);
  const asked = way;
  try {
    const answer = await (asked === "api" ? askService : askBrowser)(picture, mine.signal);
    mine.signal.throwIfAborted();
    showStatus(`${answer.label}.`);
    showAnswer(answer, asked === "api" ? "the service" : "this browser");
    if (document.activeElement === $("cancel")) $("answer").focus();
  } catch (error) {
    if (mine.signal.aborted) return;
    const instead = asked === "api" && Boolean(ways.browser);
    tell(error, { again: !(error instanceof Problem) || error.again, instead });
  } finally {
    if (question === mine) endQuestion();
  }
}

function askService(of, signal) {
  showStatus("The service is asked ...");
  check(of, limits());
  const prepare = async (facts) => {
    check(of, limitsOf(facts));
    // What only the service can decode, and what only it can resize, goes there as it is.
    if (!of.width || facts.preprocessing.resampling !== "bilinear") return of.file;
    const side = sideFor(facts, of);
    // The squashed picture of a large side is larger than its file.
    if (side > MOST_PNG_PX) return of.file;
    return toPng(await toPixels(of, side, signal), side);
  };
  return ways.api.predict(prepare, signal, {
    onAttempt: (number, tries) => {
      if (number > 1) showStatus(`Attempt ${number} of ${tries} ...`);
    },
    onWait: (number, tries, waitS) => {
      showStatus(`No answer yet. Attempt ${number} of ${tries} in ${Math.ceil(waitS)} s ...`);
    },
  });
}

async function askBrowser(of, signal) {
  const facts = ways.browser.known;
  check(of, limitsOf(facts));
  if (!of.width) throw new Problem(`This browser cannot read this ${of.kind} picture; save it as JPEG or PNG.`);
  if ((facts.preprocessing.resampling ?? "bilinear") !== "bilinear") {
    throw new Problem("This model wants its pictures resized in a way that this page does not know.");
  }
  if (!ways.browser.ready) showStatus("Loading the model ...");
  await unless(signal, ways.browser.load((bytes) => {
    if (!signal.aborted) showStatus(`Loading the model: ${sizeText(bytes)} ...`);
  }));
  showStatus("This browser looks at the picture ...");
  const pixels = await toPixels(of, sideFor(facts, of), signal);
  return unless(signal, ways.browser.predict(pixels));
}

function endQuestion() {
  question?.abort();
  question = null;
  showBusy(false);
}

function cancel() {
  endQuestion();
  showStatus("Cancelled. The picture is still here.");
}

function tell(error, offers) {
  if (!(error instanceof Problem)) console.error(error);
  const message = error instanceof Problem ? error.message : `Something went wrong on this page: ${error.message}`;
  showTrouble(message, offers);
}

// ---- who answers ----

/** Shows the ways that there are, and takes the one that a person chose last, or the first. */
function offer() {
  const there = ["api", "browser"].filter((name) => ways[name]);
  $("ways").hidden = there.length < 2;
  if (!there.length) {
    way = null;
    $("facts").textContent = "";
    throw nobody();
  }
  const remembered = rememberedWay();
  choose(there.includes(remembered) ? remembered : there[0]);
}

function nobody() {
  return new Problem("There is neither a service nor a model at the addresses in config.json.");
}

function choose(chosen) {
  if (question) cancel();
  way = chosen;
  $(`way-${chosen}`).checked = true;
  if (chosen === "api") wakeService();
  else loadModel();
}

function chooseByHand(chosen) {
  rememberWay(chosen);
  clearTrouble();
  choose(chosen);
}

/** Ahead of the first question: a service that sleeps takes a while to answer. */
async function wakeService() {
  showFacts("The service is asked which model it has ...");
  try {
    await ways.api.facts(new AbortController().signal);
    if (way === "api") showFacts();
  } catch (error) {
    if (error.absent) withoutService();
    else if (way === "api") showFacts("The service does not answer yet; your picture asks it again.");
  }
}

/** A page on a plain folder has no service, unless config.json names one. */
function withoutService() {
  if (!ways.api) return;
  ways.api = null;
  $("ways").hidden = true;
  if (way === "browser") return;
  try {
    offer();
    showStatus("There is no service here: this browser answers.");
  } catch (error) {
    tell(error);
  }
}

/** Ahead of the first question, too; what goes wrong is told when a question needs the model. */
async function loadModel() {
  showFacts();
  await ways.browser.load((bytes) => {
    if (way === "browser") $("facts").textContent = `Loading the model: ${sizeText(bytes)} ...`;
  }).catch(() => {});
  if (way === "browser") showFacts();
}

function showFacts(waiting = "") {
  const facts = ways[way].known;
  if (!facts) {
    $("facts").textContent = waiting;
    return;
  }
  const { max_bytes: bytes, max_pixels: pixels } = limitsOf(facts);
  const state = way === "browser" && !ways.browser.ready ? " (not loaded)" : "";
  $("facts").textContent = `Model ${nameOf(facts)}${state}: ${facts.classes.join(", ")}. ` +
    `Pictures up to ${sizeText(bytes)} and ${pixels / 1e6} million pixels.`;
}

async function findModel(folder) {
  const model = new LocalModel(folder);
  try {
    await model.facts();
    return model;
  } catch {
    return null; // No model beside the page: the service answers alone.
  }
}

// ---- the camera ----

async function openCamera() {
  $("camera").hidden = false;
  $("open-camera").disabled = true;
  showStatus("The browser asks for the camera ...");
  clearTrouble();
  try {
    if (!(await camera.open())) return;
    showStatus("The camera is on. Take makes the picture.");
    $("take").focus();
  } catch (error) {
    closeCamera();
    tell(error);
  }
}

function closeCamera() {
  const focused = $("camera").contains(document.activeElement);
  camera.close();
  $("camera").hidden = true;
  $("open-camera").disabled = false;
  if (focused) $("open-camera").focus();
}

async function takeFromCamera() {
  try {
    await take(await camera.take(), "camera.png");
  } catch (error) {
    tell(error);
  }
}

// ---- wiring ----

function wire() {
  for (const [button, input] of [["choose", "file"], ["phone-camera", "photo"]]) {
    $(button).addEventListener("click", () => $(input).click());
    $(input).addEventListener("change", () => {
      const [file] = $(input).files;
      // Else the same file, picked again, would be no change.
      $(input).value = "";
      if (file) take(file, file.name);
    });
  }
  $("remove").addEventListener("click", () => {
    forget();
    showStatus("The picture is removed.");
    $("choose").focus();
  });
  $("submit").addEventListener("click", submit);
  $("again").addEventListener("click", () => {
    $("submit").focus();
    submit();
  });
  $("instead").addEventListener("click", () => {
    chooseByHand("browser");
    $("submit").focus();
    submit();
  });
  $("cancel").addEventListener("click", cancel);
  for (const name of ["api", "browser"]) {
    $(`way-${name}`).addEventListener("change", () => chooseByHand(name));
  }
  $("open-camera").hidden = !Camera.available;
  $("open-camera").addEventListener("click", openCamera);
  $("close-camera").addEventListener("click", () => {
    closeCamera();
    showStatus("");
  });
  $("take").addEventListener("click", takeFromCamera);
  $("camera").addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeCamera();
  });
  watchGifts($("drop"), take, showStatus);
}

async function start() {
  wire();
  try {
    const config = await readConfig();
    if (config.api) ways.api = new Api(config.api, config.patience);
    if (config.model) ways.browser = await findModel(config.model);
    offer();
  } catch (error) {
    tell(error);
  }
}

const started = start();
