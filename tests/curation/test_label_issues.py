"""Label issues, on labels of which it is known which are wrong."""

import numpy as np
import pandas as pd
import pytest

from drone.curation import label_issues, probe
from drone.errors import DataError
from drone.labels import CLASSES


def features(labels_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features of four classes that hardly overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 24)) * 2.2
    return (centres[labels_N] + rng.normal(size=(len(labels_N), 24))).astype(np.float32)


def test_wrong_labels_are_found_and_counted() -> None:
    rng = np.random.default_rng(1)
    true_N = rng.integers(0, 4, 1600)
    given_N = true_N.copy()
    # One in five large quadcopters is called small, and the other way round.
    flipped = np.flatnonzero(np.isin(true_N, (1, 2)) & (rng.random(1600) < 0.2))
    given_N[flipped] = 3 - true_N[flipped]
    groups = [str(number // 2) for number in range(1600)]
    probs_NK = probe.out_of_fold(features(true_N), given_N, groups).probs_NK
    np.testing.assert_allclose(probs_NK.sum(axis=1), 1)
    issues = label_issues.find(probs_NK, given_N, groups, CLASSES, 240)
    suspects = set(issues.suspects["position"])
    assert len(suspects & set(flipped)) >= 0.9 * len(flipped)
    assert len(suspects - set(flipped)) <= 0.1 * len(flipped)
    first = issues.suspects.head(50)
    assert first["position"].isin(flipped).mean() >= 0.95
    right = np.array(CLASSES)[true_N[first["position"]]]
    assert (first["suggested"].to_numpy() == right).mean() >= 0.95
    assert issues.joint_KK.sum() == pytest.approx(1)
    true_classes = label_issues.true_class_table(issues, CLASSES)
    for given, true in ((CLASSES[1], CLASSES[2]), (CLASSES[2], CLASSES[1])):
        assert true_classes.loc[given, true] == pytest.approx(0.2, abs=0.04)
    assert true_classes.loc[CLASSES[0], CLASSES[0]] > 0.97
    true_ceiling = 1 - len(flipped) / 1600
    assert issues.ceiling.accuracy == pytest.approx(true_ceiling, abs=0.02)
    assert issues.ceiling.low < true_ceiling < issues.ceiling.high
    assert issues.ceiling.high - issues.ceiling.low < 0.12


def test_clean_labels_have_few_suspects() -> None:
    labels_N = np.random.default_rng(2).integers(0, 4, 800)
    groups = [str(number) for number in range(800)]
    probs_NK = probe.out_of_fold(features(labels_N), labels_N, groups).probs_NK
    issues = label_issues.find(probs_NK, labels_N, groups, CLASSES, 120)
    assert len(issues.suspects) <= 8
    assert issues.ceiling.accuracy > 0.985


def test_near_duplicates_do_not_vouch_for_each_other() -> None:
    # Each image four times with a random label: only a model trained on a copy could predict it.
    rng = np.random.default_rng(3)
    labels_N = np.repeat(rng.integers(0, 4, 200), 4)
    features_ND = np.repeat(rng.normal(size=(200, 24)), 4, axis=0).astype(np.float32)
    groups = [str(number // 4) for number in range(800)]
    probs_NK = probe.out_of_fold(features_ND, labels_N, groups).probs_NK
    assert (probs_NK.argmax(axis=1) == labels_N).mean() < 0.4


def test_too_few_images() -> None:
    names = pd.Series(["A"] * 20 + ["B"] * 20 + ["C"] * 4 + ["D"] * 9)
    groups = pd.Series([f"{number}" for number in range(44)] + ["44", "45", "46"] * 3)
    message = "at least 5 different images of each class, and C has 4, D has 3"
    with pytest.raises(DataError, match=message):
        probe.check_groups(names, groups)
