"""Predictions of an exported model: the same for evaluation, HTTP, Lambda and MLflow."""

import contextlib
import functools
import hashlib
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from drone.errors import ConfigError, RunError
from drone.labels import NONE, ROLES, ClassSet, Role
from drone.serving.drift import Reference
from drone.serving.evidence import Evidence, normalised
from drone.serving.many import FileResult, predict_files
from drone.serving.preprocess import Preprocessing, decode_input, decode_opened, open_header, resize
from drone.serving.roles import decide, drone_probabilities, role_probabilities
from drone.serving.weighted_semaphore import WeightedSemaphore

_EXPORT = "Export the model again: python ray_jobs/export.py --run RUN --out FOLDER"

_OUTPUTS = ["probabilities", "known", "evidence"]

_MAX_DECODING_PIXELS = 50_000_000
"""Pixels that one predictor decodes at the same time. Each takes 4 to 10 bytes meanwhile in a JPEG,
and at most 21, in a rotated WebP with alpha."""

_MAX_TRIAL_S = 60.0
"""Seconds within which a model must give its first prediction."""


def apply_temperature(probs_NK: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Returns softmax(log(probabilities) / temperature) (Guo et al. 2017), (N, K) float32.

    The order of the classes is unchanged; a temperature above 1 lowers the confidence.
    """
    if temperature == 1:
        return probs_NK
    # The bound keeps an underflowed probability of 0 finite.
    logits_NK = np.log(np.maximum(probs_NK, 1e-12)) / temperature
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    scaled_NK: NDArray[np.float32] = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return scaled_NK


@dataclass(frozen=True)
class Prediction:
    """The classification of one image."""

    index: int
    """Index of the predicted class: the most probable one of the most probable role."""

    label: str
    """Name of the predicted class, or NONE ("none of these") for an image that is not like those
    that the model was trained on."""

    probabilities: dict[str, float]
    """Probability by class name, in the order of the class indices; they sum to 1."""

    drone: float | None
    """Probability that the image shows a drone of any kind; None if the classes do not tell drones
    from others."""

    kind: Role | None
    """The most probable of bird, drone and other, each with all of its classes; None for none of
    the classes, or if all of them have one role."""

    kind_probability: float | None
    """Probability of `kind`."""

    known: float
    """How much the image is like those that the model was trained on, 0 to 1."""

    unsure: bool = False
    """Whether the confidence is below the model's `unsure_below`."""

    evidence: Evidence | None = None
    """Evidence for the predicted class; None unless it was requested."""

    alarm: bool | None = None
    """Whether the image raises an alarm; None for a model without `alarm_above`."""

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return list(self.probabilities.values())[self.index]


@dataclass(frozen=True)
class Outputs:
    """What a model says of N images."""

    probs_NK: NDArray[np.float32]
    """Probabilities."""

    known_N: NDArray[np.float32]
    """Known scores, 0 to 1."""

    evidence_NKHW: NDArray[np.float32] | None = None
    """Evidence of each cell of a grid for each class: parts of its logit, of any sign. None unless
    it was requested."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What an exported model says about itself."""

    name: str
    """Name of the registered model; may be empty."""

    version: str
    """Version of the registered model; may be empty."""

    fingerprint: str
    """Fingerprint of the dataset that the model was trained on; may be empty."""

    classes: ClassSet
    """Classes in the order of their indices."""

    preprocessing: Preprocessing
    """How bytes become the pixels that the model was trained on."""

    sides_px: tuple[int, ...]
    """Input sides of a multi-resolution model, ascending; empty for a model of one size."""

    temperature: float
    """Divisor of the logits, fitted on validation images; see `apply_temperature`."""

    unsure_below: float
    """Threshold on the confidence, below which a prediction counts as unsure."""

    known_above: float
    """Threshold on the known score, below which an image is none of the classes."""

    alarm_above: float | None = None
    """Threshold on the probability of a drone of any kind, from which an image of one of the
    classes raises an alarm; None for no alarms."""

    reference: Reference | None = None
    """How its answers spread over images that it was not trained on; None if that is unknown."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes are {list(self.classes)}; each must differ")
        if not all(isinstance(side, int) and side > 0 for side in self.sides_px):
            raise ValueError(f"sides_px are {list(self.sides_px)}; they must be whole numbers")
        if list(self.sides_px) != sorted(self.sides_px):
            raise ValueError(f"sides_px are {list(self.sides_px)}; they must ascend")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        for name in ("unsure_below", "known_above"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to 1")
        if self.alarm_above is not None:
            if not 0 <= self.alarm_above <= 1:
                raise ValueError(f"alarm_above is {self.alarm_above}; it must be 0 to 1")
            if not self.classes.tells_drones:
                raise ValueError("alarm_above is set, but the classes do not tell drones")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ModelInfo":
        """Parses the metadata of an ONNX file.

        Raises:
            KeyError: The classes or the preprocessing are missing.
            TypeError: An entry is of another type.
            ValueError: An entry is not what `to_onnx` writes.
        """
        classes = _parse_classes(metadata)
        return cls(
            name=metadata.get("name", ""),
            version=metadata.get("version", ""),
            fingerprint=metadata.get("fingerprint", ""),
            classes=classes,
            preprocessing=Preprocessing.from_json(metadata["preprocessing"]),
            sides_px=tuple(json.loads(metadata.get("sides_px", "[]"))),
            temperature=float(metadata.get("temperature", 1.0)),
            unsure_below=float(metadata.get("unsure_below", 0.0)),
            known_above=float(metadata.get("known_above", 0.5)),
            alarm_above=float(metadata["alarm_above"]) if "alarm_above" in metadata else None,
            reference=Reference.from_metadata(metadata, len(classes)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, as GET /model and the page's model.json have them.

        They are all fields but the reference, which only a server needs.
        """
        left_out = ("classes", "reference")
        fields = {name: value for name, value in vars(self).items() if name not in left_out}
        classes = self.classes
        return {
            **fields,
            "preprocessing": asdict(self.preprocessing),
            "sides_px": list(self.sides_px),
            "classes": list(classes),
            "short_names": list(classes.short_names),
            "roles": list(classes.roles),
        }


def class_metadata(classes: ClassSet) -> dict[str, str]:
    """Returns the entries of an ONNX file's metadata that have its classes."""
    entries = {
        "classes": classes.names,
        "short_names": classes.short_names,
        "roles": classes.roles,
    }
    return {name: json.dumps(values, ensure_ascii=False) for name, values in entries.items()}


def _parse_classes(metadata: Mapping[str, str]) -> ClassSet:
    """Returns the classes of an ONNX file's metadata; raises as `ModelInfo.from_metadata` does."""
    names, short_names, roles = (
        json.loads(metadata[name]) for name in ("classes", "short_names", "roles")
    )
    if not names or not all(isinstance(name, str) for name in (*names, *short_names)):
        raise ValueError(f"classes are {names}, called {short_names}; they must be names")
    if len({len(names), len(short_names), len(roles)}) > 1 or not set(roles) <= set(ROLES):
        raise ValueError(f"roles are {roles} for the classes {names}")
    return ClassSet.of(names, short_names, roles)


def alarm_scores(outputs: Outputs, info: ModelInfo) -> NDArray[np.float64] | None:
    """Returns what decides on an alarm for each image, (N,): at least `alarm_above` raises one.

    It is the probability of a drone of any kind. An image that is none of the classes has NaN, and
    raises no alarm at any threshold. None if the classes do not tell drones.
    """
    drones_N = drone_probabilities(outputs.probs_NK, info.classes)
    if drones_N is None:
        return None
    return np.where(outputs.known_N.astype(np.float64) >= info.known_above, drones_N, np.nan)


class Predictor:
    """An exported model, ready to predict; threads may share it."""

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        max_concurrency: int | None = None,
        content: bytes | None = None,
    ) -> None:
        """The model is loaded at the first use, or by `start`.

        Args:
            model: ONNX file that `drone.model.export.to_onnx` wrote.
            threads: Threads of one inference call; None takes all cores. A server under load is
                fastest with 1.
            max_concurrency: Maximum number of inference calls at the same time; None for no limit.
            content: Content of the file, if it was read already.
        """
        self.model = model
        self._content = content
        self._threads = threads
        self._lock = threading.Lock()
        # By pixels, not by images: one large image takes the memory of hundreds of usual ones.
        self._decoding = WeightedSemaphore(_MAX_DECODING_PIXELS)
        self._inference = (
            threading.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
        )
        self._session: onnxruntime.InferenceSession | None = None
        self._is_warm = False
        self._loaded_at = 0.0
        self._metadata: dict[str, str] = {}
        self._info: ModelInfo | None = None

    def start(self) -> None:
        """Loads the model now, and checks that it gives a prediction.

        Raises:
            RunError: The file is not a model, was not written by our export, or its prediction
                for a black image fails, is not finite or takes longer than a minute.
        """
        session, info = self._loaded(), self.info
        side_px = info.sides_px[0] if info.sides_px else info.preprocessing.side_px
        options = onnxruntime.RunOptions()
        stop = threading.Timer(_MAX_TRIAL_S, setattr, [options, "terminate", True])
        stop.daemon = True
        stop.start()
        try:
            pixels_NHWC = np.zeros((1, side_px, side_px, 3), np.uint8)
            self._checked(*session.run(_OUTPUTS, {"pixels": pixels_NHWC}, options))
        except RunError:
            raise
        except Exception as error:  # onnxruntime's errors have no narrower common base.
            raise RunError(f"{self.model} gives no prediction: {error}. {_EXPORT}") from error
        finally:
            stop.cancel()
        self._is_warm = True

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and has given a prediction."""
        return self._is_warm

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        self._loaded()
        assert self._info is not None
        return self._info

    @property
    def content(self) -> bytes:
        """Content of the ONNX file as it was loaded, whatever has become of the file since."""
        self._loaded()
        assert self._content is not None
        return self._content

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of `content`, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def loaded_at(self) -> float:
        """When the file was loaded, in seconds since 1970."""
        self._loaded()
        return self._loaded_at

    @property
    def metadata(self) -> dict[str, str]:
        """All metadata of the ONNX file, as written."""
        self._loaded()
        return self._metadata

    def predict(
        self, data: bytes, max_pixels: int | None = None, *, evidence: bool = False
    ) -> Prediction:
        """Classifies one image.

        Args:
            data: Content of the image file.
            max_pixels: Maximum width times height; the model's own limit still applies.
            evidence: Whether to return the evidence too.

        Raises:
            ImageError: The bytes are not an image that the model accepts.
        """
        return self.predict_one(self.to_pixels(data, max_pixels), evidence=evidence)

    def predict_one(self, pixels_HWC: NDArray[np.uint8], *, evidence: bool = False) -> Prediction:
        """Classifies the output of `to_pixels` for one image; see `predict`."""
        return self.to_predictions(self.predict_outputs(pixels_HWC[None], evidence=evidence))[0]

    def predict_many(
        self, files: Iterable[str | Path], threads: int | None = None
    ) -> Iterator[FileResult]:
        """Classifies image files, in their order, and reads only a few of them ahead.

        Each thread decodes and predicts one image at a time, so a `Predictor` with `threads=1` is
        fastest. A file that cannot be read becomes a result with the reason.

        Args:
            files: Paths; may be endless.
            threads: Images in work at the same time; None takes one per core.
        """
        return predict_files(self, files, threads)

    def to_pixels(self, data: bytes, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """Decodes an image to the model's input, (side, side, 3) uint8 RGB; see `predict`."""
        with self.decoded(data, max_pixels) as image:
            return self.resize(image)

    @contextlib.contextmanager
    def decoded(
        self, data: bytes, max_pixels: int | None = None, *, whole: bool = False
    ) -> Iterator[Image.Image]:
        """Yields an image as decoded for `resize`; see `predict`.

        While the block runs, its pixels count towards those that may be decoded at the same time.

        Args:
            data: Content of the image file.
            max_pixels: Maximum width times height; the model's own limit still applies.
            whole: Decode at the full size, so that parts can be cut out.
        """
        settings, sides_px = self.info.preprocessing, self.info.sides_px
        if max_pixels is not None and max_pixels < settings.max_pixels:
            settings = replace(settings, max_pixels=max_pixels)
        image = open_header(data, settings)
        with self._decoding.acquire(image.width * image.height):
            yield decode_opened(image) if whole else decode_input(image, settings, sides_px)
            # Releases the decoded pixels before another thread may decode.
            image.close()

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Returns a decoded image as the model's input, (side, side, 3) uint8 RGB."""
        return resize(image, self.info.preprocessing, self.info.sides_px)

    def predict_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns calibrated probabilities, (N, K) float32; see `predict_outputs`."""
        return self.predict_outputs(pixels_NHWC).probs_NK

    def predict_outputs(self, pixels_NHWC: NDArray[np.uint8], *, evidence: bool = False) -> Outputs:
        """Returns calibrated probabilities and known scores.

        Args:
            pixels_NHWC: Output of `to_pixels`, (N, side, side, 3) uint8, all of one side.
            evidence: Whether to return the evidence too.

        Raises:
            ValueError: The side is none of a multi-resolution model's.
        """
        outputs = self._run(pixels_NHWC, _OUTPUTS if evidence else _OUTPUTS[:2])
        probs_NK = apply_temperature(outputs.probs_NK, self.info.temperature)
        return replace(outputs, probs_NK=probs_NK)

    def predict_uncalibrated(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Like `predict_pixels`, without the temperature: the network's own output."""
        return self._run(pixels_NHWC, _OUTPUTS[:2]).probs_NK

    def _run(self, pixels_NHWC: NDArray[np.uint8], names: Sequence[str]) -> Outputs:
        side_px, sides_px = pixels_NHWC.shape[1], self.info.sides_px
        if sides_px and side_px not in sides_px:
            raise ValueError(f"The model takes images of {sides_px} px, not {side_px}.")
        session = self._loaded()
        with self._inference:
            outputs = self._checked(*session.run(names, {"pixels": pixels_NHWC}))
        self._is_warm = True
        return outputs

    def _checked(
        self,
        probs_NK: NDArray[np.float32],
        known_N: NDArray[np.float32],
        evidence_NKHW: NDArray[np.float32] | None = None,
    ) -> Outputs:
        num_classes = len(self.info.classes)
        if probs_NK.ndim != 2 or probs_NK.shape[1] != num_classes:
            raise RunError(
                f"{self.model} has {num_classes} classes, but predicts values of the shape "
                f"{probs_NK.shape}. {_EXPORT}"
            )
        if not (np.isfinite(probs_NK).all() and np.isfinite(known_N).all()):
            raise RunError(
                f"{self.model} predicts values that are not finite. Train the model again, or "
                f"serve another one."
            )
        return Outputs(probs_NK, known_N, evidence_NKHW)

    def to_predictions(self, outputs: Outputs) -> list[Prediction]:
        """Returns the predictions that the outputs for some images make."""
        predictions = [
            self._to_prediction(probs_K, float(known))
            for probs_K, known in zip(outputs.probs_NK, outputs.known_N, strict=True)
        ]
        alarm_above, scores_N = self.info.alarm_above, alarm_scores(outputs, self.info)
        if alarm_above is not None and scores_N is not None:
            predictions = [
                replace(prediction, alarm=bool(score >= alarm_above))
                for prediction, score in zip(predictions, scores_N, strict=True)
            ]
        if outputs.evidence_NKHW is not None:
            predictions = [
                replace(prediction, evidence=self._evidence(maps_KHW, prediction.index))
                for prediction, maps_KHW in zip(predictions, outputs.evidence_NKHW, strict=True)
            ]
        return predictions

    def _evidence(self, maps_KHW: NDArray[np.float32], index: int) -> Evidence:
        rows = tuple(map(tuple, normalised(maps_KHW[index]).tolist()))
        return Evidence(self.info.classes[index], rows)

    def _to_prediction(self, probs_K: NDArray[np.float32], known: float) -> Prediction:
        info = self.info
        index = int(decide(probs_K[None], info.classes)[0])
        by_name = {name: float(value) for name, value in zip(info.classes, probs_K, strict=True)}
        label = info.classes[index] if known >= info.known_above else NONE
        [sums_R] = role_probabilities(probs_K[None], info.classes).tolist()
        by_role: dict[Role, float] = dict(zip(info.classes.present_roles, sums_R, strict=True))
        kind = info.classes.roles[index] if label != NONE and len(by_role) > 1 else None
        return Prediction(
            index=index,
            label=label,
            probabilities=by_name,
            drone=by_role["drone"] if info.classes.tells_drones else None,
            kind=kind,
            kind_probability=by_role[kind] if kind else None,
            known=known,
            unsure=float(probs_K[index]) < info.unsure_below,
        )

    def _loaded(self) -> onnxruntime.InferenceSession:
        with self._lock:
            # Under the lock: requests that arrive together at the start must not each load the
            # model.
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Errors only; its warnings concern graph optimisation.
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            # From bytes: what was loaded stays known, also if the file is replaced.
            if self._content is None:
                self._content = self.model.read_bytes()
            session = onnxruntime.InferenceSession(self._content, options, providers=_providers())
        except Exception as error:  # onnxruntime's errors have no narrower common base.
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise RunError(
                f"{self.model} is not a model that can be loaded: {reason}. {_EXPORT}"
            ) from error
        self._metadata = dict(session.get_modelmeta().custom_metadata_map)
        try:
            info = ModelInfo.from_metadata(self._metadata)
        except KeyError as error:
            raise RunError(f"{self.model} has no {error} in its metadata. {_EXPORT}") from error
        except (AttributeError, TypeError, ValueError, RecursionError, ConfigError) as error:
            raise RunError(
                f"The metadata of {self.model} is damaged: {error}. {_EXPORT}"
            ) from error
        problem = _interface_problem(session, len(info.classes))
        if problem:
            raise RunError(f"{self.model} {problem}. {_EXPORT}")
        self._info = info
        self._loaded_at = time.time()
        return session


def _providers() -> list[str]:
    """Returns what computes: a GPU, if onnxruntime-gpu takes the place of onnxruntime, first."""
    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


def _interface_problem(session: onnxruntime.InferenceSession, num_classes: int) -> str | None:
    """Returns how a model's inputs and outputs differ from those that our export writes."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [item.name for item in inputs] != ["pixels"] or inputs[0].type != "tensor(uint8)":
        return "does not take pixels as our models do"
    if [item.name for item in outputs] != _OUTPUTS or len(outputs[0].shape) != 2:
        return "does not return probabilities, known scores and evidence as our models do"
    num_outputs = outputs[0].shape[1]
    # A name, or nothing, where the graph leaves the number open.
    if isinstance(num_outputs, int) and num_outputs != num_classes:
        return f"returns {num_outputs} probabilities, but its metadata names {num_classes} classes"
    return None
