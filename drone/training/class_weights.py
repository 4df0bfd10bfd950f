"""Weights of the classes in the training loss, so that unequal classes count equally."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drone.errors import ConfigError
from drone.labels import nearest
from drone.names import listed
from drone.training.config import OptimConfig

_UNEQUAL = 2.0
"""Ratio of the largest class to the smallest at which the user is told of class weights."""


def class_weights(optim: OptimConfig, counts_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the weight of an image's loss by its class, (K,); over the images the mean is 1.

    "none" weighs all images equally; "balanced" weighs those of a class with n of N images
    N / (K n), as in scikit-learn.

    Args:
        optim: The kind of weights, or their values.
        counts_K: Training images of each class.

    Raises:
        ConfigError: There are not as many values as classes.
    """
    values = optim.class_weight_values
    if values:
        if len(values) != len(counts_K):
            raise ConfigError(
                f"optim.class_weight_values has {len(values)} weights for {len(counts_K)} classes."
            )
        given_K = np.array(values)
        scaled_K: NDArray[np.float64] = given_K * counts_K.sum() / (given_K * counts_K).sum()
        return scaled_K
    if optim.class_weights == "none":
        return np.ones(len(counts_K))
    weights_K: NDArray[np.float64] = counts_K.sum() / (len(counts_K) * np.maximum(counts_K, 1))
    return weights_K


def with_values(
    optim: OptimConfig, weights: Mapping[str, Any], classes: Sequence[str], source: str
) -> OptimConfig:
    """Returns settings with the weights of a file.

    Args:
        optim: The settings.
        weights: Weights by class name; classes that it does not name have the weight 1.
        classes: Class names in the order of their indices.
        source: Name of the file, for error messages.

    Raises:
        ConfigError: A name is no class, or a weight is no number above 0.
    """
    for name, weight in weights.items():
        if name not in classes:
            like = nearest(str(name), classes)
            hint = f"did you mean {like!r}?" if like else f"the classes are {listed(classes)}."
            raise ConfigError(f"{source}: {name!r} is no class of the data set; {hint}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise ConfigError(f"{source}: {name} is {weight!r}; it must be a number above 0.")
    values = tuple(float(weights.get(name, 1.0)) for name in classes)
    return replace(optim, class_weights="none", class_weight_values=values)


def describe(optim: OptimConfig, counts_K: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Returns the kind, and the weights by class where they differ: "balanced: bird 0.5, ..."."""
    kind = "given" if optim.class_weight_values else optim.class_weights
    if kind == "none":
        return kind
    weights_K = class_weights(optim, counts_K)
    values = (f"{name} {weight:.3g}" for name, weight in zip(classes, weights_K, strict=True))
    return f"{kind}: {', '.join(values)}"


def advice(optim: OptimConfig, counts_K: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Returns a hint if the classes are of unequal sizes and are not weighted, else None."""
    is_weighted = optim.class_weights != "none" or optim.class_weight_values
    if is_weighted or counts_K.max() < _UNEQUAL * max(counts_K.min(), 1):
        return None
    largest, smallest = int(counts_K.argmax()), int(counts_K.argmin())
    return (
        f"{classes[largest]} has {counts_K[largest]} training images and {classes[smallest]} "
        f"{counts_K[smallest]}, so training favours the former. --class-weights balanced weighs "
        f"the classes equally."
    )
