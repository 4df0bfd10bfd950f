"""The gate's rules and statistics, against naive implementations."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.metrics import f1_score

from drone.errors import ConfigError, DataError
from drone.evaluation.gate import (
    Contender,
    GateDecision,
    apply_gate,
    bootstrap,
    markdown,
    mcnemar,
)
from drone.evaluation.limits import Limits
from drone.evaluation.metrics import Predictions, score
from drone.evaluation.none_of_these import score_known
from drone.labels import CLASSES, ClassSet


def contender(
    accuracy: float,
    seed: int = 0,
    count: int = 200,
    name: str = "x",
    known: float = 0.9,
    negatives: tuple[float, ...] = (),
) -> Contender:
    """A model of about this accuracy; the seed decides which images it has wrong.

    All its images have the same known score, and its negatives these.
    """
    labels = np.arange(count) % 4
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(count)[: round(count * (1 - accuracy))]
    predicted = labels.copy()
    predicted[wrong] = (predicted[wrong] + generator.integers(1, 4, len(wrong))) % 4
    probs = np.full((count, 4), (1 - accuracy) / 3, dtype=np.float32)
    probs[np.arange(count), predicted] = accuracy
    paths = tuple(f"{number}.jpg" for number in range(count))
    known_N = np.full(count, known, np.float32)
    alarm_N = 1 - probs[:, 0].astype(float)
    predictions = Predictions(paths, labels, probs, CLASSES, known_N, alarm_N)
    scores = score_known(known_N, 0.5, np.float32(negatives), ["sky"] * len(negatives))
    return Contender(
        name=name,
        predictions=predictions.table(),
        metrics={**score(predictions).as_dict(), "known": scores.as_dict()},
        classes=CLASSES,
        onnx_difference=1e-6,
        size_mb=9.0,
        latency_ms=20.0,
    )


def failed(decision: GateDecision) -> list[str]:
    return [rule.name for rule in decision.rules if not rule.passed]


def test_a_clearly_better_model_passes_and_a_worse_one_does_not() -> None:
    good, bad = contender(0.9), contender(0.7, seed=1)
    assert failed(apply_gate(good, None, Limits())) == []
    assert failed(apply_gate(good, bad, Limits())) == []
    lost = failed(apply_gate(bad, good, Limits()))
    assert {"macro F1", "bootstrap", "McNemar", "recall drop"} <= set(lost)
    assert "macro F1" in failed(apply_gate(good, good, Limits()))  # An equal model is not better.


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"onnx_difference": 0.01}, "ONNX parity"),
        ({"size_mb": 80.0}, "size"),
        ({"latency_ms": 45.0}, "slowdown"),
        ({"latency_ms": 900.0}, "latency"),
    ],
)
def test_each_limit_is_applied(changes: dict, rule: str) -> None:
    decision = apply_gate(replace(contender(0.95), **changes), contender(0.7, seed=1), Limits())
    assert rule in failed(decision)
    relaxed = Limits(max_onnx_difference=1, max_size_mb=100, max_latency_ms=1e4, max_slowdown=100)
    assert apply_gate(replace(contender(0.95), **changes), contender(0.7, seed=1), relaxed).passed


def test_a_class_that_is_no_longer_recognised() -> None:
    new, old = contender(0.95), contender(0.7, seed=1)
    table = new.predictions.copy()
    birds = table["true"] == CLASSES[0]
    table.loc[birds, "predicted"] = CLASSES[1]
    table["right"] = table["true"] == table["predicted"]
    metrics = {**new.metrics, "by_class": {**new.metrics["by_class"]}}
    metrics["by_class"][CLASSES[0]] = {"recall": 0.0, "support": 50}
    lost = failed(apply_gate(replace(new, predictions=table, metrics=metrics), old, Limits()))
    assert "minimum recall" in lost and "recall drop" in lost


def test_calibration() -> None:
    new = contender(0.95)
    overconfident = replace(new, metrics={**new.metrics, "ece": 0.3})
    assert {"calibration", "calibration increase"} <= set(
        failed(apply_gate(overconfident, contender(0.7, seed=1), Limits()))
    )


def test_other_test_images_are_refused() -> None:
    new, old = contender(0.9), contender(0.8, count=199)
    with pytest.raises(DataError, match=r"200 and 199, 199 in common.*on the same data set"):
        apply_gate(new, old, Limits())


def test_mcnemar_equals_full_enumeration() -> None:
    new = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], bool)
    old = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1], bool)
    gained, lost, p = mcnemar(new, old)
    assert (gained, lost) == (1, 4)
    outcomes = [sum(outcome) >= 4 for outcome in product((0, 1), repeat=5)]
    assert p == pytest.approx(np.mean(outcomes)) == pytest.approx(binom.sf(3, 5, 0.5))
    assert mcnemar(new, new) == (0, 0, 1.0)


def test_the_bootstrap_equals_one_by_scikit_learns_f1() -> None:
    new, old = contender(0.85).predictions, contender(0.8, seed=3).predictions
    true, predicted, old_predicted = (
        part.to_numpy() for part in (new["true"], new["predicted"], old["predicted"])
    )
    confidence, low, high = bootstrap(true, predicted, old_predicted)
    generator = np.random.default_rng(5)
    differences = []
    for _ in range(400):
        drawn = generator.integers(0, 200, 200)
        f1 = [
            f1_score(true[drawn], part[drawn], average="macro")
            for part in (predicted, old_predicted)
        ]
        differences.append(f1[0] - f1[1])
    assert confidence == pytest.approx(np.mean(np.array(differences) > 0), abs=0.06)
    assert low == pytest.approx(np.quantile(differences, 0.025), abs=0.02)
    assert high == pytest.approx(np.quantile(differences, 0.975), abs=0.02)
    assert bootstrap(true, predicted, old_predicted) == (confidence, low, high)


def test_the_decision_document() -> None:
    decision = apply_gate(contender(0.9), contender(0.7, seed=1), Limits()).as_dict()
    facts = {"name": "m", "version": "3", "candidate": "run a", "champion": None, "when": "today"}
    text = markdown({**decision, **facts})
    assert "# m, version 3" in text and "run a **passed** the gate on today" in text
    assert all(f"| {rule['name']} | pass |" in text for rule in decision["rules"])


def test_limits_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"limits.min_recall is 2; it must be 0 to 1"):
        Limits(min_recall=2)
    with pytest.raises(ConfigError, match=r"limits.max_size_mb is 0; it must be above 0"):
        Limits(max_size_mb=0)
    with pytest.raises(ConfigError, match=r"limits.max_false_alarms is 0; it must be above 0"):
        Limits(max_false_alarms=0)
    with pytest.raises(ConfigError, match=r"limits.alarm_recall is 0; it must be above 0"):
        Limits(alarm_recall=0)


def test_predictions_are_paired_by_path() -> None:
    new, old = contender(0.9), contender(0.7, seed=1)
    table = old.predictions.sample(frac=1, random_state=0).reset_index(drop=True)
    assert isinstance(table, pd.DataFrame)
    shuffled = replace(old, predictions=table)
    assert apply_gate(new, shuffled, Limits()).as_dict() == apply_gate(new, old, Limits()).as_dict()


def test_a_model_that_knows_too_few_images_does_not_pass() -> None:
    assert failed(apply_gate(contender(0.9, known=0.4), None, Limits())) == ["known"]
    assert apply_gate(contender(0.9, known=0.4), None, Limits(min_accepted=0)).passed


def test_the_minimum_recall_is_that_of_guessing() -> None:
    def rule(classes: ClassSet, limits: Limits) -> str:
        decision = apply_gate(replace(contender(0.9), classes=classes), None, limits)
        return next(rule.figures for rule in decision.rules if rule.name == "minimum recall")

    assert rule(CLASSES, Limits()).endswith("at least 0.25")
    assert rule(ClassSet.of(("a", "b")), Limits()).endswith("at least 0.5")
    assert rule(ClassSet.of("abcdefg"), Limits()).endswith("at least 0.143")
    assert rule(CLASSES, Limits(min_recall=0.4)).endswith("at least 0.4")


def renamed(contender: Contender, names: tuple[str, ...], unknown: str = "") -> Contender:
    """A contender whose classes have other names; images of an unknown one are left out."""
    table = contender.predictions.replace(dict(zip(CLASSES, names, strict=True)))
    by_class = dict(zip(names, contender.metrics["by_class"].values(), strict=True))
    return replace(
        contender,
        predictions=table[table["true"] != unknown],
        metrics={**contender.metrics, "by_class": by_class},
        classes=ClassSet.of([name for name in names if name != unknown]),
    )


def test_models_of_other_classes_are_compared_on_those_that_both_know() -> None:
    names = ("Birds", "Drones", "Kites", "Masts")
    new, old = renamed(contender(0.9), names), renamed(contender(0.7, seed=1), names, "Kites")
    rules = {rule.name: rule for rule in apply_gate(new, old, Limits()).rules}
    count = len(old.predictions)
    assert rules["classes"].figures == (
        f"compared on the {count} of {len(new.predictions)} test images of the classes that both "
        "know: Birds, Drones, Masts; new: Kites"
    )
    both = new.predictions[new.predictions["true"] != "Kites"]
    labels = ["Birds", "Drones", "Masts"]
    expected = f1_score(both["true"], both["predicted"], labels=labels, average="macro")
    assert rules["macro F1"].figures.startswith(f"{expected:.4f} against")
    assert rules["macro F1"].passed and f"{count} images" in rules["macro F1"].figures
    others = renamed(contender(0.7, seed=1), ("Birds", "b", "c", "d"))
    with pytest.raises(DataError, match="fewer than two classes in common"):
        apply_gate(new, others, Limits())


def test_a_model_that_takes_more_negatives_for_classes_does_not_pass() -> None:
    champion = contender(0.7, seed=1, negatives=(0.1, 0.2, 0.3))
    worse = contender(0.95, negatives=(0.1, 0.2, 0.95))
    assert failed(apply_gate(worse, champion, Limits())) == ["negatives"]
    assert apply_gate(worse, champion, Limits(max_auroc_drop=0.5)).passed
    # Without negatives in one of the evaluations there is nothing to compare.
    assert apply_gate(contender(0.95), champion, Limits()).passed


def test_false_alarms_count_only_if_a_limit_is_set() -> None:
    # Drones have 0.97 or more, and one bird in ten is taken for a drone.
    model = contender(0.9, count=800)
    assert "false alarms" not in [rule.name for rule in apply_gate(model, None, Limits()).rules]
    assert apply_gate(model, None, Limits(max_false_alarms=150, alarm_recall=0.9)).passed
    strict = apply_gate(model, None, Limits(max_false_alarms=20, alarm_recall=0.9))
    assert failed(strict) == ["false alarms"]
    figures = next(rule.figures for rule in strict.rules if rule.name == "false alarms")
    assert "per 1,000 birds" in figures and "at most 20" in figures


def test_a_test_split_without_birds_fails_a_limit_on_false_alarms() -> None:
    model = contender(0.9)
    limits = Limits(max_false_alarms=500)
    without_scores = replace(model, predictions=model.predictions.drop(columns="alarm_score"))
    assert failed(apply_gate(without_scores, None, limits)) == ["false alarms"]
    drones = model.predictions[model.predictions["true"] != CLASSES[0]]
    assert failed(apply_gate(replace(model, predictions=drones), None, limits)) == ["false alarms"]
