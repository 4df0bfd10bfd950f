"""Learning curves: what more images of each class, or cleaner labels, would add to the accuracy.

Probes are trained on random parts of the images and score the same held-out images. Accuracy is
that of a linear probe on frozen features, in place of trained networks, which would take hours:
neither the level nor the gains are those of a trained network. Axes: N images, S sizes, R random
draws, B resamples, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray

from drone.curation import label_issues, power_law, probe
from drone.curation.frozen_features import FrozenFeatures
from drone.curation.probe import Fold, OutOfFold

_SHARES = (0.125, 0.25, 0.5, 0.75)
"""Parts of the training images that are drawn, beside all of them."""

_GROWTHS = (1.25, 1.5, 2.0)
"""Multiples of the images to which the curve is extrapolated."""

_NUM_DRAWS = 4
_NUM_RESAMPLES = 400

_MIN_VISIBLE = 0.25
"""At more wrong labels than leave this share, gains are not corrected further."""

_MIN_GROUPS = 8
"""Groups of a class in the smallest part: a probe trained on fewer follows no power law yet."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """Accuracy at a number of images."""

    images_per_class: float
    """Mean over the classes, of all images; four fifths of them train."""

    accuracy: Estimate
    measured: bool
    """False if extrapolated."""


@dataclass(frozen=True)
class ClassGain:
    """What more images of one class would add to the accuracy over all classes."""

    class_name: str
    num_images: int
    num_groups: int
    num_extra: int
    """Additional images."""

    gain: Estimate | None
    """Change of accuracy; None if the class has too few groups."""


@dataclass(frozen=True)
class CleaningGain:
    """What training without the suspect labels would add to the accuracy."""

    num_suspects: int
    dropped: Estimate
    """Change of accuracy if the suspects are dropped, on true labels."""

    relabelled: Estimate
    """Change of accuracy if they get the class that the probe suggests, on true labels."""

    undisputed: Estimate
    """Change if they are dropped, on the held-out images that are no suspects themselves."""


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by number of images, and what would add to it."""

    points: Sequence[Point]
    fit: tuple[float, float, float]
    """a, b and c of error = a + b n^-c, with n in multiples of the present number of images."""

    by_class: Sequence[ClassGain]
    labels: CleaningGain


