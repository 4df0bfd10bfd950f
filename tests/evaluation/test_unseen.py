"""Which images of a folder are evaluated, and why the others are not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drone.data.prepare import scan_cache
from drone.data.prepare.listing import list_raw_files
from drone.data.prepare.scan import scan_file
from drone.data.prepare.scan_cache import ScanCache
from drone.evaluation.batch_inference import no_progress
from drone.evaluation.unseen import load_unseen
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw

SETTINGS = Preprocessing(side_px=32)
BIRDS = CLASSES[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / BIRDS).mkdir()
    for index in range(3):
        image = draw(BIRDS, 90, 70, np.random.default_rng(index))
        image.save(tmp_path / BIRDS / f"{index}.png")
    image.save(tmp_path / BIRDS / "trained on.bmp")
    Image.new("RGB", (90, 70), "white").save(tmp_path / BIRDS / "white.jpg")
    (tmp_path / BIRDS / "new.jpg").write_bytes(b"\xff\x0a" + bytes(50))
    return tmp_path


def test_blank_images_and_unsupported_files_are_left_out_with_their_reason(folder: Path) -> None:
    files = list_raw_files([folder], CLASSES, require_all_classes=False).files
    records = [scan_file(file, SETTINGS) for file in files]
    trained_on = pd.DataFrame(
        [
            {"content": record.content, "phash": record.phash, "split": "train"}
            for record in records
            if record.path.endswith(".bmp")
        ]
    )
    unseen = load_unseen(folder, CLASSES, SETTINGS, trained_on, no_progress)
    assert unseen.paths == (f"{BIRDS}/0.png", f"{BIRDS}/1.png")
    assert "blank" in unseen.left_out[f"{BIRDS}/white.jpg"]
    assert "djxl" in unseen.left_out[f"{BIRDS}/new.jpg"]
    for name in ("2.png", "trained on.bmp"):
        assert "was trained or selected on it" in unseen.left_out[f"{BIRDS}/{name}"]


def test_files_are_scanned_again_where_more_formats_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list_raw_files([folder], CLASSES, require_all_classes=False).files
    records = {file: scan_file(file, SETTINGS) for file in files}
    for reads_heic in (False, True):
        monkeypatch.setattr(scan_cache, "reads_heic", lambda answer=reads_heic: answer)
        cache = ScanCache(tmp_path / "cache", SETTINGS)
        assert cache.lookup(files) == {}
        cache.store(records)
        assert cache.lookup(files) == records
