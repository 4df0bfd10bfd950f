"""A small raw folder, drawn once and copied for each test; the models of the serving tests."""

import shutil
from pathlib import Path

import pytest

from drone.synth.raw_folder import SynthSettings, write_raw_folder
from tests.faults.updated import Updated
from tests.serving.conftest import exported, function, linear, model

__all__ = ["exported", "function", "linear", "model"]


@pytest.fixture(scope="session")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "raw"
    copies = {"exact_within": 3, "exact_across": 3, "near": 2}
    settings = SynthSettings(images_per_class=8, max_side_px=448, seed=1, **copies)
    write_raw_folder(folder, settings)
    return folder


@pytest.fixture
def raw(_drawn: Path, tmp_path: Path) -> Path:
    """A raw folder of the test's own."""
    return Path(shutil.copytree(_drawn, tmp_path / "raw"))


@pytest.fixture(scope="session")
def _updated(_drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    folder = tmp_path_factory.mktemp("updated")
    return Updated(_drawn, folder)


@pytest.fixture
def updated(_updated: Updated) -> Updated:
    """A data set with a decision in its ledger, put back as it was before each test."""
    _updated.restore()
    return _updated
