"""Predictions of held-out images, as text that an epoch's entry in the history can hold."""

import base64

import numpy as np
from numpy.typing import NDArray

_MIN_LOG_PROBABILITY = -30.0


def encode(probs_NK: NDArray[np.float32]) -> str:
    """Returns probabilities as text: their logarithms in float16, in base 64."""
    with np.errstate(divide="ignore"):
        logs_NK = np.log(probs_NK.astype(np.float64))
    content = np.maximum(logs_NK, _MIN_LOG_PROBABILITY).astype("<f2").tobytes()
    return base64.b64encode(content).decode()


def decode(text: str, num_classes: int) -> NDArray[np.float64]:
    """Returns the logarithms of the probabilities that `encode` wrote, (N, K).

    They are good to three digits, so the probabilities of an image add up to about 1.

    Raises:
        ValueError: The text is something else.
    """
    content = np.frombuffer(base64.b64decode(text, validate=True), "<f2")
    return content.reshape(-1, num_classes).astype(np.float64)
