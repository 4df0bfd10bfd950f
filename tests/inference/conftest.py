"""A model that answers in a millisecond, and images of the kinds that folders hold."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.labels import CLASSES
from drone.serving.predictor import Predictor, class_metadata
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw
from tests.linear_model import random_weights, write_linear

SIDE = 32


@pytest.fixture(scope="session")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of all pixels whose predictions differ from image to image."""
    metadata = {
        **class_metadata(CLASSES),
        "preprocessing": Preprocessing(side_px=SIDE, max_pixels=4_000_000).to_json(),
        "unsure_below": "0.6",
    }
    target = tmp_path_factory.mktemp("linear") / "model.onnx"
    return write_linear(target, SIDE, 5 * random_weights(SIDE, len(CLASSES)), metadata)


@pytest.fixture
def predictor(onnx: Path) -> Predictor:
    return Predictor(onnx, threads=1)


def write_image(file: Path, number: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    name = CLASSES[number % len(CLASSES)]
    draw(name, 80 + number, 60, np.random.default_rng(number)).save(file)
    return file


@pytest.fixture
def mess(tmp_path: Path) -> Path:
    """A folder with good and bad files, and an archive."""
    folder = tmp_path / "mess"
    for number, name in enumerate(("a.jpg", "b/a.jpg", "b/two words.png", "Möwe/größe.jpg")):
        write_image(folder / name, number)
    # One byte that is not UTF-8, as of an archive from an old system.
    write_image(folder / os.fsdecode(b"caf\xe9.png"), 4)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "note.jpg").write_text("not an image")
    Image.new("RGB", (4000, 1001)).save(folder / "huge.png")
    Image.new("RGB", (3, 3)).save(folder / "tiny.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    write_image(folder / ".hidden" / "a.jpg", 5)
    (folder / ".DS_Store").write_text("x")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(folder / "a.jpg", "in/a.jpg")
        archive.write(folder / "b/two words.png", "in/two words.png")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("in/a.jpg", (folder / "b/a.jpg").read_bytes())
    return folder
