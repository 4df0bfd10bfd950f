"""The model's answer to a picture, wherever it is asked: evaluation, HTTP, Lambda, MLflow."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from drone.errors import RunError
from drone.labels import BIRD
from drone.serving.budget import Budget
from drone.serving.preprocess import Preprocessing, open_header, to_square

PIXELS_AT_A_TIME = 100_000_000
"""Of pictures that one predictor decodes at the same time; each takes up to 25 bytes meanwhile."""


def calibrated(probs_NK: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities whose logits are divided by a temperature (Guo et al. 2017), (N, K) float32.

    The order of the classes stays what it is; above 1 the answers become less sure.
    """
    if temperature == 1:
        return probs_NK
    logits_NK = np.log(np.maximum(probs_NK, 1e-12)) / temperature
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    shares_NK: NDArray[np.float32] = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return shares_NK


@dataclass(frozen=True)
class Prediction:
    """An answer."""

    index: int
    """Of the most probable class."""

    label: str
    """Its name."""

    probabilities: dict[str, float]
    """By class name, in the order of the classes; sum to 1."""

    drone: float | None
    """Probability that it is any drone; None if the model knows no birds."""

    unsure: bool = False
    """Whether the highest probability is too low to be relied upon."""


class Predictor:
    """An exported model, ready to answer; may be shared by threads."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        """Names the model; the engine starts with the first question.

        Args:
            model: file that `drone.model.export.to_onnx` wrote.
            threads: for one answer; None takes all cores, a busy server does best with 1.
        """
        self.model = model
        self._threads = threads
        self._lock = threading.Lock()
        self._decoding = Budget(PIXELS_AT_A_TIME)
        self._session: onnxruntime.InferenceSession | None = None
        self._metadata: dict[str, str] = {}

    def start(self) -> None:
        """Starts the engine now.

        Raises:
            RunError: the file is no model, or not one that names its classes.
        """
        self._ready()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their indices."""
        return tuple(json.loads(self.metadata["classes"]))

    @property
    def preprocessing(self) -> Preprocessing:
        """How bytes become the pixels that this model was trained on."""
        return Preprocessing.from_json(self.metadata["preprocessing"])

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Sizes of pictures that a model of mixed resolutions takes; else empty."""
        return tuple(json.loads(self.metadata.get("sides_px", "[]")))

    @property
    def temperature(self) -> float:
        """What the logits are divided by, fitted on validation pictures; see `calibrated`."""
        return float(self.metadata.get("temperature", 1.0))

    @property
    def unsure_below(self) -> float:
        """Probability of the best class below which an answer counts as unsure."""
        return float(self.metadata.get("unsure_below", 0.0))

    @property
    def facts(self) -> dict[str, Any]:
        """What a page must know to use the model by itself, as plain values."""
        return {
            **{name: self.metadata.get(name, "") for name in ("name", "version", "fingerprint")},
            "classes": list(self.classes),
            "preprocessing": json.loads(self.preprocessing.to_json()),
            "sides_px": list(self.sides_px),
            "temperature": self.temperature,
            "unsure_below": self.unsure_below,
        }

    @property
    def metadata(self) -> dict[str, str]:
        """What the export wrote into the file."""
        self._ready()
        return self._metadata

    def predict(self, data: bytes, max_pixels: int | None = None) -> Prediction:
        """The answer to one picture.

        Args:
            data: the content of its file.
            max_pixels: a stricter limit than the model's own.

        Raises:
            ImageError: the bytes give no picture; it says why.
        """
        settings = self.preprocessing
        if max_pixels is not None and max_pixels < settings.max_pixels:
            settings = replace(settings, max_pixels=max_pixels)
        header = open_header(data, settings)
        with self._decoding.share(header.width * header.height):
            pixels = to_square(header, settings, self.sides_px)
            # What the picture itself still holds must not outlive its share.
            header.close()
        return self.describe(self.predict_pixels(pixels[None])[0])

    def predict_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, (N, K) float32, of pixels (N, side, side, 3) uint8 of one size."""
        return calibrated(self.uncalibrated(pixels_NHWC), self.temperature)

    def uncalibrated(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the exported network itself says, (N, K) float32.

        Raises:
            ValueError: the pictures are of a size that a model of mixed resolutions does not know.
        """
        side, sides_px = pixels_NHWC.shape[1], self.sides_px
        if sides_px and side not in sides_px:
            raise ValueError(f"The model takes pictures of {sides_px} px, not {side}.")
        outputs: Sequence[Any] = self._ready().run(None, {"pixels": pixels_NHWC})
        probs_NK: NDArray[np.float32] = outputs[0]
        return probs_NK

    def describe(self, probs_K: NDArray[np.float32]) -> Prediction:
        """Probabilities of one picture as an answer."""
        index = int(probs_K.argmax())
        named = {name: float(value) for name, value in zip(self.classes, probs_K, strict=True)}
        drone = 1 - named[BIRD] if BIRD in named else None
        unsure = float(probs_K.max()) < self.unsure_below
        return Prediction(index, self.classes[index], named, drone, unsure)

    def _ready(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._session is None:
                self._session = self._start()
            return self._session

    def _start(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = onnxruntime.InferenceSession(
                str(self.model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors share no base but this.
            raise RunError(f"{self.model} is not a model that can be loaded: {error}") from error
        self._metadata = dict(session.get_modelmeta().custom_metadata_map)
        if "classes" not in self._metadata or "preprocessing" not in self._metadata:
            raise RunError(
                f"{self.model} does not name its classes and preprocessing; export it with "
                f"ray_jobs/export.py."
            )
        return session
