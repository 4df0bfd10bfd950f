"""A project that was moved or copied: everything is found at the new place, nothing at the old."""

import functools
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.search.study import Study
from drone.tracking import runs
from drone.workflows import search
from drone.workflows.search import NewStudy
from drone.workflows.training import read_spec
from tests.conftest import RunJob, run_to_end
from tests.faults.tracked_model import TrackedModel, track
from tests.jobs.processes import started, wait_for

PROMOTE = ["--limits.min-recall", 0, "--limits.max-ece", 1]


@pytest.fixture
def moved(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> TrackedModel:
    """A run with a model, in a project that was moved since."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = tmp_path / "old place", tmp_path / "new & other place"
    old.mkdir()
    monkeypatch.chdir(old)
    own = Path(shutil.copytree(dataset.folder, old / "set"))
    made = track(old, replace(dataset, folder=own))
    old.rename(new)
    # MLflow has set it, as to the store at the old place.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(new)
    runs.connect()
    return TrackedModel(new, made.run_id, new / made.onnx.relative_to(old))


@pytest.fixture
def call(moved: TrackedModel, run_job: RunJob) -> Iterator[RunJob]:
    """Runs a job in the moved project; the old place must not come back."""
    # In a process of its own: in this one MLflow remembers the old place.
    yield functools.partial(run_job, cwd=moved.folder)
    assert [item.name for item in moved.folder.parent.iterdir()] == [moved.folder.name]


@pytest.mark.slow
def test_every_stage_works_from_the_new_place(moved: TrackedModel, call: RunJob) -> None:
    done = call("evaluate", "--run", "linear", "--json")
    assert done.code == 0, done.err
    assert Path(done.result["report"]).is_relative_to(moved.folder)
    done = call("promote", "--run", "linear", *PROMOTE)
    assert done.code == 0, done.err
    done = call("export", "--model", "models:/drone-classifier@champion", "--out", "o")
    assert done.code == 1 and f"no longer in {moved.folder}, so" in done.err  # Never trained.
    done = call("export", "--run", "linear", "--out", "o", "--unchecked")
    assert done.code == 0, done.err
    assert (moved.artifacts / "evaluation" / "test" / "report.html").is_file()
    assert call("promote", "--why", "1").code == 0


@pytest.mark.slow
def test_a_copy_reads_and_writes_its_own_artifacts(moved: TrackedModel, run_job: RunJob) -> None:
    copy = Path(shutil.copytree(moved.folder, moved.folder.parent / "copy"))
    before = sorted(moved.folder.rglob("*"))
    done = run_job("evaluate", "--run", "linear", cwd=copy)
    assert done.code == 0, done.err
    assert (copy / "mlartifacts" / moved.run_id / "artifacts" / "evaluation").is_dir()
    assert sorted(moved.folder.rglob("*")) == before


@pytest.mark.slow
def test_a_data_set_that_was_moved_alone(moved: TrackedModel, call: RunJob) -> None:
    (moved.folder / "set").rename(moved.folder / "moved")
    message = f"The data set of run linear is no longer in {moved.folder / 'set'}."
    done = call("evaluate", "--run", "linear")
    assert done.code == 1 and message in done.err and "--data" in done.err
    assert call("evaluate", "--run", "linear", "--data", "moved").code == 0
    done = call("export", "--run", "linear", "--out", "o", "--unchecked")
    assert done.code == 1 and "is no longer in" in done.err and "--data" in done.err
    MlflowClient().set_terminated(moved.run_id, "KILLED")
    done = call("train", "--resume", "linear")
    assert done.code == 1 and message in done.err


@pytest.mark.slow
def test_a_store_that_was_moved_without_its_artifacts(moved: TrackedModel, call: RunJob) -> None:
    shutil.rmtree(moved.folder / "mlartifacts")
    MlflowClient().log_metric(moved.run_id, "train/loss", 1.0)
    with pytest.raises(RunError, match="there is no folder .*Copy it there"):
        read_spec(moved.run_id)
    done = call("evaluate", "--run", "linear")
    assert done.code == 1 and str(moved.folder / "mlartifacts") in done.err


@pytest.mark.slow
def test_a_resumed_run_whose_checkpoints_were_left_behind(
    moved: TrackedModel, call: RunJob, dataset: Dataset
) -> None:
    client = MlflowClient()
    client.set_terminated(moved.run_id, "KILLED")
    client.log_metric(moved.run_id, "train/loss", 1.0, step=1)
    file = moved.artifacts / "launch.json"
    file.write_text(file.read_text().replace('old place"', 'old place/runs"', 1))
    spec = read_spec(moved.run_id)
    assert spec.storage == str(moved.folder / "runs")
    done = call("train", "--resume", "linear")
    assert done.code == 1 and f"its checkpoints belong in {spec.storage}, and there is" in done.err


@pytest.mark.slow
def test_another_data_set_for_a_resumed_run(
    moved: TrackedModel, call: RunJob, mixed: Dataset
) -> None:
    MlflowClient().set_terminated(moved.run_id, "KILLED")
    done = call("train", "--resume", "linear", "--data", mixed.folder)
    assert done.code == 2 and "Give the data set that it was started on." in done.err


def test_a_study_finds_its_storage_in_its_own_folder(tmp_path: Path) -> None:
    study, spec = search.create_study(NewStudy(data="d", studies=tmp_path / "a", name="s"))
    study.write_spec(spec)
    (tmp_path / "a").rename(tmp_path / "b")
    assert Study(tmp_path / "b" / "s").read_spec().storage == str(tmp_path / "b" / "s" / "runs")


QUICK = ["--data", "set", "--weights", "none"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_run_and_a_study_continue_at_the_new_place(
    tmp_path: Path, dataset: Dataset
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copytree(dataset.folder, old / "set")
    args = ["finetune", *QUICK, "--batch-size", 8, "--precision", "fp32", "--epochs", 12]
    with started(old, "train", *args, "--model.unfreeze-depth", 2, "--name", "half") as job:
        wait_for(lambda: list(old.glob("runs/*/attempt_*/checkpoint_*/state.json")))
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=120) == 130
    args = [*QUICK, "--epochs", 2, "--num-trials", 1, "--confirm", 0, 0, "--no-final"]
    args += ["--vary", "model.unfreeze_depth=0", "batch_size=16", "precision=fp32", "--name", "s"]
    done = run_to_end("tune", *args, cwd=old)
    assert done.code == 0, done.err
    old.rename(new)
    done = run_to_end("train", "--resume", "half", "--json", cwd=new)
    assert done.code == 0 and "Resuming from epoch" in done.err, done.err
    mlflow.set_tracking_uri(f"sqlite:///{new}/mlflow.db")
    run_id = done.result["run_id"]
    points = MlflowClient().get_metric_history(run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, 13))
    done = run_to_end("tune", "--resume", "s", "--add-trials", 1, "--json", cwd=new)
    assert done.code == 0, done.err
    assert "test" not in done.result and Path(done.result["best"]["config"]).is_relative_to(new)
    done = run_to_end("export", "--run", run_id, "--out", "out", cwd=new)
    assert done.code == 0, done.err
    assert not old.exists(), list(old.rglob("*"))
