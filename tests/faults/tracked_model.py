"""A run in a store of its own, whose model takes milliseconds to make: no training."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest

from drone.data.dataset import Dataset
from drone.evaluation.limits import Limits
from drone.presets import get_preset
from drone.serving.predictor import class_metadata
from drone.tracking import registry, runs
from drone.tracking.model import log_model
from drone.workflows import promotion
from drone.workflows.evaluation import evaluate
from drone.workflows.requests import EvaluateRequest
from drone.workflows.run_spec import RunSpec
from tests.conftest import RunJob
from tests.linear_model import random_weights, write_linear


@dataclass(frozen=True)
class TrackedModel:
    """A finished run and where its files are."""

    folder: Path
    """Working folder of the jobs."""

    run_id: str
    onnx: Path
    """The model in the artifact store."""

    @property
    def artifacts(self) -> Path:
        """The run's own artifacts."""
        return next(self.folder.glob(f"mlartifacts/**/{self.run_id}/artifacts"))


def write_linear_of(
    target: Path, dataset: Dataset, num_outputs: int | None = None, **metadata: str
) -> None:
    """Writes a model of one matrix product, as our export would describe it."""
    side = dataset.preprocessing.side_px
    count = num_outputs or len(dataset.classes)
    own = {
        **class_metadata(dataset.classes),
        "preprocessing": dataset.preprocessing.to_json(),
        "fingerprint": dataset.fingerprint,
    }
    write_linear(target, side, random_weights(side, count), own | metadata)


def track(folder: Path, dataset: Dataset, name: str = "linear") -> TrackedModel:
    """Logs a run with all that evaluate, export, serve and promote read, in the present folder."""
    runs.connect()
    target = folder / "model.onnx"
    write_linear_of(target, dataset)
    config = replace(get_preset("smoke"), epochs=1)
    spec = RunSpec(config=config, data=str(dataset.folder), weights="none", storage=str(folder))
    with runs.start_run(name, lambda _: None) as run:
        run.log_tags({"preset": "smoke", "fingerprint": dataset.fingerprint})
        run.log_dataset(dataset)
        run.log_text(spec.to_json(), "launch.json")
        run.log_final({"model/onnx_max_difference": 0.0})
        uri = log_model(target, dataset.classes, {})
    target.unlink()
    model_id = uri.removeprefix("models:/")
    mlflow.end_run()
    stored = next(folder.glob(f"mlartifacts/**/{model_id}/**/*.onnx"))
    return TrackedModel(folder, run.run_id, stored)


@pytest.fixture(scope="module")
def stored(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrackedModel:
    """A run in a store of the module's own, evaluated, and champion of the default model."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        model = track(folder, dataset)
        evaluate(EvaluateRequest(run=model.run_id, out=folder / "reports"))
        promotion.promote(model.run_id, registry.DEFAULT_NAME, Limits(min_recall=0, max_ece=1))
    return model


@pytest.fixture
def tracked(stored: TrackedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackedModel]:
    """The run, as the folder that is worked in; artifacts that a test changes are restored."""
    files = [file for file in (stored.folder / "mlartifacts").rglob("*") if file.is_file()]
    contents = {file: file.read_bytes() for file in files}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(stored.folder)
    runs.connect()
    yield stored
    for file, content in contents.items():
        file.write_bytes(content)


@pytest.fixture
def call(tracked: TrackedModel, call_job: RunJob) -> RunJob:
    """Runs a job in the folder of the run, in this process."""
    return functools.partial(call_job, cwd=tracked.folder)
