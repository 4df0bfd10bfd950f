"""Weights of the classes in the training loss, so that unequal classes count equally."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drone.training.config import ClassWeights

_UNEQUAL = 2.0
"""Ratio of the largest class to the smallest at which the user is told of class weights."""


def class_weights(kind: ClassWeights, counts_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the weight of an image's loss by its class, (K,); over the images the mean is 1.

    Args:
        kind: "none" weighs all images equally; "balanced" weighs those of a class with n of N
            images N / (K n), as in scikit-learn.
        counts_K: Training images of each class.
    """
    if kind == "none":
        return np.ones(len(counts_K))
    weights_K: NDArray[np.float64] = counts_K.sum() / (len(counts_K) * np.maximum(counts_K, 1))
    return weights_K


def describe(kind: ClassWeights, counts_K: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Returns the kind, and the weights by class where they differ: "balanced: bird 0.5, ..."."""
    if kind == "none":
        return kind
    weights_K = class_weights(kind, counts_K)
    values = (f"{name} {weight:.3g}" for name, weight in zip(classes, weights_K, strict=True))
    return f"{kind}: {', '.join(values)}"


def advice(kind: ClassWeights, counts_K: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Returns a hint if the classes are of unequal sizes and are not weighted, else None."""
    if kind != "none" or counts_K.max() < _UNEQUAL * max(counts_K.min(), 1):
        return None
    largest, smallest = int(counts_K.argmax()), int(counts_K.argmin())
    return (
        f"{classes[largest]} has {counts_K[largest]} training images and {classes[smallest]} "
        f"{counts_K[smallest]}, so training favours the former. --optim.class-weights balanced "
        f"weighs the classes equally."
    )
