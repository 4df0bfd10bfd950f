"""Images of mixed resolutions by the commands that a person types, on real Ray."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.data.dataset import Dataset
from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from tests.conftest import Done, RunJob, run_to_end

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(mixed_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a data set was packed at bins, and a model trained on it."""
    folder = tmp_path_factory.mktemp("place")
    prepared = run(folder, "prepare", "--raw", mixed_raw, "--out", "d", "--bins")
    assert prepared.result["written"] and "Bins" in prepared.out + prepared.err
    quick = ["--data", "d", "--weights", "none", "--epochs", "1", "--batch-size", "8"]
    trained = run(folder, "train", "multires", *quick, "--num-workers", 2, "--name", "multires")
    assert trained.code == 0, trained.err
    return folder


def run(folder: Path, name: str, *words: object) -> Done:
    """Runs a job in the folder."""
    done = run_to_end(name, *words, "--json", cwd=folder)
    assert done.code in (0, 1), done.err
    return done


def test_a_resizing_network_is_told_before_anything_starts_that_it_needs_bins(
    dataset: Dataset, call_job: RunJob
) -> None:
    done = call_job("train", "multires", "--data", dataset.folder, "--weights", "none")
    assert done.code == 1 and "--bins" in done.err and "Traceback" not in done.err


def test_it_is_evaluated_by_size_and_against_squashing(place: Path) -> None:
    result = run(place, "evaluate", "--run", "multires", "--against", "multires").result
    sides = [row["side_px"] for row in result["by_size"]]
    assert sides == sorted(sides) and set(sides) <= {224, 448, 672, 896}
    assert sum(row["images"] for row in result["by_size"]) == result["support"]
    assert all(row["ms"] > 0 and row["ms_1"] > 0 and row["ms_2"] > 0 for row in result["by_size"])
    own, other = result["comparisons"]
    assert own["against"] == "squashed to 224 px" and other["against"] == "of multires, squashed"
    assert own["accuracy"] == pytest.approx(result["accuracy"])
    html = Path(result["report"]).read_text()
    assert own["sentence"].split(":")[0] in html and "By size" in html
    told = json.loads(Path(result["report"]).with_name("metrics.json").read_text())
    assert told["comparisons"] == result["comparisons"]


def test_its_export_takes_images_at_their_own_sizes(place: Path, tmp_path: Path) -> None:
    result = run(place, "export", "--run", "multires", "--out", tmp_path / "out").result
    assert result["parity"]["top1_agreement"] == 1 and result["int8"] is None
    predictor = Predictor(tmp_path / "out" / "model.onnx")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["sides_px"][-1] == 3584
    noise = np.random.default_rng(0).integers(0, 256, (700, 1700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    found = predictor.predict((tmp_path / "wide.png").read_bytes())
    assert set(found.probabilities) == set(CLASSES)


def test_images_of_other_origins_keep_their_sizes_too(
    place: Path, tmp_path: Path, run_job: RunJob
) -> None:
    folder = tmp_path / "other" / CLASSES[0]
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate([(200, 190), (500, 300), (900, 800)]):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    words = ["--run", "multires", "--images", tmp_path / "other", "--json"]
    result = run_job("evaluate", *words, cwd=place).result
    assert [row["side_px"] for row in result["by_size"]] == [224, 448, 896]
    assert result["support"] == 3
