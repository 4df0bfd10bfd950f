"""The synthetic raw folder: it holds what the ground truth says, and the seed decides it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.errors import ConfigError
from drone.labels import CLASSES
from drone.synth.drawing import draw
from drone.synth.raw_folder import GroundTruth, SynthSettings, write_raw_folder

SETTINGS = SynthSettings(images_per_class=26, max_side_px=224, seed=5, very_large=0)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GroundTruth]:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    return folder, write_raw_folder(folder, SETTINGS)


def test_the_ground_truth_names_every_file(written: tuple[Path, GroundTruth]) -> None:
    folder, truth = written
    files = contents(folder)
    assert truth.files == sorted(files)
    assert len(truth.mislabelled) == SETTINGS.mislabelled
    assert len(truth.broken) == 8 + 2 + 6 + 2
    assert len(truth.exact_duplicates) == 12 + 6 and len(truth.near_duplicates) == 8
    for paths in truth.exact_duplicates:
        assert len({files[path] for path in paths}) == 1
    for paths in truth.near_duplicates:
        assert len({files[path] for path in paths}) == len(paths)


def test_images_are_no_larger_than_the_maximum(written: tuple[Path, GroundTruth]) -> None:
    folder, truth = written
    for path in set(truth.files) - set(truth.broken):
        with Image.open(folder / path) as image:
            assert max(image.size) <= 224, path


def test_the_seed_decides_every_byte(written: tuple[Path, GroundTruth], tmp_path: Path) -> None:
    folder, truth = written
    assert write_raw_folder(tmp_path / "again", SETTINGS) == truth
    assert contents(tmp_path / "again") == contents(folder)
    write_raw_folder(tmp_path / "other", replace(SETTINGS, seed=6))
    assert contents(tmp_path / "other") != contents(folder)


def test_more_images_leave_the_first_ones_as_they_are(
    written: tuple[Path, GroundTruth], tmp_path: Path
) -> None:
    write_raw_folder(tmp_path / "more", replace(SETTINGS, images_per_class=28))
    names = [path for path in written[1].files if path.endswith("_0000.jpg")]
    assert len(names) == len(CLASSES)
    for name in names:
        assert (tmp_path / "more" / name).read_bytes() == (written[0] / name).read_bytes()


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_shape_stands_out_from_the_scene(
    class_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drone.synth import drawing

    shown = []
    for seed in range(12):
        images = []
        for shape in (drawing._SHAPES[class_name], lambda pen, side, rng: None):
            monkeypatch.setitem(drawing._SHAPES, "tested", shape)
            # Without grain, which is drawn after the shape and so differs.
            monkeypatch.setattr(drawing, "_grain", lambda image, rng: image)
            image = draw("tested", 128, 128, np.random.default_rng(seed))
            images.append(np.asarray(image).astype(int))
        shown.append((np.abs(images[0] - images[1]).max(axis=-1) >= 40).mean())
    # At least one percent of the pixels of nearly every drawing.
    assert np.mean(np.array(shown) >= 0.01) >= 0.9, shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"near": -1}, "near is -1; it must be 0 or more"),
        ({"images_per_class": 3}, "images_per_class is 3; it must be at least 4"),
        ({"max_side_px": 100}, "max_side_px is 100; it must be at least 224"),
        ({"images_per_class": 4}, "must be at most 16"),
        ({"images_per_class": 22, "max_side_px": 224}, "must be at most 20"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SynthSettings(**changes)
