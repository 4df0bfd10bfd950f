"""Rows: the answers of `Predictor.predict`, and reasons where there is none."""

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from drone.errors import ImageError
from drone.inference import predict_frame
from drone.inference.items import Item
from drone.inference.listing import list_items
from drone.inference.prediction import predict_rows
from drone.inference.rows import Row, probability_column, to_table
from drone.labels import CLASSES, NONE
from drone.serving.predictor import Prediction, Predictor


def test_each_row_is_the_answer_of_predict(mess: Path, predictor: Predictor) -> None:
    items = list_items([str(mess), str(mess.parent / "more.zip")])
    rows = list(predict_rows(predictor, items, threads=3))
    assert [row.item for row in rows] == items
    local = [row for row in rows if row.item.local_file and row.item.name != "gone.jpg"]
    for row in local:
        assert row.item.local_file
        data = row.item.local_file.read_bytes()
        assert row.md5 == hashlib.md5(data).hexdigest()
        if row.prediction:
            assert row.prediction == predictor.predict(data, evidence=True)
        else:
            with pytest.raises(ImageError) as raised:
                predictor.predict(data)
            assert (row.reason, row.detail) == (raised.value.reason, str(raised.value))
    assert {row.item.name: row.reason for row in rows if row.reason} == {
        "cut.jpg": "undecodable",
        "empty.jpg": "empty",
        "note.jpg": "non-media",
        "huge.png": "too-large",
        "tiny.png": "too-small",
        "gone.jpg": "unreadable",
    }
    in_folder, in_archive = (
        next(row for row in rows if row.item.path.endswith(end))
        for end in ("mess/a.jpg", "zip/in/a.jpg")
    )
    assert in_folder.prediction == in_archive.prediction


def test_thumbnails_have_the_aspect_of_the_image(mess: Path, predictor: Predictor) -> None:
    (row,) = predict_rows(predictor, list_items([str(mess / "a.jpg")]))
    assert Image.open(BytesIO(row.thumbnail)).size == (144, 108)


def test_the_table(predictor: Predictor) -> None:
    probabilities = dict(zip(CLASSES, (0.7, 0.1, 0.1, 0.1), strict=True))
    prediction = Prediction(0, NONE, probabilities, 0.3, None, None, 0.2)
    clip = Item(root="/r", name="c.mp4")
    part = Row(item=clip, frame=7, time_s=0.25, box=(1, 2, 3, 4), track="t")
    bad = Row(item=Item(root="/r", name="x"), reason="empty", detail="The file is empty.")
    table = to_table([replace(part, md5="0", prediction=prediction), bad], CLASSES).to_pylist()
    assert table[0]["label"] == NONE and table[0]["known"] == pytest.approx(0.2)
    assert table[0]["confidence"] == pytest.approx(0.7) and table[0]["reason"] == ""
    assert [table[0][name] for name in ("sequence", "frame", "time_s", *"xywh", "track")] == [
        *("/r/c.mp4", 7, 0.25, 1, 2, 3, 4, "t")
    ]
    assert table[0][probability_column(CLASSES[0])] == pytest.approx(0.7)
    assert table[1]["path"] == "/r/x" and table[1]["reason"] == "empty"
    assert table[1]["label"] is None and table[1]["unsure"] is None
    assert table[0]["alarm"] is None
    alarm = replace(part, prediction=replace(prediction, alarm=True))
    assert to_table([alarm], CLASSES)["alarm"].to_pylist() == [True]


def test_a_pandas_frame(mess: Path, predictor: Predictor) -> None:
    frame = predict_frame(predictor, [mess])
    assert len(frame) == 11
    assert frame["label"].notna().sum() == 5
    first = frame.set_index("path").loc[f"{mess}/a.jpg"]
    prediction = predictor.predict((mess / "a.jpg").read_bytes())
    for name, value in prediction.probabilities.items():
        assert first[probability_column(name)] == pytest.approx(value, abs=1e-7)
