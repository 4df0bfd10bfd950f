"""A tracking store for the tests of this folder."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from drone.tracking import runs


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def parent_run_id(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study's run, in a store that has nothing else of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(store_folder)
    runs.connect()
    experiment = MlflowClient().get_experiment_by_name(runs.DEFAULT_EXPERIMENT)
    return str(MlflowClient().create_run(experiment.experiment_id).info.run_id)
