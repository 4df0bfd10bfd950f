"""Random predictions that are right more often than not."""

import numpy as np

from drone.evaluation.metrics import Predictions
from drone.evaluation.report import Images
from drone.labels import CLASSES


def random_predictions(count: int = 200, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    logits = rng.normal(size=(count, 4)) + 1.5 * np.eye(4)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    paths = tuple(f"{CLASSES[label]}/{number}.jpg" for number, label in enumerate(labels))
    known = rng.random(count).astype(np.float32)
    return Predictions(paths, labels, probs.astype(np.float32), CLASSES, known)


def images_of(pixels_NHWC: np.ndarray, num_classes: int = 4) -> Images:
    """Images whose evidence is random."""
    maps_NKHW = np.random.default_rng(0).normal(size=(len(pixels_NHWC), num_classes, 7, 7))
    return Images(lambda at: pixels_NHWC[at], lambda at: maps_NKHW[at])
