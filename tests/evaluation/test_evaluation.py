import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from drone.evaluation import report
from drone.evaluation.metrics import (
    Answers,
    calibration_error,
    describe,
    score,
    worst_mistakes,
)
from drone.labels import CLASSES


def answers(count: int = 200, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    logits = rng.normal(size=(count, 4)) + 1.5 * np.eye(4)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    paths = tuple(f"{CLASSES[label]}/{number}.jpg" for number, label in enumerate(labels))
    return Answers(paths, labels, probs.astype(np.float32), CLASSES)


def test_scores_agree_with_the_library() -> None:
    given = answers()
    found = score(given)
    assert found.accuracy == pytest.approx(accuracy_score(given.labels_N, given.predicted_N))
    assert found.macro_f1 == pytest.approx(
        f1_score(given.labels_N, given.predicted_N, average="macro")
    )
    assert found.confusion_KK.sum() == found.support == 200
    assert found.accuracy_low < found.accuracy < found.accuracy_high


def test_the_interval_is_the_published_one() -> None:
    # 5,235 of 5,828 right: 89.82 %, from 89.0 to 90.6.
    labels = np.zeros(5828, dtype=np.int64)
    probs = np.tile(np.float32([0.9, 0.1, 0, 0]), (5828, 1))
    probs[5235:] = [0.1, 0.9, 0, 0]
    found = score(Answers(tuple(map(str, range(5828))), labels, probs, CLASSES))
    assert found.accuracy == pytest.approx(0.8982, abs=1e-4)
    assert found.accuracy_low == pytest.approx(0.890, abs=5e-4)
    assert found.accuracy_high == pytest.approx(0.906, abs=5e-4)
    assert found.macro_f1 == pytest.approx(2 * 5235 / (5828 + 5235))  # Of the one class there is.


def test_calibration() -> None:
    confidence = np.float32([0.8] * 10)
    right = np.array([True] * 8 + [False] * 2)
    assert calibration_error(confidence, right) == pytest.approx(0, abs=1e-6)
    assert calibration_error(confidence, np.zeros(10, bool)) == pytest.approx(0.8, abs=1e-6)


def test_bird_against_drone_ignores_the_kind_of_drone() -> None:
    labels = np.array([0, 0, 1, 2])
    probs = np.float32(
        [[0.6, 0.4, 0, 0], [0.4, 0.3, 0.2, 0.1], [0.3, 0, 0.7, 0], [0.4, 0.2, 0.2, 0.2]]
    )
    found = score(Answers(tuple("abcd"), labels, probs, CLASSES))
    # The last is more likely some drone than a bird, although bird is its likeliest class.
    assert found.bird_or_drone == 0.75
    others = score(Answers(tuple("ab"), np.array([0, 1]), probs[:2, :2], ("x", "y")))
    assert others.bird_or_drone is None


def test_the_surest_mistakes_come_first() -> None:
    given = answers()
    shown = worst_mistakes(given, 2, most=5)
    assert len(shown) == 5
    confidences = given.confidence_N[shown]
    assert (np.diff(confidences) <= 0).all()
    assert all(given.labels_N[place] == 2 != given.predicted_N[place] for place in shown)


def test_the_report_holds_everything(tmp_path: Path) -> None:
    given = answers(400)
    probs = given.probs_NK.copy()
    birds = given.labels_N == 0
    probs[birds] = [0.97, 0.01, 0.01, 0.01]
    given = Answers(("<b>&.jpg", *given.paths[1:]), given.labels_N, probs, CLASSES)
    history = pd.DataFrame(
        {"train/loss": [1.0, 0.5], "validation/loss": [0.9, 0.6]}, index=pd.Index([1, 2])
    )
    subject = report.Subject("Run <x>", {"run": "1 & 2"}, history, best_epoch=2)
    pixels = np.zeros((400, 32, 32, 3), np.uint8)
    scores = score(given)
    written = report.write(tmp_path, given, scores, subject, lambda places: pixels[places])
    html = written.read_text()
    assert "Run &lt;x&gt;" in html and "1 &amp; 2" in html
    assert "No mistakes." in html
    assert html.count("<figure>") == sum(
        min(25, int(((given.labels_N == k) & (given.predicted_N != k)).sum())) for k in range(4)
    )
    assert 'src="data:' in html and "http" not in html
    assert describe(scores)[:4] in html
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 400 and table["right"].mean() == pytest.approx(scores.accuracy)
    assert json.loads((tmp_path / "metrics.json").read_text())["macro_f1"] == scores.macro_f1
    for name in ("confusion", "curves", "reliability"):
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
