"""Served images that were labelled become part of a data set, and stay so."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drone.data.dataset import open_dataset
from drone.data.prepare import ledger
from drone.data.prepare.plan import PrepareSettings
from drone.errors import ConfigError, DataError
from drone.labels import CLASSES, NONE
from drone.serving.keeping import KeepSettings, select, write_pair
from drone.serving.preprocess import Preprocessing
from drone.storage.kept_images import KeptImages
from drone.synth.drawing import draw
from drone.workflows import preparation
from drone.workflows.requests import PrepareRequest
from tests.conftest import SMALL_PX
from tests.serving.lambda_events import file_of

SETTINGS = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
MODEL = {"name": "drone-classifier", "version": "3", "fingerprint": "f", "onnx_sha256": "0"}


def drawing(class_name: str, number: int) -> bytes:
    return file_of(draw(class_name, 120, 100, np.random.default_rng([5, number])), "PNG")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with raw images, a data set of them and a store of four served ones."""
    monkeypatch.chdir(tmp_path)
    for name in CLASSES:
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(8):
            content = drawing(name, number + 100 * CLASSES.index(name))
            (tmp_path / "raw" / name / f"{number}.png").write_bytes(content)
    prepare(tmp_path)
    serve(tmp_path, *(drawing(CLASSES[number], 1000 + number) for number in range(4)))
    return tmp_path


def serve(folder: Path, *images: bytes, day: int = 20) -> None:
    when = datetime.datetime(2026, 11, day, tzinfo=datetime.UTC)
    for image in images:
        kept = select(KeepSettings(), image, {"label": CLASSES[0], "unsure": True}, MODEL, when)
        assert kept is not None
        write_pair(KeptImages(str(folder / "store")), kept)


def md5_of(image: bytes) -> str:
    return hashlib.md5(image, usedforsecurity=False).hexdigest()


def prepare(
    folder: Path, decisions: Mapping[bytes, str] | None = None, **options: object
) -> list[str]:
    """Prepares the data set with decisions on served images: a class, NONE, "drop" or "keep".

    Returns what the user is told, and last the number of missing images.
    """
    flags: dict = {}
    if decisions is not None:
        lines = [
            json.dumps(
                {
                    "md5": md5_of(image),
                    "action": choice if choice in ("drop", "keep") else "relabel",
                    "class_name": choice,
                }
            )
            for image, choice in decisions.items()
        ]
        (folder / "decisions.jsonl").write_text("\n".join(lines) + "\n")
        flags = {"served": "store", "decisions": Path("decisions.jsonl")}
    flags |= options
    notes: list[str] = []
    request = PrepareRequest(**{"raw": ("raw",), "out": Path("set"), **flags})
    prepared, _ = preparation.prepare(request, SETTINGS, notify=notes.append)
    return [*notes, f"{prepared.num_missing} missing"]


def rows_of(folder: Path, image: bytes) -> pd.DataFrame:
    manifest = open_dataset(folder / "set").manifest
    return manifest[manifest["md5"] == md5_of(image)]


