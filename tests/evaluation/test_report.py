import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.evaluation import report
from drone.evaluation.evidence import OutsideBoxes, OutsideShare
from drone.evaluation.metrics import Predictions, describe, score, worst_confusions
from drone.evaluation.none_of_these import score_known
from drone.evaluation.operating_point import AlarmScores, find_operating_point
from drone.labels import ClassSet
from tests.evaluation.made_predictions import images_of, random_predictions


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
    drones_N = 1 - probs[:, 0].astype(float)
    drones_N[~birds & (predictions.known_N < 0.03)] = np.nan
    predictions = replace(predictions, alarm_N=drones_N)
    alarm_scores = AlarmScores.split(drones_N, predictions.roles_N, np.array([0.1, 0.9]))
    point = find_operating_point(alarm_scores)
    header = report.ReportHeader(
        "Run <x>",
        {"run": "1 & 2"},
        history,
        best_epoch=2,
        known=known,
        operating_point=point,
    )
    pixels = np.zeros((400, 32, 32, 3), np.uint8)
    scores = score(predictions)
    written = report.write(tmp_path, predictions, scores, header, images_of(pixels))
    html = written.read_text()
    assert "Run &lt;x&gt;" in html and "1 &amp; 2" in html
    assert "No mistakes." in html
    assert known.sentence in html and "<td>&lt;kind&gt;</td>" in html
    wrong_N = predictions.labels_N != predictions.predicted_N
    assert html.count("<figure>") == sum(
        min(25, int(((predictions.labels_N == k) & wrong_N).sum())) for k in range(4)
    )
    assert html.count("</heat-map>") == html.count("<figure>")
    assert 'src="data:' in html and "http" not in html
    assert describe(scores)[:4] in html
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["alarm_score"].isna().sum() == np.isnan(drones_N).sum() > 0
    assert len(table) == 400 and table["right"].mean() == pytest.approx(scores.accuracy)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["macro_f1"] == scores.macro_f1
    assert point is not None and metrics["operating_point"] == point.as_dict()
    assert point.few_birds in html and "not reached: " in html
    assert len(pd.read_csv(tmp_path / "operating_point.csv")) == len(point.curve)
    for name in ("confusion", "curves", "reliability", "operating_point"):
        assert (tmp_path / f"{name}.png").stat().st_size > 3000


def test_the_gallery_has_the_evidence_for_what_was_predicted(tmp_path: Path) -> None:
    predictions = random_predictions(40)
    known = score_known(predictions.known_N, 0.5, np.float32([]), [])
    header = report.ReportHeader("x", {}, pd.DataFrame(), best_epoch=None, known=known)
    images = images_of(np.zeros((40, 32, 32, 3), np.uint8))
    html = report.write(tmp_path, predictions, score(predictions), header, images).read_text()
    maps_NKHW = images.load_evidence(np.arange(40))
    wrong = np.flatnonzero(predictions.labels_N != predictions.predicted_N)
    for position in wrong:
        (encoded,) = re.findall(
            rf'values="([^"]*)"></heat-map></div><figcaption>.*{predictions.paths[position]}<', html
        )
        map_HW = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(7, 7)
        of_predicted = maps_NKHW[position, predictions.predicted_N[position]]
        assert map_HW.argmax() == of_predicted.argmax() and map_HW.max() == 255
        np.testing.assert_array_equal(map_HW[of_predicted < 0], 0)


def test_evidence_outside_of_boxes_is_in_the_report_and_the_metrics(tmp_path: Path) -> None:
    predictions = random_predictions(40)
    known = score_known(predictions.known_N, 0.5, np.float32([]), [])
    share = OutsideShare(evidence=0.25, area=0.5, images=8)
    found = OutsideBoxes(share, {"<birds>": share})
    header = report.ReportHeader(
        "x", {}, pd.DataFrame(), best_epoch=None, known=known, outside_boxes=found
    )
    images = images_of(np.zeros((40, 32, 32, 3), np.uint8))
    html = report.write(tmp_path, predictions, score(predictions), header, images).read_text()
    assert "Of the evidence for the true class, 25% lies where no box is" in html
    assert "<td>&lt;birds&gt;</td><td>25.0 %</td><td>50.0 %</td><td>8</td>" in html
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = {"evidence": 0.25, "area": 0.5, "images": 8}
    assert metrics["outside_boxes"] == {**expected, "by_class": {"<birds>": expected}}


def test_a_report_without_birds_has_no_operating_point(tmp_path: Path) -> None:
    predictions = replace(random_predictions(), classes=ClassSet.of(("a", "b", "c", "d")))
    known = score_known(predictions.known_N, 0.5, np.float32([]), [])
    header = report.ReportHeader("x", {}, pd.DataFrame(), best_epoch=None, known=known)
    pixels = np.zeros((200, 32, 32, 3), np.uint8)
    written = report.write(tmp_path, predictions, score(predictions), header, images_of(pixels))
    assert "Operating point" not in written.read_text()
    assert "operating_point" not in json.loads((tmp_path / "metrics.json").read_text())
    assert "alarm_score" not in pd.read_csv(tmp_path / "predictions.csv")


def test_a_report_of_two_hundred_classes_stays_legible(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = ClassSet.of([f"Species {number}" for number in range(200)])
    labels_N = np.repeat(np.arange(200), 4)
    probs_NK = rng.dirichlet(np.ones(200), len(labels_N)).astype(np.float32)
    probs_NK[np.arange(len(labels_N)), labels_N] += rng.uniform(0, 0.1, len(labels_N))
    paths = tuple(f"{number}.jpg" for number in range(len(labels_N)))
    known_N = np.ones(len(labels_N), np.float32)
    predictions = Predictions(paths, labels_N, probs_NK, classes, known_N)
    known = score_known(known_N, 0.5, np.float32([]), [])
    header = report.ReportHeader("x", {}, pd.DataFrame(), best_epoch=None, known=known)
    pixels = np.zeros((len(labels_N), 32, 32, 3), np.uint8)
    scores = score(predictions)
    text = report.write(tmp_path, predictions, scores, header, images_of(pixels, 200)).read_text()
    assert text.count("<h3>") == 20 and "Of the 20 classes with most of them" in text
    counts = pd.Series(zip(labels_N, predictions.predicted_N, strict=True))
    wrong = counts[labels_N != predictions.predicted_N].value_counts()
    confusions = worst_confusions(scores, 20)
    assert [count for *_, count, _ in confusions] == list(wrong[:20])
    assert all(true != predicted for true, predicted, *_ in confusions)
    assert Image.open(tmp_path / "confusion.png").width > 1500
    assert len(text) < 2_000_000
