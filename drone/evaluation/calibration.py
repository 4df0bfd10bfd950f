"""How sure a model may be: its temperature, and the probability below which it is unsure."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_RANGE = (0.25, 4.0)
_WANTED = 0.95
_MOST_UNSURE = 0.25


def fit_temperature(probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """The temperature with the least negative log likelihood (Guo et al. 2017), 0.25 to 4.

    Args:
        probs_NK: of pictures that the model did not learn from.
        labels_N: class indices.
    """
    logits_NK = np.log(np.maximum(probs_NK.astype(np.float64), 1e-12))
    rows = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        scaled_NK = logits_NK / np.exp(log_temperature)
        scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
        totals_N = np.log(np.exp(scaled_NK).sum(axis=1))
        return float((totals_N - scaled_NK[rows, labels_N]).mean())

    found = minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded")
    return round(float(np.exp(found.x)), 4)


def choose_threshold(probs_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """The lowest probability of the best class above which 95 % of answers are right.

    At most a quarter of the pictures is left unsure for it; a model that cannot reach 95 % that
    way is unsure about that quarter.
    """
    confidence_N = probs_NK.max(axis=1)
    right_N = probs_NK.argmax(axis=1) == labels_N
    most = float(np.quantile(confidence_N, _MOST_UNSURE))
    for threshold in np.arange(0.0, 1.0, 0.01):
        if threshold >= most:
            break
        sure_N = confidence_N >= threshold
        if right_N[sure_N].mean() >= _WANTED:
            return round(float(threshold), 2)
    return round(most, 2)