@pytest.mark.slow
@pytest.mark.ray
def test_labelled_images_join_the_data_set_with_their_origin_and_survive_the_store(
    folder: Path,
) -> None:
    bird, large, small, winged = (drawing(CLASSES[number], 1000 + number) for number in range(4))
    before = open_dataset(folder / "set").manifest
    decisions = {bird: "keep", large: CLASSES[1], small: NONE, winged: "drop"}
    dry = prepare(folder, decisions, dry_run=True)
    assert "3 labelled images are new" in dry[0] and not (folder / "set-served").exists()
    notes = prepare(folder, decisions)
    assert "3 labelled images are new" in notes[0] and "1 were dropped, and 0 without" in notes[0]

    for image, class_name in ((bird, CLASSES[0]), (large, CLASSES[1])):
        (row,) = rows_of(folder, image).to_dict("records")
        assert row["kept"] and row["class_name"] == row["given_class"] == class_name
        assert row["path"].startswith(f"{class_name}/2026-11-20_drone-classifier_3_")
        assert row["root"] == str(folder / "set-served")
    (row,) = rows_of(folder, small).to_dict("records")
    assert row["kept"] and (row["class_name"], row["kind"]) == (NONE, "served")
    assert rows_of(folder, winged).empty
    sources = pd.read_csv(folder / "set" / "tables" / "provenance.csv")
    assert sources.set_index("source")["images"]["served by drone-classifier 3"] == 3
    # No image of before has moved to another split.
    after = open_dataset(folder / "set").manifest.set_index("path")["split"]
    assert after[before["path"]].tolist() == before["split"].tolist()

    # The store may delete them, and nobody has to name it again.
    shutil.rmtree(folder / "store")
    fingerprint = open_dataset(folder / "set").fingerprint
    prepare(folder)
    assert open_dataset(folder / "set").fingerprint == fingerprint
    lines = ledger.by_hand(ledger.read(folder / "set" / ledger.LEDGER_FILE))
    assert lines[md5_of(winged)].action == "drop" and lines[md5_of(large)].class_name == CLASSES[1]


@pytest.mark.slow
@pytest.mark.ray
def test_a_later_decision_holds_and_a_class_may_turn_out_to_be_none(folder: Path) -> None:
    bird, large, small, _ = (drawing(CLASSES[number], 1000 + number) for number in range(4))
    prepare(folder, {bird: CLASSES[0], large: CLASSES[1], small: NONE})
    prepare(folder, {bird: NONE, large: CLASSES[2], small: CLASSES[3]})
    labels = [rows_of(folder, image)["class_name"].tolist() for image in (bird, large, small)]
    assert labels == [[NONE], [CLASSES[2]], [CLASSES[3]]]


@pytest.mark.slow
@pytest.mark.ray
def test_decisions_on_images_that_the_store_has_deleted(folder: Path) -> None:
    bird, large, small, winged = (drawing(CLASSES[number], 1000 + number) for number in range(4))
    prepare(folder, {bird: CLASSES[0], large: CLASSES[1]})
    for image in (bird, small):
        for file in (folder / "store").rglob(f"{hashlib.sha256(image).hexdigest()}.*"):
            file.unlink()
    # The bird is in the data set, the small one is nowhere any more.
    notes = prepare(folder, {bird: NONE, small: NONE, winged: CLASSES[3]})
    assert notes[-1] == "1 missing"
    assert [rows_of(folder, image)["class_name"].tolist() for image in (bird, winged)] == [
        [NONE],
        [CLASSES[3]],
    ]
    assert rows_of(folder, small).empty
    in_ledger = ledger.by_hand(ledger.read(folder / "set" / ledger.LEDGER_FILE))
    assert md5_of(small) not in in_ledger and in_ledger[md5_of(bird)].action == "keep"
    # Neither the store nor the folder of served images has to be named, but both may be.
    before = open_dataset(folder / "set").fingerprint
    prepare(folder, {large: NONE}, served=None, raw=("raw", "set-served"), dry_run=True)
    assert rows_of(folder, large)["class_name"].tolist() == [CLASSES[1]]
    prepare(folder, {large: NONE}, served=None, raw=("raw", "set-served"))
    assert rows_of(folder, large)["class_name"].tolist() == [NONE]
    assert open_dataset(folder / "set").fingerprint != before


@pytest.mark.slow
@pytest.mark.ray
def test_an_image_of_a_raw_folder_cannot_be_relabelled_to_none(folder: Path) -> None:
    raw = (folder / "raw" / CLASSES[0] / "0.png").read_bytes()
    with pytest.raises(DataError, match=r"relabels Flying Birds/0.png to 'none of these', which"):
        prepare(folder, {raw: NONE})


@pytest.mark.slow
def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--served needs --decisions"):
        PrepareRequest(raw=("raw",), out=Path("set"), served="store")
    stranger = drawing(CLASSES[0], 5000)
    shutil.rmtree(folder / "store")
    with pytest.raises(DataError, match="store holds no served images"):
        prepare(folder, {stranger: CLASSES[0]})
