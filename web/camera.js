import { Problem } from "./problems.js";

/** The camera, shown in a video element. */
export class Camera {
  constructor(video) {
    this.video = video;
    this.stream = null;
    this.opening = 0;
  }

  /** Browsers lend a camera to HTTPS and localhost only. */
  static get available() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  /** Whether it is open now; false where it was closed while a person was still asked for leave. */
  async open() {
    const turn = ++this.opening;
    const wanted = { video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
      throw new Problem(error.name === "NotAllowedError"
        ? "The browser may not use the camera; allow it in the settings of this page."
        : "No camera can be used.");
    });
    if (turn !== this.opening) {
      stop(stream);
      return false;
    }
    this.stream = stream;
    this.video.srcObject = stream;
    await this.video.play().catch(() => {}); // Refused where it plays by itself.
    return true;
  }

  /** What it sees now, as a PNG file: nothing is lost before the model's own resize. */
  take() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) throw new Problem("The camera shows nothing yet.");
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Also switches its light off. */
  close() {
    this.opening++;
    if (this.stream) stop(this.stream);
    this.stream = null;
    this.video.srcObject = null;
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
