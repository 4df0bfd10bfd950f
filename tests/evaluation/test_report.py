import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drone.evaluation import report
from drone.evaluation.metrics import describe, score
from drone.evaluation.none_of_these import score_known
from tests.evaluation.made_predictions import random_predictions


def test_the_report_is_complete_and_self_contained(tmp_path: Path) -> None:
    predictions = random_predictions(400)
    probs = predictions.probs_NK.copy()
    birds = predictions.labels_N == 0
    probs[birds] = [0.97, 0.01, 0.01, 0.01]
    paths = ("<b>&.jpg", *predictions.paths[1:])
    predictions = replace(predictions, paths=paths, probs_NK=probs)
    history = pd.DataFrame(
        {"train/loss": [1.0, 0.5], "validation/loss": [0.9, 0.6]}, index=pd.Index([1, 2])
    )
    known = score_known(predictions.known_N, 0.5, np.float32([0.1, 0.9]), ["sky", "<kind>"])
    header = report.ReportHeader("Run <x>", {"run": "1 & 2"}, history, best_epoch=2, known=known)
    pixels = np.zeros((400, 32, 32, 3), np.uint8)
    scores = score(predictions)
    written = report.write(tmp_path, predictions, scores, header, lambda at: pixels[at])
    html = written.read_text()
    assert "Run &lt;x&gt;" in html and "1 &amp; 2" in html
    assert "No mistakes." in html
    assert known.sentence in html and "<td>&lt;kind&gt;</td>" in html
    wrong_N = predictions.labels_N != predictions.predicted_N
    assert html.count("<figure>") == sum(
        min(25, int(((predictions.labels_N == k) & wrong_N).sum())) for k in range(4)
    )
    assert 'src="data:' in html and "http" not in html
    assert describe(scores)[:4] in html
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 400 and table["right"].mean() == pytest.approx(scores.accuracy)
    assert json.loads((tmp_path / "metrics.json").read_text())["macro_f1"] == scores.macro_f1
    for name in ("confusion", "curves", "reliability"):
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
