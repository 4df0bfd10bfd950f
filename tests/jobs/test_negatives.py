"""Negatives, from a folder on disk to the data set and back, as a user runs the job."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.data.dataset import SPLITS, open_dataset
from tests.conftest import MadeUp, RunJob


@pytest.mark.ray
@pytest.mark.slow
def test_negatives_through_the_job(run_job: RunJob, made_up: MadeUp, tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        file = tmp_path / "negatives" / ("sky" if number else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((96, 96)).save(file)
    args = ["--raw", made_up.folder, "--out", "set", "--json"]
    dry = run_job("prepare", *args, "--negatives", "negatives", "--dry-run")
    assert dry.code == 0 and not (tmp_path / "set").exists(), dry.err
    assert dry.result["negatives"]["sky"]["kept"] == 5
    assert dry.result["negatives"]["total"]["found"] == 6
    assert dry.result["steps"]["kept"]["none of these"] == 6
    done = run_job("prepare", *args, "--negatives", "negatives")
    assert done.code == 0 and "Negatives by kind" in done.err, done.err
    assert done.result["fingerprint"] == dry.result["fingerprint"]
    assert (tmp_path / "set" / "tables" / "negatives.csv").is_file()
    dataset = open_dataset(tmp_path / "set")
    assert {kind for name in SPLITS for kind in dataset.negatives(name).kinds_N} == {"sky", "other"}
    # Left out by mistake, as after a review: the job says so, and undo brings them back.
    without = run_job("prepare", *args)
    assert "6 files of negatives, which this run leaves out" in " ".join(without.err.split())
    assert "none of these" not in without.result["steps"]["kept"]
    back = run_job("prepare", "--out", "set", "--undo", "--json")
    assert back.result["fingerprint"] == done.result["fingerprint"]
