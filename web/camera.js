import { UserError } from "./errors.js";

/** The camera, shown in a video element. */
export class Camera {
  #opening = 0;

  constructor(video) {
    this.video = video;
    this.stream = null;
  }

  /** Browsers allow cameras on HTTPS and localhost only. */
  static get available() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  /** Returns whether the camera is on: false if it was closed while the permission prompt was open. */
  async open() {
    const opening = ++this.#opening;
    const constraints = { video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(constraints).catch((error) => {
      throw new UserError(error.name === "NotAllowedError"
        ? "This page may not use the camera. Allow it in the browser's settings for this site."
        : "No camera is available.");
    });
    if (opening !== this.#opening) {
      stopTracks(stream);
      return false;
    }
    this.stream = stream;
    this.video.srcObject = stream;
    await this.video.play().catch(() => {}); // Some browsers refuse this call where autoplay has begun.
    return true;
  }

  /** The current frame as PNG, which is lossless. */
  capture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) throw new UserError("The camera has no image yet.");
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Stops the stream, which also turns off the camera's light. */
  close() {
    this.#opening++;
    if (this.stream) stopTracks(this.stream);
    this.stream = null;
    this.video.srcObject = null;
  }
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}
