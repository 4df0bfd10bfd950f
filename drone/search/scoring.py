"""Scores of trials, from the predictions of images that were held out, and paired comparisons.

A trial is trained once for each fold, on the images outside it, and predicts those in it. Its
predictions for all folds together, after temperature scaling, give its log-loss, accuracy and
macro F1 at each epoch. Two trials have predicted the same images, so they are compared image by
image: what makes an image hard is the same for both, and cancels out. Near duplicates are hard
alike, so errors come from resampling whole groups of them.

Axes: M held-out images that were predicted, G groups of near duplicates among them, K classes, R
resamples.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from drone.data.dataset import Dataset
from drone.evaluation.calibration import fit_temperature
from drone.labels import ClassSet
from drone.names import key
from drone.training.best_epoch import History
from drone.training.predictions import decode

Objective = Literal["log_loss", "macro_f1"]
"""What trials are compared by: the log-loss after temperature scaling, or the macro F1."""

METRICS = ("log_loss", "accuracy", "macro_f1")

_MAX_RESAMPLES, _MIN_RESAMPLES, _MAX_DRAWS = 1000, 200, 2 * 10**7
"""Resamples of the groups: fewer of many groups, so that they fit into memory."""

_MIN_FOLDS = 5
"""Each fold holds out a fifth of the images at most: with more, a trial is judged on too little
training."""

_WANTED_IMAGES = 1600
"""With as many held-out images an accuracy of 80 % has a standard error of 1 point."""


def default_num_folds(num_train: int, num_validation: int) -> int:
    """Returns as many folds as bring the standard error of an accuracy to about 1 point.

    Args:
        num_train: Number of training images.
        num_validation: Number of validation images; if they suffice, 1: the validation split.
    """
    if num_validation >= _WANTED_IMAGES:
        return 1
    fold_size = (num_train + num_validation) / _MIN_FOLDS
    return min(_MIN_FOLDS, max(2, int(np.ceil(_WANTED_IMAGES / fold_size))))


def num_partitions(num_folds: int) -> int:
    """Returns into how many folds the images are divided, of which `num_folds` are held out."""
    return max(num_folds, _MIN_FOLDS)


@dataclass(frozen=True)
class HeldOut:
    """The images that trials predict, fold by fold."""

    labels: tuple[NDArray[np.int64], ...]
    """Class indices of the images of each fold."""

    groups: tuple[NDArray[np.int64], ...]
    """Number of the group of near duplicates that each of these images belongs to."""

    classes: ClassSet

    @staticmethod
    def of(dataset: Dataset, num_folds: int) -> "HeldOut":
        """Returns the images that are held out in each fold; with one fold, the validation split.

        Raises:
            DataError: The data set has too few images for so many folds.
        """
        if num_folds == 1:
            labels_N = dataset.split("validation").labels_N
            groups_N, _ = pd.factorize(dataset.rows("validation")["group"])
            return HeldOut((labels_N,), (groups_N,), dataset.classes)
        numbers_N = dataset.fold_numbers(num_partitions(num_folds))
        labels_N, groups_N = dataset.development().labels_N, dataset.development_groups()
        folds = [numbers_N == number for number in range(num_folds)]
        return HeldOut(
            tuple(labels_N[fold_N] for fold_N in folds),
            tuple(groups_N[fold_N] for fold_N in folds),
            dataset.classes,
        )

    def labels_of(self, folds: range) -> NDArray[np.int64]:
        """Returns the class indices of the images of some folds, (M,)."""
        return np.concatenate([self.labels[fold] for fold in folds])

    def groups_of(self, folds: range) -> NDArray[np.int64]:
        """Returns the groups of the images of some folds, (M,), numbered from 0 to G - 1."""
        groups_M = np.concatenate([self.groups[fold] for fold in folds])
        return np.unique(groups_M, return_inverse=True)[1]


@dataclass(frozen=True)
class Score:
    """What the predictions of a trial at one epoch are worth."""

    epoch: int
    """Epoch whose predictions these are, from 1."""

    num_folds: int
    """Number of folds whose predictions these are."""

    temperature: float
    """Temperature of least log-loss, by which the logits are divided."""

    probs_MK: NDArray[np.float64]
    """Calibrated probabilities."""

    labels_M: NDArray[np.int64]
    groups_M: NDArray[np.int64]
    """Group of near duplicates of each image, from 0 to G - 1."""

    @cached_property
    def losses_M(self) -> NDArray[np.float64]:
        """Log-loss of each image."""
        right_M = self.probs_MK[np.arange(len(self.labels_M)), self.labels_M]
        losses_M: NDArray[np.float64] = -np.log(np.maximum(right_M, 1e-12))
        return losses_M

    def samples(self, metric: str) -> NDArray[np.float64]:
        """Returns the metric over resampled groups, (R,); alike for all trials, so paired."""
        return _metric(metric, _resamples(self._num_groups), self)

    def value(self, metric: str) -> float:
        """Returns the metric."""
        return float(_metric(metric, np.ones((1, self._num_groups), np.float32), self)[0])

    @property
    def _num_groups(self) -> int:
        return int(self.groups_M.max()) + 1

    def standard_error(self, metric: str) -> float:
        """Returns the standard error of the metric (bootstrap over groups: Efron 1979)."""
        return float(self.samples(metric).std())

    def metrics(self, classes: ClassSet) -> dict[str, float]:
        """Returns all metrics and their standard errors, of each class too, by name."""
        named: dict[str, float] = {}
        for metric in METRICS:
            named[metric] = self.value(metric)
            named[f"{metric}_se"] = self.standard_error(metric)
        right_M = self.probs_MK.argmax(axis=1) == self.labels_M
        for number, name in enumerate(classes.short_names):
            own_M = self.labels_M == number
            for metric, values_M in (("log_loss", self.losses_M), ("recall", right_M)):
                if own_M.any():
                    value, error = _mean_over_groups(values_M[own_M], self.groups_M[own_M])
                    named[f"{metric}_{key(name)}"] = value
                    named[f"{metric}_{key(name)}_se"] = error
        return named


@dataclass(frozen=True)
class Difference:
    """By how much one trial is better than another on the same images; below 0, worse."""

    gain: float
    low: float
    high: float
    """Bounds of the 95 % interval."""

    standard_error: float

    @property
    def chance(self) -> float:
        """Chance that it is the better one (normal approximation)."""
        # A standard error of 0: both predict the same.
        return float(stats.norm.cdf(self.gain / max(self.standard_error, 1e-12)))

    @property
    def is_tie(self) -> bool:
        """Whether the images do not tell which of the two is better."""
        return self.low <= 0 <= self.high


def complete_folds(history: History, epochs: int) -> int:
    """Returns in how many folds a trial has been trained to the last epoch."""
    return sum(entry["epoch"] == epochs for entry in history)


def score_at(history: History, held_out: HeldOut, epoch: int, folds: range) -> Score:
    """Returns the score of a trial at one epoch over some of its folds.

    Args:
        history: Entries of the trial, which reach this epoch in each of these folds.
        held_out: Images that were predicted.
        epoch: Epoch, from 1.
        folds: Numbers of the folds.
    """
    texts = {entry["fold"]: entry["predictions"] for entry in history if entry["epoch"] == epoch}
    logs_MK = np.concatenate([decode(texts[fold], len(held_out.classes)) for fold in folds])
    labels_M = held_out.labels_of(folds)
    temperature = fit_temperature(np.exp(logs_MK), labels_M)
    scaled_MK = logs_MK / temperature
    scaled_MK -= scaled_MK.max(axis=1, keepdims=True)
    probs_MK = np.exp(scaled_MK)
    probs_MK /= probs_MK.sum(axis=1, keepdims=True)
    groups_M = held_out.groups_of(folds)
    return Score(epoch, len(folds), temperature, probs_MK, labels_M, groups_M)


def best_score(
    history: History, held_out: HeldOut, objective: Objective, epochs: int
) -> Score | None:
    """Returns the score of a trial at its best epoch: the best of the mean curve over its folds.

    Folds count once they are complete; before the first is, the epochs of that one count.

    Args:
        history: Entries of the trial so far.
        held_out: Images that were predicted.
        objective: What decides which epoch is the best.
        epochs: Epochs of a complete fold.
    """
    num_folds = max(1, complete_folds(history, epochs))
    numbers = sorted({entry["epoch"] for entry in history if entry["fold"] == num_folds - 1})
    scores = [score_at(history, held_out, epoch, range(num_folds)) for epoch in numbers]
    if not scores:
        return None
    # Of equal epochs max() returns the first.
    return max(scores, key=lambda score: sign(objective) * score.value(objective))


def sign(metric: str) -> int:
    """Returns 1 for a metric of which more is better, else -1."""
    return -1 if metric == "log_loss" else 1


def in_words(objective: Objective) -> str:
    """Returns the name of an objective as text has it."""
    return {"log_loss": "log-loss", "macro_f1": "macro F1"}[objective]


def difference(score: Score, other: Score, metric: str, num_compared: int = 1) -> Difference:
    """Compares two trials that have predicted the same images (paired bootstrap over groups).

    Args:
        score: Score of a trial.
        other: Score of the trial that it is compared with.
        metric: What is compared.
        num_compared: Number of trials of which the first is the best on these images. The best of
            many had luck, so its interval is that much wider (Bonferroni).

    Returns:
        By how much the first is better than the other, in units of the metric.
    """
    assert len(score.labels_M) == len(other.labels_M)
    gains_R = sign(metric) * (score.samples(metric) - other.samples(metric))
    gain, error = sign(metric) * (score.value(metric) - other.value(metric)), float(gains_R.std())
    if num_compared == 1:
        low, high = np.quantile(gains_R, [0.025, 0.975])
        return Difference(gain, float(low), float(high), error)
    # Resamples are too few for quantiles so far out.
    half_width = float(stats.norm.ppf(1 - 0.025 / num_compared)) * error
    return Difference(gain, gain - half_width, gain + half_width, error)


def _mean_over_groups(values_M: NDArray[Any], groups_M: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the mean of some images' values, and its standard error over their groups."""
    mean = float(values_M.mean())
    sums_G = np.bincount(groups_M, weights=values_M - mean)
    return mean, float(np.sqrt((sums_G**2).sum()) / len(values_M))


