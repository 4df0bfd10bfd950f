"""The gate's rules, against plain ways to compute the same."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.metrics import f1_score

from drone.errors import ConfigError, DataError
from drone.evaluation.gate import Contender, Decision, bootstrap, decide, markdown, mcnemar
from drone.evaluation.limits import Limits
from drone.evaluation.metrics import Answers, score
from drone.labels import CLASSES


def contender(accuracy: float, seed: int = 0, count: int = 200, name: str = "x") -> Contender:
    """A model that has about this share of pictures right; which ones depends on the seed."""
    labels = np.arange(count) % 4
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(count)[: round(count * (1 - accuracy))]
    said = labels.copy()
    said[wrong] = (said[wrong] + generator.integers(1, 4, len(wrong))) % 4
    probs = np.full((count, 4), (1 - accuracy) / 3, dtype=np.float32)
    probs[np.arange(count), said] = accuracy
    answers = Answers(tuple(f"{n}.jpg" for n in range(count)), labels, probs, CLASSES)
    return Contender(
        name=name,
        answers=answers.table(),
        metrics=score(answers).as_dict(),
        onnx_difference=1e-6,
        mb=9.0,
        ms=20.0,
    )


def failed(decision: Decision) -> list[str]:
    return [rule.name for rule in decision.rules if not rule.passed]


def test_a_clearly_better_model_passes_and_a_worse_one_does_not() -> None:
    good, bad = contender(0.9), contender(0.7, seed=1)
    assert failed(decide(good, None, Limits())) == []
    assert failed(decide(good, bad, Limits())) == []
    lost = failed(decide(bad, good, Limits()))
    assert {"macro F1", "bootstrap", "McNemar", "no class given up"} <= set(lost)
    assert "macro F1" in failed(decide(good, good, Limits()))  # The same again is not better.


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"onnx_difference": 0.01}, "exported model"),
        ({"mb": 80.0}, "size"),
        ({"ms": 45.0}, "latency kept"),
        ({"ms": 900.0}, "latency"),
    ],
)
def test_each_limit_is_held(changes: dict, rule: str) -> None:
    decision = decide(replace(contender(0.95), **changes), contender(0.7, seed=1), Limits())
    assert rule in failed(decision)
    lax = Limits(most_onnx_difference=1, most_mb=100, most_ms=1e4, most_times_slower=100)
    assert decide(replace(contender(0.95), **changes), contender(0.7, seed=1), lax).passed


def test_a_class_that_is_given_up() -> None:
    new, old = contender(0.95), contender(0.7, seed=1)
    table = new.answers.copy()
    birds = table["true"] == CLASSES[0]
    table.loc[birds, "predicted"] = CLASSES[1]
    table["right"] = table["true"] == table["predicted"]
    metrics = {**new.metrics, "by_class": {**new.metrics["by_class"]}}
    metrics["by_class"][CLASSES[0]] = {"recall": 0.0, "support": 50}
    lost = failed(decide(replace(new, answers=table, metrics=metrics), old, Limits()))
    assert "floor of each class" in lost and "no class given up" in lost


def test_calibration() -> None:
    new = contender(0.95)
    sloppy = replace(new, metrics={**new.metrics, "ece": 0.3})
    assert {"calibration", "calibration kept"} <= set(
        failed(decide(sloppy, contender(0.7, seed=1), Limits()))
    )


def test_other_test_pictures_are_refused() -> None:
    new, old = contender(0.9), contender(0.8, count=199)
    with pytest.raises(DataError, match=r"200 and 199, 199 in common.*on the same data set"):
        decide(new, old, Limits())


def test_mcnemar_counts_every_way_to_lose_as_much() -> None:
    new = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], bool)
    old = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1], bool)
    gained, lost, p = mcnemar(new, old)
    assert (gained, lost) == (1, 4)
    ways = [sum(way) >= 4 for way in product((0, 1), repeat=5)]
    assert p == pytest.approx(np.mean(ways)) == pytest.approx(binom.sf(3, 5, 0.5))
    assert mcnemar(new, new) == (0, 0, 1.0)


def test_the_bootstrap_is_that_of_scikit_learns_f1() -> None:
    new, old = contender(0.85).answers, contender(0.8, seed=3).answers
    true, said, before = (
        part.to_numpy() for part in (new["true"], new["predicted"], old["predicted"])
    )
    sure, low, high = bootstrap(true, said, before)
    generator = np.random.default_rng(5)
    differences = []
    for _ in range(400):
        drawn = generator.integers(0, 200, 200)
        f1 = [f1_score(true[drawn], part[drawn], average="macro") for part in (said, before)]
        differences.append(f1[0] - f1[1])
    assert sure == pytest.approx(np.mean(np.array(differences) > 0), abs=0.06)
    assert low == pytest.approx(np.quantile(differences, 0.025), abs=0.02)
    assert high == pytest.approx(np.quantile(differences, 0.975), abs=0.02)
    assert bootstrap(true, said, before) == (sure, low, high)


def test_the_document_can_be_read() -> None:
    decision = decide(contender(0.9), contender(0.7, seed=1), Limits()).as_dict()
    facts = {"name": "m", "version": "3", "candidate": "run a", "champion": None, "when": "today"}
    text = markdown({**decision, **facts})
    assert "# m, version 3" in text and "run a **passed** the gate on today" in text
    assert all(f"| {rule['name']} | pass |" in text for rule in decision["rules"])


def test_limits_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match=r"limits.floor is 2; it must be 0 to 1"):
        Limits(floor=2)
    with pytest.raises(ConfigError, match=r"limits.most_mb is 0; it must be above 0"):
        Limits(most_mb=0)


def test_paths_pair_the_answers_whatever_their_order() -> None:
    new, old = contender(0.9), contender(0.7, seed=1)
    mixed = replace(old, answers=old.answers.sample(frac=1, random_state=0).reset_index(drop=True))
    assert isinstance(mixed.answers, pd.DataFrame)
    assert decide(new, mixed, Limits()).as_dict() == decide(new, old, Limits()).as_dict()
