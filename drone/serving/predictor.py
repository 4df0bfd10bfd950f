"""The model's answer to a picture, wherever it is asked: evaluation, HTTP, Lambda, MLflow."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from drone.errors import RunError
from drone.labels import BIRD
from drone.serving.preprocess import Preprocessing, to_pixels


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
        self._session: onnxruntime.InferenceSession | None = None
        self._metadata: dict[str, str] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their indices."""
        return tuple(json.loads(self.metadata["classes"]))

    @property
    def preprocessing(self) -> Preprocessing:
        """How bytes become the pixels that this model was trained on."""
        return Preprocessing.from_json(self.metadata["preprocessing"])

    @property
    def metadata(self) -> dict[str, str]:
        """What the export wrote into the file."""
        self._ready()
        return self._metadata

    def predict(self, data: bytes) -> Prediction:
        """The answer to one picture.

        Raises:
            ImageError: the bytes give no picture; it says why.
        """
        pixels = to_pixels(data, self.preprocessing)
        return self.describe(self.predict_pixels(pixels[None])[0])

    def predict_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, (N, K) float32, of pixels (N, side_px, side_px, 3) uint8."""
        outputs: Sequence[Any] = self._ready().run(None, {"pixels": pixels_NHWC})
        probs_NK: NDArray[np.float32] = outputs[0]
        return probs_NK

    def describe(self, probs_K: NDArray[np.float32]) -> Prediction:
        """Probabilities of one picture as an answer."""
        index = int(probs_K.argmax())
        named = {name: float(value) for name, value in zip(self.classes, probs_K, strict=True)}
        drone = 1 - named[BIRD] if BIRD in named else None
        return Prediction(index, self.classes[index], named, drone)

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
