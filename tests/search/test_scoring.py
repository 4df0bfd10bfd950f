"""Scores from the predictions of held-out images, and paired comparisons."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from drone.data.dataset import Dataset
from drone.errors import DataError
from drone.labels import CLASSES, ClassSet
from drone.search import scoring
from drone.search.scoring import METRICS, HeldOut, Score
from drone.training.predictions import decode, encode
from tests.search.studies import EPOCHS, FOLD_SIZE, scorer, trial_record


def test_predictions_come_back_to_three_digits() -> None:
    probs_NK = np.random.default_rng(0).dirichlet(np.full(5, 0.2), 300).astype(np.float32)
    probs_NK[0] = (1, 0, 0, 0, 0)
    logs_NK = decode(encode(probs_NK), 5)
    assert logs_NK.shape == (300, 5)
    assert np.exp(logs_NK) == pytest.approx(probs_NK, rel=0.01, abs=1e-6)
    with pytest.raises(ValueError):
        decode("%", 5)


def test_a_score_is_that_of_all_folds_together_after_temperature() -> None:
    scores = scorer(num_folds=3)
    record = trial_record(0, [2.0] * 3 * EPOCHS, "finished", num_folds=3)
    score = scores.score(record)
    assert score is not None and len(score.labels_M) == 240 and score.num_folds == 3
    assert score.value("log_loss") == pytest.approx(log_loss(score.labels_M, score.probs_MK))
    predicted_M = score.probs_MK.argmax(axis=1)
    assert score.value("accuracy") == np.mean(predicted_M == score.labels_M)
    expected = f1_score(score.labels_M, predicted_M, average="macro")
    assert score.value("macro_f1") == pytest.approx(expected)
    # At another temperature the loss is higher.
    for factor in (0.8, 1.25):
        logs_MK = np.log(score.probs_MK) * factor
        probs_MK = np.exp(logs_MK) / np.exp(logs_MK).sum(axis=1, keepdims=True)
        assert log_loss(score.labels_M, probs_MK) > score.value("log_loss")


def test_standard_errors_are_those_of_the_textbook() -> None:
    score = scorer(num_folds=3).score(trial_record(0, [2.0] * 3 * EPOCHS, num_folds=3))
    assert score is not None
    accuracy, count = score.value("accuracy"), len(score.labels_M)
    binomial = np.sqrt(accuracy * (1 - accuracy) / count)
    assert score.standard_error("accuracy") == pytest.approx(binomial, rel=0.1)
    assert score.standard_error("log_loss") == pytest.approx(
        score.losses_M.std() / np.sqrt(count), rel=0.1
    )
    metrics = score.metrics(ClassSet.of("abcd"))
    hits = [metrics[f"recall_{name}"] for name in "abcd"]
    assert np.mean(hits) == pytest.approx(accuracy)  # Classes are of equal sizes here.
    assert {"macro_f1_se", "log_loss_a", "log_loss_a_se", "recall_d_se"} <= set(metrics)


def test_paired_differences_are_surer_than_unpaired_ones() -> None:
    scores = scorer(num_folds=2)
    better, worse = (
        trial_record(number, [quality] * 2 * EPOCHS, "finished", num_folds=2)
        for number, quality in enumerate((3.5, 3.0))
    )
    for metric in scoring.METRICS:
        difference = scores.difference(better, worse, metric)
        reverse = scores.difference(worse, better, metric)
        assert difference is not None and reverse is not None
        assert difference.gain == -reverse.gain and difference.low < difference.gain
        assert difference.gain > 0
    difference = scores.difference(better, worse)
    errors = [scores.score(record).standard_error("log_loss") for record in (better, worse)]
    assert difference.standard_error < 0.5 * np.hypot(*errors)
    assert not difference.is_tie
    same = scores.difference(better, better)
    assert same.is_tie and same.gain == 0


def test_trials_of_different_lengths_are_compared_on_common_folds() -> None:
    scores = scorer(num_folds=2)
    whole = trial_record(0, [3.0] * 2 * EPOCHS, num_folds=2)
    short = trial_record(1, [3.5] * EPOCHS + [0.1], num_folds=2)
    young = trial_record(2, [3.0], num_folds=2)
    assert scores.difference(short, whole).gain > 0
    assert scores.difference(young, whole) is None


def test_the_best_epoch_is_that_of_the_mean_curve() -> None:
    # The folds alone would choose epochs 2 and 4.
    first = [1.0, 3.0, 2.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    second = [1.0, 1.0, 2.9, 3.0, 1.0, 1.0, 1.0, 1.0]
    scores = scorer(num_folds=2)
    record = trial_record(0, first + second, num_folds=2)
    assert scores.score(record).epoch == 3
    # Within the second fold, the score is that of the first.
    assert scores.score(trial_record(1, first + second[:4], num_folds=2)).epoch == 2
    for objective in ("log_loss", "macro_f1"):
        single = trial_record(2, first[:3], objective=objective)
        assert scorer(objective=objective).score(single).epoch == 2


@pytest.mark.parametrize(
    ("num_train", "num_validation", "expected"),
    [(560, 120, 5), (80, 20, 5), (3000, 700, 3), (20_000, 1600, 1), (9000, 1590, 2)],
)
def test_as_many_folds_as_one_point_takes(
    num_train: int, num_validation: int, expected: int
) -> None:
    assert scoring.default_num_folds(num_train, num_validation) == expected


def test_folds_hold_out_each_image_once(dataset: Dataset) -> None:
    whole, plain = HeldOut.of(dataset, 5), HeldOut.of(dataset, 1)
    assert sum(map(len, whole.labels)) == len(dataset.development())
    assert np.array_equal(plain.labels[0], dataset.split("validation").labels_N)
    # Two of five: each still leaves four fifths to train on.
    assert [len(labels) for labels in HeldOut.of(dataset, 2).labels] == [
        len(labels) for labels in whole.labels[:2]
    ]
    with pytest.raises(DataError, match="too few for 999 folds"):
        HeldOut.of(dataset, 999)


def test_the_fold_that_selected_the_trials_does_not_compare_them() -> None:
    lucky = trial_record(1, [4.0] * EPOCHS + [2.0] * EPOCHS, "finished", num_folds=2)
    other = trial_record(2, [3.0] * 2 * EPOCHS, "finished", num_folds=2)
    all_folds, later = (
        scorer(2, first_fold_selects=selects).difference(lucky, other) for selects in (False, True)
    )
    assert all_folds is not None and later is not None
    assert later.gain < all_folds.gain and later.high < 0
    # With a single fold there is no other.
    short = trial_record(3, [4.0] * EPOCHS, "pruned", num_folds=2)
    first = scorer(2, first_fold_selects=True).difference(short, other)
    assert first is not None and first.gain > 0


def test_near_duplicates_are_not_independent_evidence() -> None:
    scores = scorer()
    record = trial_record(0, [3.0] * EPOCHS, "finished")
    single = scores.score(record)
    assert single is not None
    fourfold = replace(
        single,
        probs_MK=np.repeat(single.probs_MK, 4, axis=0),
        labels_M=np.repeat(single.labels_M, 4),
        groups_M=np.repeat(single.groups_M, 4),
    )
    for metric in METRICS:
        assert fourfold.value(metric) == pytest.approx(single.value(metric))
        assert fourfold.standard_error(metric) == pytest.approx(single.standard_error(metric))
    apart = replace(fourfold, groups_M=np.arange(4 * FOLD_SIZE))
    assert apart.standard_error("accuracy") < 0.6 * single.standard_error("accuracy")
    of_class = single.metrics(CLASSES)["recall_FB_se"]
    assert fourfold.metrics(CLASSES)["recall_FB_se"] == pytest.approx(of_class)


def test_a_class_that_is_not_held_out_has_no_f1() -> None:
    probs_MK = np.eye(4)[[0, 0, 1, 2]]
    labels_M = np.array([0, 0, 1, 2])
    perfect = Score(1, 1, 1.0, probs_MK, labels_M, np.arange(4))
    assert perfect.value("macro_f1") == 1
    assert perfect.standard_error("macro_f1") == 0
    wrong = replace(perfect, labels_M=np.array([0, 0, 1, 3]))
    assert wrong.value("macro_f1") == 0.5


def test_the_best_of_many_equals_is_not_called_better() -> None:
    """Of 30 trials that differ by luck alone, on images that no race has selected them on."""
    num_claims = 0
    for study in range(40):
        scores = scorer(epochs=1)
        records = [
            trial_record(number, [3.0], "finished", epochs=1)
            for number in range(30 * study, 30 * study + 30)
        ]
        ordered = scores.ordered(records)
        best, first = ordered[0], records[0]
        if first is not best:
            num_compared = scores.num_candidates(ordered)
            plain = scores.difference(best, first)
            allowing = scores.difference(best, first, num_compared=num_compared)
            assert plain is not None and allowing is not None
            assert allowing.low < plain.low and allowing.gain == plain.gain
            num_claims += allowing.low > 0
    assert num_claims <= 3