@lru_cache(maxsize=4)
def _resamples(num_groups: int) -> NDArray[np.float32]:
    """Returns how often each group is drawn in each resample, (R, G); always the same."""
    generator = np.random.default_rng(num_groups)
    count = int(np.clip(_MAX_DRAWS // num_groups, _MIN_RESAMPLES, _MAX_RESAMPLES))
    return np.stack(
        [
            np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
            for _ in range(count)
        ]
    ).astype(np.float32)


def _metric(metric: str, weights_RG: NDArray[np.float32], score: Score) -> NDArray[np.float64]:
    """Returns the metric of weighted groups, (R,)."""
    predicted_M = score.probs_MK.argmax(axis=1)
    if metric == "macro_f1":
        return _macro_f1(weights_RG, predicted_M, score)
    values_M = score.losses_M if metric == "log_loss" else predicted_M == score.labels_M
    sums_G = np.bincount(score.groups_M, weights=values_M)
    means_R: NDArray[np.float64] = weights_RG @ sums_G / (weights_RG @ np.bincount(score.groups_M))
    return means_R


def _macro_f1(
    weights_RG: NDArray[np.float32], predicted_M: NDArray[np.int64], score: Score
) -> NDArray[np.float64]:
    numbers = np.arange(score.probs_MK.shape[1])
    true_MK = score.labels_M[:, None] == numbers
    predicted_MK = predicted_M[:, None] == numbers
    hits_GK, totals_GK = (
        np.stack([np.bincount(score.groups_M, weights=column) for column in values_MK.T], axis=1)
        for values_MK in (true_MK & predicted_MK, true_MK.astype(np.float64) + predicted_MK)
    )
    hits_RK, totals_RK = weights_RG @ hits_GK, weights_RG @ totals_GK
    # Over the classes that were drawn or predicted: one that is absent has no F1.
    f1_sums_R = (2 * hits_RK / np.maximum(totals_RK, 1)).sum(axis=1)
    f1_R: NDArray[np.float64] = f1_sums_R / (totals_RK > 0).sum(axis=1)
    return f1_R
