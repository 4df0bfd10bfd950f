"""Calibration of a model: its temperature, and the threshold below which it is unsure."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from drone.data.dataset import Split
from drone.evaluation.batch_inference import predict_in_batches
from drone.labels import ClassSet
from drone.model.known_score import THRESHOLD
from drone.serving.predictor import Predictor, apply_temperature
from drone.serving.roles import confidences, decide

_TEMPERATURE_RANGE = (0.25, 4.0)

_TARGET_ACCURACY = 0.95
"""Accuracy wanted of predictions that are not unsure."""

_MAX_UNSURE = 0.25
"""Maximum share of images that may be unsure."""


@dataclass(frozen=True)
class Calibration:
    """How a model's output becomes a probability, and when a prediction counts as unsure."""

    temperature: float
    """Divisor of the logits."""

    unsure_below: float
    """Threshold on the confidence, below which a prediction counts as unsure."""

    known_above: float = THRESHOLD
    """Threshold on the known score, below which an image is none of the classes."""

    alarm_above: float | None = None
    """Threshold on the probability of a drone, from which an image raises an alarm; None for no
    alarms."""

    def as_metadata(self) -> dict[str, str]:
        """Returns the entries for the metadata of the model file; floats keep all digits."""
        values = asdict(self).items()
        return {name: repr(value) for name, value in values if value is not None}


def calibrate(
    predictor: Predictor, validation: Split, unsure_below: float | None = None
) -> Calibration:
    """Calibrates an exported model on validation images.

    Args:
        predictor: The exported model; a temperature that it already has is ignored.
        validation: Images that it was not trained on.
        unsure_below: Threshold to use; None chooses one on the same images.
    """
    probs_NK = predict_in_batches(
        predictor.predict_uncalibrated, validation.sides_N, validation.gather
    )
    temperature = fit_temperature(probs_NK, validation.labels_N)
    if unsure_below is None:
        calibrated_NK = apply_temperature(probs_NK, temperature)
        unsure_below = choose_unsure_threshold(
            calibrated_NK, validation.labels_N, predictor.info.classes
        )
    return Calibration(temperature, unsure_below)


def fit_temperature(probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Returns the temperature of least negative log likelihood (Guo et al. 2017), 0.25 to 4.

    Args:
        probs_NK: Uncalibrated probabilities of images that the model was not trained on.
        labels_N: Class indices.
    """
    # Log-probabilities serve as logits: both give the same softmax at any temperature.
    logits_NK = np.log(np.maximum(probs_NK.astype(np.float64), 1e-12))
    rows = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        scaled_NK = logits_NK / np.exp(log_temperature)
        scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
        log_sums_N = np.log(np.exp(scaled_NK).sum(axis=1))
        return float((log_sums_N - scaled_NK[rows, labels_N]).mean())

    # On a log scale, where halving and doubling the temperature are steps of one size.
    minimum = minimize_scalar(loss, bounds=np.log(_TEMPERATURE_RANGE), method="bounded")
    return round(float(np.exp(minimum.x)), 4)


def choose_unsure_threshold(
    probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64], classes: ClassSet
) -> float:
    """Returns the lowest threshold on the confidence at which 95 % of predictions are right.

    At most a quarter of the images may fall below it. A model that does not reach 95 % that way
    gets the threshold that makes this quarter unsure.

    Args:
        probs_NK: Calibrated probabilities.
        labels_N: Class indices.
        classes: Classes in the order of their indices.
    """
    predicted_N = decide(probs_NK, classes)
    confidence_N = confidences(probs_NK, predicted_N)
    right_N = predicted_N == labels_N
    max_threshold = float(np.quantile(confidence_N, _MAX_UNSURE))
    # Upwards and to the first hit: accuracy need not rise with the threshold.
    for threshold in np.arange(0.0, 1.0, 0.01):
        if threshold >= max_threshold:
            break
        sure_N = confidence_N >= threshold
        if right_N[sure_N].mean() >= _TARGET_ACCURACY:
            return round(float(threshold), 2)
    return round(max_threshold, 2)
