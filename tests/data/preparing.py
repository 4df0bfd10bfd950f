"""Prepares small data sets for tests."""

from pathlib import Path
from typing import Any

from drone.data.dataset import Dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.serving.preprocess import Preprocessing

SMALL = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def prepare(raw: Path, out: Path, settings: PrepareSettings = SMALL, **options: Any) -> Dataset:
    """Plans and writes a data set, or updates the one in `out`."""
    plan = plan_dataset([raw], settings, map_sequentially, out)
    return write_dataset(plan, out, map_sequentially, **options)[0]
