"""Class names as people have them, from the raw folder to the served model."""

import json
import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from drone.data.prepare.class_names import check_classes
from drone.errors import ConfigError, RunError, TrackingError
from drone.labels import ClassSet, abbreviated
from drone.names import key, short_key
from drone.search.study import TrialRecord
from drone.synth.drawing import draw
from drone.tracking import registry, runs
from drone.tracking.study_runs import TrialRuns
from drone.training.epoch_metrics import EpochMetrics
from tests.conftest import SMALL_PX, RunJob

NAMES = (
    *("Birds & bats", "Drones (quad, big)", "VTOL+fixed-wing", "Möwen <b>", "CON", "n" * 200),
    *("NA", "01", "1", "100 %", "a:b", "🛸", 'o\'hara "x"', "FB", "<25 kg", ">25 kg"),
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs.connect()
    return tmp_path


def test_every_class_has_its_metric_in_mlflow(store: Path) -> None:
    classes = ClassSet.of((*NAMES, "a/b", "Flying Birds"))
    metrics = EpochMetrics(len(classes), torch.device("cpu")).metrics("validation", classes)
    warnings: list[str] = []
    with runs.start_run("names", warnings.append) as run:
        run.log_history([{"epoch": 1, "time_ms": 1, "metrics": metrics}])
    assert not warnings
    logged = MlflowClient().get_run(run.run_id).data.metrics
    assert metrics.keys() <= logged.keys() and len(metrics) == 4 + len(classes)
    assert {"validation/recall_Birds :26: bats", "validation/recall_CON"} <= logged.keys()


def test_ordinary_names_stay_and_different_ones_stay_different() -> None:
    for name in ("Flying Birds", "VTOL-2_b.c", "Möwen", "n" * 200):
        assert key(name) == name
    similar = ["a&b", "a:26:b", "a:b", "a/b", "a b", "a\\b", "ab"]
    assert len({key(name) for name in similar}) == len(similar)
    long = ["é&" * 100, "é&" * 100 + "x"]
    assert len({short_key(name) for name in long}) == 2
    assert all(len(short_key(name)) < 80 for name in long)
    assert abbreviated(["Flying Birds", "FB"]) == ["Flying Birds", "FB"]


def test_folders_of_classes_that_differ_in_punctuation_alone() -> None:
    classes = ClassSet.of(("<25 kg", ">25 kg", "Möwen", "🛸", "S"))
    assert [classes.match(name) for name in classes] == list(classes)
    assert classes.match("25kg") is None
    assert classes.match("Mo\u0308wen") == "Möwen"  # As macOS writes it.
    assert classes.match("🐦") is None and classes.match("&") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        ("a\nb", "control characters"),
        ("\x1b[2J", "control characters"),
        (os.fsdecode(b"\xff"), "control characters"),
        ("n" * 201, "at most 200 bytes"),
        ("&" * 100, "more than 200 characters"),
        ("total", "another column"),
        ("index", "another column"),
        ("birds", "each must differ"),
    ],
)
def test_names_that_no_class_can_have(call_job: RunJob, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_classes(ClassSet.of(("birds", name)))
    done = call_job("prepare", "--raw", "x", "--out", "y", "--classes", "birds", name)
    assert done.code == 2 and message in " ".join(done.err.replace("│", "").split())
    assert "Traceback" not in done.err


def test_what_mlflow_refuses_is_no_outage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [{"epoch": 1, "time_ms": 1, "metrics": {"bad & name": 0.5}}]
    warnings: list[str] = []
    with runs.start_run("refused", warnings.append) as run:
        run.log_history(history)
        assert len(warnings) == 1 and "refuses the metrics of run refused" in warnings[0]
        assert "does not answer" not in warnings[0]
        # At once: a minute of retries would change nothing.
        monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
        with pytest.raises(TrackingError, match="refuses to log .*bad & name"):
            run.catch_up(history)
        record = TrialRecord(0, {}, 0, state="finished", history=history)
        trials = TrialRuns(run.run_id, warnings.append)
        trials.start("trials", record, "trial", {}, {})
        trials.update("trials", record)
        with pytest.raises(TrackingError, match="refuses to log .*1 trials are not logged"):
            trials.catch_up(lambda part, record: None, "resume it")


def test_a_deleted_experiment_is_no_outage(store: Path) -> None:
    client = MlflowClient()
    client.delete_experiment(client.get_experiment_by_name("drone").experiment_id)
    with pytest.raises(RunError, match="The experiment 'drone' was deleted. Restore it"):
        runs.connect()


def test_models_of_names_that_are_no_paths(store: Path) -> None:
    with runs.start_run("model", print) as run:
        pass
    for name in ("a & b", "a#b?", "Möwen <b>"):
        MlflowClient().create_registered_model(name)
        version = MlflowClient().create_model_version(name, store.as_uri(), run.run_id).version
        document = {"passed": True, "rules": [], "candidate": name, "when": "now"}
        registry.record_gate_decision(name, version, run.run_id, document, "")
        assert registry.read_gate_decision(name, version)["candidate"] == name


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_whole_way(run_job: RunJob, call_job: RunJob, tmp_path: Path) -> None:
    classes = ("Birds & bats", "Drones (quad, big)", "Möwen <b>", "a/b")
    for number, name in enumerate(classes):
        folder = tmp_path / "raw" / name.replace("/", "_")
        folder.mkdir(parents=True)
        for index in range(12):
            kind = ("Flying Birds", "Large QuadCopters", "Small QuadCopters", "Winged Drones")
            image = draw(kind[number], 90, 80, np.random.default_rng([number, index]))
            image.save(folder / f"{index}.png")
    args = ["--preprocessing.side-px", SMALL_PX, "--classes", *classes]
    done = run_job("prepare", "--raw", "raw", "--out", "set", *args)
    assert done.code == 0, done.err
    flags = ["--weights", "none", "--epochs", 2, "--batch-size", 8, "--precision", "fp32"]
    done = run_job("train", "smoke", "--data", "set", *flags, "--name", "<b> & c", "--json")
    assert done.code == 0 and "does not answer" not in done.err, done.err
    run_id = done.result["run_id"]
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert {f"validation/recall_{key(name)}" for name in classes} <= metrics.keys()
    done = call_job("evaluate", "--run", "<b> & c", "--json")
    assert done.code == 0 and set(done.result["by_class"]) == set(classes), done.err
    html = Path(done.result["report"]).read_text()
    assert "Birds &amp; bats" in html and "Möwen &lt;b&gt;" in html and "<b>: " not in html
    (tmp_path / "raw").rename(tmp_path / "raw & #1")
    done = call_job("evaluate", "--run", run_id, "--images", "raw & #1", "--json")
    assert done.code == 0 and done.result["on"] == "images-raw :26: :23:1", done.err
    assert f"{done.result['on']}/accuracy" in MlflowClient().get_run(run_id).data.metrics
    limits = ["--limits.min-recall", 0, "--limits.max-ece", 1, "--limits.min-accepted", 0]
    done = call_job("promote", "--run", run_id, *limits, "--name", "a & b", "--json")
    assert done.code == 0 and done.result["promoted"], done.err
    done = call_job("export", "--model", "models:/a & b@champion", "--out", "out")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "model.json").read_text())["classes"] == list(classes)
