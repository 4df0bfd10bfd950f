"""Errors whose advice is followed to the letter: the command that they name changes the outcome."""

import errno
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow.cli
import pytest
from mlflow.tracking import MlflowClient

from drone.data.dataset import Dataset, open_dataset
from drone.data.prepare.plan import PrepareSettings, command_for, map_sequentially, plan_dataset
from drone.data.prepare.write import undo_last, write_dataset
from drone.errors import DataError, cannot_listen
from drone.labels import ClassSet
from drone.serving.preprocess import Preprocessing
from drone.storage.dataset_cache import open_at
from drone.tracking import registry, runs
from tests.conftest import SMALL_PX, Done, MadeUp, RunJob
from tests.faults.tracked_model import TrackedModel, call, stored, track, tracked
from tests.jobs.test_command_line import fails, parsed

__all__ = ["call", "stored", "tracked"]

COMMAND = re.compile(r"python ray_jobs/(\w+)\.py ((?:(?! - ).)*)")


def advised(done: Done, job: str) -> list[str]:
    """Arguments of the command of a job that a message advises."""
    found = [args for name, args in COMMAND.findall(done.err) if name == job]
    assert len(found) == 1, done.err
    return shlex.split(found[0])


def restore(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types MLflow's command that a message advises."""
    uri, program, *args = shlex.split(done.err[done.err.index("MLFLOW_TRACKING_URI=") :])
    assert program == "mlflow"
    with monkeypatch.context() as patch:
        patch.setenv(*uri.split("=", 1))
        mlflow.cli.cli(args, standalone_mode=False)


def test_a_run_that_was_deleted(
    tracked: TrackedModel, call: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient().delete_run(tracked.run_id)
    for job in (
        ["evaluate", "--run", "linear"],
        ["evaluate", "--run", tracked.run_id],
        ["train", "--resume", "linear"],
        ["promote", "--run", "linear"],
        ["serve", "--run", "linear"],
    ):
        done = call(*job)
        fails(done, 1, f"Run linear ({tracked.run_id}) was deleted. Restore it: ")
    model = call("export", "--model", "models:/drone-classifier@champion", "--out", "out")
    fails(model, 1, "Version 1 of drone-classifier comes from a run that cannot be used.")
    restore(model, monkeypatch)
    fails(call("evaluate", "--run", "linear"), 0)


def test_an_experiment_that_was_deleted(
    tracked: TrackedModel, call: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = MlflowClient().get_run(tracked.run_id).info.experiment_id
    MlflowClient().delete_experiment(number)
    fails(call("evaluate", "--run", "linear"), 1, "The experiment 'drone' was deleted.")
    done = call("evaluate", "--run", "linear", "--experiment", "other")
    fails(done, 1, "was deleted with its experiment 'drone'. Restore both: ")
    restore(done, monkeypatch)
    fails(call("evaluate", "--run", "linear"), 0)


def test_versions_and_models_that_are_not_registered(tracked: TrackedModel, call: RunJob) -> None:
    for uri in ("models:/drone-classifier/7", "models:/drone-classifier@beta"):
        there = "the versions of drone-classifier are 1, its aliases champion is 1"
        fails(call("serve", "--model", uri), 1, f"There is no model {uri}: {there}")
    nothing = call("serve", "--model", "models:/nothing@champion")
    fails(nothing, 1, "the registered models are ", "drone-classifier")
    fails(call("promote", "--rollback"), 1, "which has no previous: the versions")
    other = call("promote", "--rollback", "--name", "my model")
    fails(other, 1, "which has no champion")
    assert parsed("promote", advised(other, "promote")).name == "my model"


def test_a_version_that_was_registered_by_other_means(tracked: TrackedModel, call: RunJob) -> None:
    client, name = MlflowClient(), "by hand"
    registry.register(name, tracked.run_id, {})
    done = call("promote", "--why", "1", "--name", name)
    fails(done, 1, "The gate was never applied to version 1 of by hand")
    assert call("promote", *advised(done, "promote")).code in (0, 1)
    fails(call("promote", "--why", "1", "--name", name), 0)
    client.create_registered_model("crowned")
    entry = client.create_model_version("crowned", "somewhere", run_id=tracked.run_id)
    client.set_registered_model_alias("crowned", registry.CHAMPION, entry.version)
    crowned = call("promote", "--why", "1", "--name", "crowned")
    fails(crowned, 1, "It is the champion already")
    assert "ray_jobs" not in crowned.err


def test_runs_without_a_model(tracked: TrackedModel, call: RunJob) -> None:
    number = MlflowClient().get_run(tracked.run_id).info.experiment_id
    for name, tags in (
        ("trial", {"study": "s 1"}),
        ("stopped", {"preset": "smoke"}),
        ("other", {}),
    ):
        run = MlflowClient().create_run(number, run_name=name, tags=tags)
        done = call("evaluate", "--run", name)
        fails(done, 1, f"Run {name} ({run.info.run_id}, RUNNING) has no model.")
        MlflowClient().delete_run(run.info.run_id)
        if name == "trial":
            assert advised(done, "tune") == ["--resume", "s 1"]
        elif name == "stopped":
            assert advised(done, "train") == ["--resume", run.info.run_id]
        else:
            assert "It was not started by" in done.err


@pytest.fixture
def grown(
    dataset: Dataset, made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrackedModel:
    """A run that was not evaluated, and whose data set has become another one since."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my data [v2]"
    shutil.copytree(dataset.folder, folder)
    model = track(tmp_path, open_dataset(folder))
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX), policy="majority")
    planned = plan_dataset([made_up.folder], settings, map_sequentially, folder)
    assert write_dataset(planned, folder, map_sequentially)[1]
    return model


def test_a_run_whose_data_set_has_changed(grown: TrackedModel, call_job: RunJob) -> None:
    folder = grown.folder / "my data [v2]"
    before, now = open_at_history(folder), open_dataset(folder).fingerprint
    done = call_job("promote", "--run", "linear")
    fails(done, 1, f"was trained on the data set {before[:12]}", f"has become {now[:12]} since")
    assert advised(done, "train") == ["smoke", "--data", str(folder), "--weights", "none"]
    assert advised(done, "prepare") == ["--out", str(folder), "--undo"]
    # What evaluate gives now is of another test split, and says so.
    evaluated = call_job("evaluate", "--run", "linear")
    fails(evaluated, 0, "is not the data set that run linear was trained on")
    again = call_job("promote", "--run", "linear")
    assert again.err == done.err
    fails(call_job("export", "--run", "linear", "--out", "out"), 1, f"has become {now[:12]}")
    undo_last(folder, map_sequentially)
    first = call_job("promote", "--run", "linear")
    fails(first, 1, "Run linear has not been evaluated on its test split. First: ")
    fails(call_job("evaluate", *advised(first, "evaluate")), 0)
    fails(call_job("promote", "--run", "linear", "--dry-run"), 0, "minimum recall")


def open_at_history(folder: Path) -> str:
    """The fingerprint of the version before the present one."""
    return open_dataset(folder / "history" / "0001").fingerprint


def test_a_data_set_that_has_moved(grown: TrackedModel, call_job: RunJob) -> None:
    folder = grown.folder / "my data [v2]"
    undo_last(folder, map_sequentially)
    folder.rename(grown.folder / "moved")
    done = call_job("evaluate", "--run", "linear")
    fails(done, 1, f"is no longer in {folder}")
    args = ["moved" if word == "DATASET" else word for word in advised(done, "evaluate")]
    fails(call_job("evaluate", *args), 0)
    fails(call_job("promote", "--run", "linear", "--dry-run"), 0)


def test_images_that_are_taken_for_a_data_set(made_up: MadeUp, call_job: RunJob) -> None:
    done = call_job("train", "smoke", "--data", made_up.folder, "--weights", "none")
    fails(done, 1, f"{made_up.folder} is not a prepared data set")
    assert advised(done, "prepare") == ["--raw", str(made_up.folder), "--out", "DATASET"]


def test_a_data_set_without_bins_is_prepared_again_with_its_own_settings(
    made_up: MadeUp, tmp_path: Path
) -> None:
    classes = ("Flying Birds", "Winged Drones")
    settings = PrepareSettings(policy="first")
    out = tmp_path / "two classes"
    small = replace(settings, preprocessing=Preprocessing(side_px=SMALL_PX))
    planned = plan_dataset([made_up.folder], small, map_sequentially, classes=ClassSet.of(classes))
    dataset, _ = write_dataset(planned, out, map_sequentially)
    assert "--preprocessing.side-px 64" in command_for(dataset)
    with pytest.raises(DataError, match="has its images at 64 px only") as raised:
        open_at(str(out), at_bins=True)
    args = shlex.split(str(raised.value)[str(raised.value).index("python ") :])[2:]
    job = parsed("prepare", args)
    assert (job.raw, job.out, job.bins) == ((str(made_up.folder),), out, True)
    # At the side that bins need.
    assert job.settings == settings and job.classes == classes


def test_why_a_server_cannot_listen() -> None:
    in_use = cannot_listen("::1", 80, OSError(errno.EADDRINUSE, "Address in use"))
    assert str(in_use).startswith("Cannot listen on [::1]:80: Address in use. Another program")
    assert "--port from 1024" in str(cannot_listen("a", 80, OSError(errno.EACCES, "denied")))
    assert "127.0.0.1" in str(cannot_listen("a", 80, OSError(errno.EADDRNOTAVAIL, "no")))
    assert "this is no address" in str(cannot_listen("\0", 80, ValueError("embedded null")))


def test_resuming_in_another_experiment_names_its_own(tracked: TrackedModel, call: RunJob) -> None:
    MlflowClient().update_run(tracked.run_id, status="KILLED")
    done = call("train", "--resume", "linear", "--experiment", "my other")
    MlflowClient().update_run(tracked.run_id, status="FINISHED")
    runs.connect()
    fails(done, 1, "It belongs to the experiment drone: add --experiment drone")