@dataclass(frozen=True)
class _Scoring:
    """What all curves of a data set share."""

    folds: Sequence[Fold]
    labels_N: NDArray[np.int64]
    group_numbers_N: NDArray[np.int64]
    inverse_regularisation: float
    weights_BN: NDArray[np.float64]
    """Weights of the scored images in each resample; a row sums to 1."""

    draw_SBR: NDArray[np.int64]
    """Which draws a resample consists of."""

    def wrong(
        self, fold: Fold, positions_T: NDArray[np.int64], labels_N: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Returns 1 for each held-out image that a probe trained on the positions gets wrong."""
        num_classes = int(self.labels_N.max()) + 1
        probs_HK = probe.held_out_probabilities(
            fold, positions_T, labels_N, self.inverse_regularisation, num_classes
        )
        wrong_H: NDArray[np.float64] = probs_HK.argmax(axis=1) != self.labels_N[fold.held_out_H]
        return wrong_H.astype(np.float64)


def measure(features: FrozenFeatures, predictions: OutOfFold, seed: int = 0) -> LearningCurve:
    """Measures the learning curves of a data set; 800 images take about 10 s on two cores.

    Args:
        features: The images, with their labels and groups.
        predictions: Result of `probe.out_of_fold` for them.
        seed: Seed of the draws and of the resampling.
    """
    with probe.one_thread():
        return _measure(features, predictions, seed)


def _measure(features: FrozenFeatures, predictions: OutOfFold, seed: int) -> LearningCurve:
    rng = np.random.default_rng(seed)
    scoring = _scoring(features, predictions, rng)
    every_class = range(len(features.classes))
    shares_S, errors_SRN = _errors_by_share(scoring, list(every_class), rng)
    resampled_SB = _resample(scoring, errors_SRN)
    laws = power_law.fit(shares_S, resampled_SB)
    mean_law = power_law.fit(shares_S, errors_SRN.mean(axis=(1, 2))[:, None])
    per_class = len(features.labels_N) / len(features.classes)
    measured = [
        Point(float(share) * per_class, _estimate(1 - errors_RN.mean(), 1 - resampled_B), True)
        for share, errors_RN, resampled_B in zip(shares_S, errors_SRN, resampled_SB, strict=True)
    ]
    extrapolated = [
        Point(
            growth * per_class,
            _estimate(1 - mean_law.errors(growth)[0], 1 - laws.errors(growth)),
            False,
        )
        for growth in _GROWTHS
    ]
    return LearningCurve(
        points=[*measured, *extrapolated],
        fit=(float(mean_law.a_B[0]), float(mean_law.b_B[0]), float(mean_law.c_B[0])),
        by_class=[_class_gain(scoring, features.classes, number, rng) for number in every_class],
        labels=_cleaning_gain(scoring, predictions, seed),
    )


def _scoring(
    features: FrozenFeatures, predictions: OutOfFold, rng: np.random.Generator
) -> _Scoring:
    group_numbers_N = pd.factorize(np.asarray(features.groups_N))[0]
    num_groups = int(group_numbers_N.max()) + 1
    # By group: near duplicates are not independent evidence.
    counts_BG = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), _NUM_RESAMPLES)
    weights_BN = counts_BG[:, group_numbers_N].astype(np.float64)
    weights_BN /= weights_BN.sum(axis=1, keepdims=True)
    shape = (len(_SHARES) + 1, _NUM_RESAMPLES, _NUM_DRAWS)
    return _Scoring(
        folds=predictions.folds,
        labels_N=features.labels_N,
        group_numbers_N=group_numbers_N,
        inverse_regularisation=predictions.inverse_regularisation,
        weights_BN=weights_BN,
        draw_SBR=rng.integers(_NUM_DRAWS, size=shape),
    )


def _errors_by_share(
    scoring: _Scoring, thinned: Sequence[int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores probes that are trained on parts of some classes and on all of the others.

    Returns:
        The shares of the images, (S,), and for each share, draw and image whether the probe was
        wrong, (S, R, N).
    """
    groups = min(
        len(np.unique(scoring.group_numbers_N[scoring.labels_N == number])) for number in thinned
    )
    shares = [share for share in _SHARES if share >= 0.5 or 0.8 * share * groups >= _MIN_GROUPS]
    errors_SRN = np.zeros((len(shares) + 1, _NUM_DRAWS, len(scoring.labels_N)))
    # One order for all folds and shares: so the parts are nested, and their scores paired.
    ranks_RN = np.stack(
        [
            rng.permutation(scoring.group_numbers_N.max() + 1)[scoring.group_numbers_N]
            for _ in range(_NUM_DRAWS)
        ]
    )
    for fold in scoring.folds:
        errors_SRN[-1][:, fold.held_out_H] = scoring.wrong(fold, fold.training_T, scoring.labels_N)
        for (size, share), draw in (
            (size, draw) for size in enumerate(shares) for draw in range(_NUM_DRAWS)
        ):
            part_T = _part(scoring, fold.training_T, thinned, share, ranks_RN[draw])
            errors_SRN[size, draw, fold.held_out_H] = scoring.wrong(fold, part_T, scoring.labels_N)
    return np.array([*shares, 1.0]), errors_SRN


def _part(
    scoring: _Scoring,
    training_T: NDArray[np.int64],
    thinned: Sequence[int],
    share: float,
    ranks_N: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Returns the training images without those of the last groups of the thinned classes."""
    chosen_T = np.ones(len(training_T), bool)
    for number in thinned:
        of_class_T = scoring.labels_N[training_T] == number
        ranks = ranks_N[training_T[of_class_T]]
        # The last group is taken whole, since near duplicates stay together.
        chosen_T[of_class_T] = ranks <= np.sort(ranks)[max(round(share * len(ranks)), 1) - 1]
    return training_T[chosen_T]


def _resample(scoring: _Scoring, errors_SRN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns mean errors, (S, B), over resampled images and draws."""
    errors_SRB = errors_SRN @ scoring.weights_BN.T
    num_sizes, _, num_resamples = errors_SRB.shape
    drawn_SBR = scoring.draw_SBR[:num_sizes]
    resampled_SB = np.stack(
        [
            errors_RB[drawn_BR, np.arange(num_resamples)[:, None]].mean(axis=1)
            for errors_RB, drawn_BR in zip(errors_SRB, drawn_SBR, strict=True)
        ]
    )
    if num_sizes > 1:
        # All images are one draw. Random halves scatter around the mean of the whole as other
        # images from the same source would (half-sample replication).
        halves_RB = errors_SRB[-3] if num_sizes > 2 else errors_SRB[-2]
        scatter_RB = halves_RB - halves_RB.mean(axis=0)
        resampled_SB[-1] += scatter_RB[drawn_SBR[-1][:, 0], np.arange(num_resamples)]
    return resampled_SB


def _class_gain(
    scoring: _Scoring, classes: Sequence[str], number: int, rng: np.random.Generator
) -> ClassGain:
    of_class_N = scoring.labels_N == number
    num_images = int(of_class_N.sum())
    num_groups = len(np.unique(scoring.group_numbers_N[of_class_N]))
    num_extra = round_third(num_images)
    gain = None
    if 0.8 * num_groups * _SHARES[1] >= _MIN_GROUPS:
        shares_S, errors_SRN = _errors_by_share(scoring, [number], rng)
        growth = 1 + num_extra / num_images
        mean_S1 = errors_SRN.mean(axis=(1, 2))[:, None]
        gains_B = _gains(shares_S, _resample(scoring, errors_SRN), growth)
        gains_B += _change_by_chance(scoring, errors_SRN[-3])
        gain = _estimate(_gains(shares_S, mean_S1, growth)[0], gains_B)
    return ClassGain(str(classes[number]), num_images, num_groups, num_extra, gain)


def _change_by_chance(scoring: _Scoring, halves_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far probes differ that were trained on different halves of the class, (B,).

    The images that a user adds are one draw, too: what they bring scatters about the mean gain.
    """
    halves_RB = halves_RN @ scoring.weights_BN.T
    first_B = scoring.draw_SBR[0, :, 0]
    second_B = (first_B + 1 + scoring.draw_SBR[1, :, 0] % (_NUM_DRAWS - 1)) % _NUM_DRAWS
    resamples = np.arange(len(first_B))
    changes_B: NDArray[np.float64] = halves_RB[first_B, resamples] - halves_RB[second_B, resamples]
    return changes_B


def _gains(
    shares_S: NDArray[np.float64], errors_SB: NDArray[np.float64], growth: float
) -> NDArray[np.float64]:
    laws = power_law.fit(shares_S, errors_SB)
    return laws.errors(1.0) - laws.errors(growth)


def round_third(num_images: int) -> int:
    """Returns a round number near a third of the images, at least 1."""
    third = num_images / 3
    step = 10.0 ** np.floor(np.log10(max(third, 1)))
    return max(int(round(third / step) * step), 1)


def _estimate(value: float, resampled_B: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled_B, [0.025, 0.975])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def _cleaning_gain(scoring: _Scoring, predictions: OutOfFold, seed: int) -> CleaningGain:
    labels_N = scoring.labels_N
    wrong_VN = np.zeros((3, len(labels_N)))
    for fold in scoring.folds:
        suspects, suggested_N = _suspects_within(scoring, fold, seed)
        cleaned_T = np.setdiff1d(fold.training_T, suspects)
        wrong_VN[0, fold.held_out_H] = scoring.wrong(fold, fold.training_T, labels_N)
        wrong_VN[1, fold.held_out_H] = scoring.wrong(fold, cleaned_T, labels_N)
        wrong_VN[2, fold.held_out_H] = scoring.wrong(fold, fold.training_T, suggested_N)
    suspect_N = find_label_issues(labels_N, predictions.probs_NK, n_jobs=1)
    # Scored against labels of which some are wrong, a gain looks smaller than it is.
    visible = _visible_share(labels_N, predictions.probs_NK)
    dropped_N, relabelled_N = wrong_VN[0] - wrong_VN[1], wrong_VN[0] - wrong_VN[2]
    undisputed_N = np.where(suspect_N, 0.0, 1.0)
    return CleaningGain(
        num_suspects=int(suspect_N.sum()),
        dropped=_mean_gain(scoring, dropped_N, np.ones_like(dropped_N), visible),
        relabelled=_mean_gain(scoring, relabelled_N, np.ones_like(dropped_N), visible),
        undisputed=_mean_gain(scoring, dropped_N, undisputed_N, 1.0),
    )


def _suspects_within(
    scoring: _Scoring, fold: Fold, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds suspects among a fold's training images without the labels of the held-out ones.

    Returns:
        Positions of the suspects, and the labels, (N,), with suggested classes in their place.
    """
    training_T = fold.training_T
    num_classes = int(scoring.labels_N.max()) + 1
    probs_TK = np.zeros((len(training_T), num_classes))
    groups_T = scoring.group_numbers_N[training_T]
    for inner_training, inner_held_out in probe.split(scoring.labels_N[training_T], groups_T, seed):
        inner = replace(fold, training_T=training_T, held_out_H=training_T[inner_held_out])
        probs_TK[inner_held_out] = probe.held_out_probabilities(
            inner,
            training_T[inner_training],
            scoring.labels_N,
            scoring.inverse_regularisation,
            num_classes,
        )
    suspect_T = find_label_issues(scoring.labels_N[training_T], probs_TK, n_jobs=1)
    suggested_N = scoring.labels_N.copy()
    suggested_N[training_T[suspect_T]] = probs_TK[suspect_T].argmax(axis=1)
    return training_T[suspect_T], suggested_N


def _visible_share(labels_N: NDArray[np.int64], probs_NK: NDArray[np.float64]) -> float:
    """Returns what is left of a gain when it is scored against labels of which some are wrong.

    With a share r of wrong labels, spread evenly over K classes, a correct prediction agrees with
    1 - r of the labels and a wrong one with r / (K - 1).
    """
    num_classes = int(probs_NK.shape[1])
    wrong_share = 1 - float(np.trace(label_issues.joint(labels_N, probs_NK)))
    return max(1 - wrong_share * num_classes / (num_classes - 1), _MIN_VISIBLE)


def _mean_gain(
    scoring: _Scoring,
    gain_N: NDArray[np.float64],
    scored_N: NDArray[np.float64],
    visible: float,
) -> Estimate:
    """Returns the mean gain on the scored images, divided by the visible share."""
    resampled_B = scoring.weights_BN @ (gain_N * scored_N) / (scoring.weights_BN @ scored_N)
    return _estimate(float(gain_N @ scored_N / scored_N.sum()) / visible, resampled_B / visible)
