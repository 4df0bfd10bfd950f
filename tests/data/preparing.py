"""Prepares small data sets for tests."""

import json
from pathlib import Path
from typing import Any

from drone.data.dataset import DATASET_FILE, MANIFEST_FILE, SCHEMA, Dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.files import checksum, seal
from drone.serving.preprocess import Preprocessing

SMALL = PrepareSettings(preprocessing=Preprocessing(side_px=32))


def prepare(raw: Path, out: Path, settings: PrepareSettings = SMALL, **options: Any) -> Dataset:
    """Plans and writes a data set, or updates the one in `out`."""
    plan = plan_dataset([raw], settings, map_sequentially, out)
    return write_dataset(plan, out, map_sequentially, **options)[0]


def rewrite(folder: Path, **changes: object) -> None:
    """Makes a data set whole again after a change to its manifest.

    Args:
        folder: The data set.
        changes: Other values for its description.
    """
    description = json.loads((folder / DATASET_FILE).read_bytes())
    del description["schema"], description["checksum"]
    description["checksums"][MANIFEST_FILE] = checksum(folder / MANIFEST_FILE)
    (folder / DATASET_FILE).write_bytes(seal({**description, **changes}, SCHEMA))
