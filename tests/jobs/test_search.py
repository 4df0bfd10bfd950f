"""A search, by the commands that a user types, on real Ray, Optuna and MLflow."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import urllib.parse
from dataclasses import replace
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from drone.config import flatten, override, to_dict
from drone.data.dataset import Dataset
from drone.search.study import Study, TrialRecord
from drone.tracking import runs as tracking
from drone.tracking.runs import TrackedRun
from drone.training.config import TrainConfig
from drone.workflows import search
from ray_jobs import tune
from tests.browser import chromium
from tests.conftest import RunJob, run_to_end
from tests.jobs.processes import free_port, points, started, tracking_server, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# Strength 0 makes all epochs read one view, so that the store is read in trials this short too.
QUICK = ["--data", "dataset", "--weights", "none", "--epochs", "3", "--concurrency", "1"]
QUICK += ["--num-trials", "5", "--vary", "model.unfreeze_depth=0,2", "augment.strength=0,0.5"]
QUICK += ["batch_size=16", "precision=fp32", "--folds", "2"]


@pytest.fixture(scope="module")
def folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, in which jobs run and MLflow keeps its store."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(dataset.folder, folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict:
    """The result of a study that was not disturbed."""
    args = [*QUICK, "--name", "calm", "--confirm", "1", "2", "--json"]
    done = run_to_end("tune", *args, cwd=folder)
    assert done.code == 0, done.err
    return done.result


@pytest.fixture
def client(folder: Path) -> MlflowClient:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    return MlflowClient()


def children(client: MlflowClient, parent: str, part: str) -> dict[int, mlflow.entities.Run]:
    """The trials' runs by number."""
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    runs = [run for run in found if run.data.tags["study.part"] == part]
    numbers = [int(run.data.tags["study.trial"]) for run in runs]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, runs, strict=True))


def outcome(record: TrialRecord) -> tuple[object, ...]:
    """The outcome of a trial, without its times."""
    epochs = [
        {name: value for name, value in entry["metrics"].items() if name[:5] != "speed"}
        for entry in record.history
    ]
    return record.number, record.params, record.state, record.score, epochs


def in_optuna(folder: Path, name: str) -> list[tuple[object, ...]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{folder}/studies/{name}/optuna.db"
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [(one.number, one.state, one.params, one.intermediate_values) for one in trials]


def test_a_study_is_complete_in_mlflow(folder: Path, result: dict, client: MlflowClient) -> None:
    parent = client.get_run(result["run_id"])
    assert parent.info.status == "FINISHED" and parent.info.run_name == "calm"
    assert parent.data.params["space.model.unfreeze_depth"] == "0, 2"
    trials = children(client, result["run_id"], "trials")
    records = Study(folder / "studies" / "calm").records("trials")
    assert sorted(trials) == [record.number for record in records] == [0, 1, 2, 3, 4]
    for record in records:
        run = trials[record.number]
        assert run.info.status == ("FINISHED" if record.state in ("finished", "pruned") else "")
        assert run.data.tags["state"] == record.state
        for name, value in record.params.items():
            assert run.data.params[name] == str(value)
        depth, width = record.params["model.unfreeze_depth"], record.params["model.head_width"]
        assert run.info.run_name.startswith(f"d{depth} w{width} a")
        assert run.data.metrics["score"] == record.score
        assert run.data.metrics["score_se"] == record.score_se
        assert run.data.metrics["folds"] == len({entry["fold"] for entry in record.history})
        assert run.data.metrics["log_loss"] == record.score
        assert run.data.metrics["resource/wall_s"] > 0
        for values in points(client, run.info.run_id).values():
            # Means over the folds, so each epoch once.
            steps = sorted({entry["epoch"] for entry in record.history})
            assert [step for step, _ in values] == steps
        # Test is read by the final run alone.
        assert not any(name.startswith("test/") for name in run.data.metrics)
        assert ("optim.lr_backbone" in record.params) == (depth > 0)
    artifacts = {item.path for item in client.list_artifacts(result["run_id"], "study")}
    assert {"study/report.html", "study/trials.csv", "study/learning_curves.png"} <= artifacts
    assert "study/race.png" in artifacts and parent.data.params["folds"] == "2"
    assert parent.data.tags["verdict"] == result["best"]["sentence"]
    assert "study/optimization_history.png" in artifacts
    html = (folder / "studies" / "calm" / "report" / "report.html").read_text()
    assert "http" not in html and "Learning curves" not in html.split("<h2>")[0]
    assert len(pd.read_csv(folder / "studies" / "calm" / "report" / "trials.csv")) == 5


def test_the_best_is_confirmed_trained_evaluated_and_promoted(
    folder: Path, result: dict, client: MlflowClient
) -> None:
    repeats = children(client, result["run_id"], "confirm")
    best = result["best"]["trial"]
    # The best one and the preset, which is trial 0.
    assert {0, best} <= set(repeats) and len(repeats) in (1, 2)
    for record in Study(folder / "studies" / "calm").records("confirm"):
        assert [entry["fold"] for entry in record.history] == [0, 0, 0, 1, 1, 1]
    assert {run.data.params["seed"] for run in repeats.values()} == {"1"}
    config = override(
        TrainConfig(), yaml.safe_load(Path(result["best"]["config"]).read_text()), "best.yaml"
    )
    final = client.get_run(result["final_run_id"])
    for name, value in flatten(to_dict(config)).items():
        assert final.data.params[name] == str(value)
    assert final.data.metrics["test/accuracy"] == result["test"]["accuracy"]
    # Nothing was held out: epochs and calibration are those of the answers out of fold.
    assert config.train_on == "train+validation" == final.data.tags["train_on"]
    chosen = repeats[best].data.metrics
    assert final.data.metrics["best/epoch"] == config.stop_epoch == chosen["best_epoch"]
    assert config.calibration.temperature == chosen["temperature"]
    assert not any(name.startswith("validation/") for name in final.data.metrics)
    registered = client.search_model_versions("name = 'drone-classifier'")
    assert [version.run_id for version in registered] == [result["final_run_id"]]
    assert registered[0].tags["gate"] == ("passed" if result["promoted"] else "failed")


def test_why_shows_the_decision_again(folder: Path, result: dict, call_job: RunJob) -> None:
    done = call_job("promote", "--why", "1", "--json", cwd=folder)
    assert done.code == 0, done.err
    rules = {rule["name"]: rule["figures"] for rule in done.result["rules"]}
    assert "there is no champion yet" in rules["macro F1"]
    assert "ms per image" in rules["latency"]
    assert done.result["passed"] == result["promoted"]
    missing = call_job("promote", "--why", "7", cwd=folder)
    assert missing.code == 1 and "There is no version 7 of" in missing.err


@pytest.mark.slow
def test_trials_can_be_compared_in_the_ui(folder: Path, result: dict, client: MlflowClient) -> None:
    trials = children(client, result["run_id"], "trials").values()
    ids = json.dumps([run.info.run_id for run in trials])
    experiment = next(iter(trials)).info.experiment_id
    port = free_port()
    page_of = f"http://127.0.0.1:{port}/#/compare-runs?"
    page_of += urllib.parse.urlencode({"runs": ids, "experiments": json.dumps([experiment])})
    with chromium() as browser, tracking_server(folder, port, "mlflow.db"):
        page = browser.new_page(viewport={"width": 1600, "height": 1400})
        page.goto(page_of)
        for run in trials:
            page.get_by_text(run.info.run_name).first.wait_for(timeout=60_000)
        page.get_by_text("augment.strength").first.wait_for()
        # The list shows the first metrics by name.
        for metric in ("accuracy_se", "log_loss"):
            page.get_by_text(metric, exact=True).locator("visible=true").first.wait_for()


@pytest.mark.slow
def test_a_killed_study_resumes_as_if_undisturbed(
    folder: Path, result: dict, client: MlflowClient, run_job: RunJob
) -> None:
    study = folder / "studies" / "killed"
    args = [*QUICK, "--name", "killed", "--confirm", "0", "0", "--no-final"]
    generator = random.Random(0)
    for sent in (signal.SIGKILL, signal.SIGINT):
        with started(folder, "tune", *args) as job:
            # Within the next trial, wherever that is then.
            known = len(list((study / "trials").glob("0*.json")))
            wait_for(lambda known=known: len(list((study / "trials").glob("0*.json"))) > known)
            with pytest.raises(subprocess.TimeoutExpired):
                job.wait(timeout=generator.uniform(0, 0.8))
            os.killpg(job.pid, sent)
            code = job.wait(timeout=120)
        assert code == (130 if sent is signal.SIGINT else -signal.SIGKILL)
        args = ["--resume", "killed", "--concurrency", "1", "--confirm", "0", "0", "--no-final"]
    assert f"Continue: python ray_jobs/tune.py --resume {study}" in (folder / "job.log").read_text()
    parent = Study(study).read_spec().run_id
    assert client.get_run(parent).info.status == "KILLED"
    done = run_job("tune", *args, "--json", cwd=folder)
    assert done.code == 0, done.err
    assert done.result["run_id"] == parent
    calm, killed = (
        Study(folder / "studies" / name).records("trials") for name in ("calm", "killed")
    )
    assert [outcome(record) for record in killed] == [outcome(record) for record in calm]
    assert in_optuna(folder, "killed") == in_optuna(folder, "calm")
    left, right = (children(client, run_id, "trials") for run_id in (result["run_id"], parent))
    assert set(right) == set(left)
    for number, run in left.items():
        other = right[number]
        assert (other.info.status, other.info.run_name) == (run.info.status, run.info.run_name)
        assert points(client, other.info.run_id) == points(client, run.info.run_id)
    assert client.get_run(parent).info.status == "FINISHED"
    # A trial more changes the race, so what the others came to is compared before.
    added = run_job("tune", *args, "--add-trials", 1, "--json", cwd=folder)
    assert added.code == 0, added.err
    killed = Study(study).records("trials")
    assert len(killed) == 6 and killed[5].has_ended
    assert set(children(client, parent, "trials")) == {*left, 5}


@pytest.mark.slow
def test_a_trial_of_two_workers_learns_what_a_trial_of_one_learns(
    folder: Path, result: dict, client: MlflowClient, run_job: RunJob
) -> None:
    args = [*QUICK, "--name", "pairs", "--workers-per-trial", 2, "--num-trials", 1]
    done = run_job("tune", *args, "--confirm", 0, 0, "--no-final", "--json", cwd=folder)
    assert done.code == 0, done.err
    one, two = (Study(folder / "studies" / name).records("trials")[0] for name in ("calm", "pairs"))
    assert (one.params, one.state) == (two.params, two.state)
    losses = [[entry["metrics"]["train/loss"] for entry in told.history] for told in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    (run,) = children(client, done.result["run_id"], "trials").values()
    steps = [step for step, _ in points(client, run.info.run_id)["train/loss"]]
    assert steps == [1, 2, 3]


@pytest.mark.slow
def test_a_study_where_every_trial_fails(folder: Path, run_job: RunJob) -> None:
    shutil.copytree(folder / "dataset", folder / "damaged")
    shard = folder / "damaged" / "pixels" / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # Its checksum differs, which a trial notices when it reads the shard.
    shard.write_bytes(content)
    args = [*QUICK, "--name", "failing", "--num-trials", 2, "--no-final"]
    done = run_job("tune", *args, "--data", "damaged", cwd=folder)
    assert done.code == 1
    assert f"All 2 trials failed. The last one: {shard} is missing or damaged" in done.err
    records = Study(folder / "studies" / "failing").records("trials")
    assert [record.state for record in records] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name a data set: --data DATASET"),
        (["--data", "d", "--add-trials", "3"], "--add-trials needs --resume"),
        (["--data", "d", "--vary", "optim.lr_hed=1"], "Did you mean 'optim.lr_head'?"),
        (["--data", "d", "--space", "no.yaml"], "Cannot read no.yaml"),
        (["--data", "d", "--num-trials", "0"], "--num-trials must be at least 1"),
        (["--data", "nowhere"], "nowhere is not a prepared data set"),
        (["--resume", "nothing"], "There is no study nothing in studies"),
        (["--resume", ""], "--resume is empty"),
        (["--resume", "s", "--num-trials", "9"], "--num-trials is fixed when a study starts"),
        (["--resume", "s", "--vary", "batch_size=8"], "--vary is fixed when a study starts"),
        (["--resume", "s", "--num-trials=30"], "--num-trials is fixed when a study starts"),
        (["--resume", "s", "--storage", "elsewhere"], "--storage is fixed when a study starts"),
    ],
)
def test_wrong_usage(call_job: RunJob, args: list[str], message: str) -> None:
    done = call_job("tune", *args)
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_a_resumed_study_keeps_its_flags_and_says_what_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--no-final", "--confirm", "1", "2", "--concurrency", "1", "--model-name", "m"]
    flags += ["--time-budget-min", "5", "--no-doctor", "--experiment", "e", "--name", "s"]
    flags += ["--activation-cache-gb", "2", "--workers-per-trial", "2", "--gpus-per-worker", "0"]
    started = tune.parse(["--data", "d", *flags, "--activation-cache", "cache"])
    study, spec = search.create_study(tune._new_study(started))
    study.write_spec(replace(spec, options=tune._options(started)))
    resumed = tune.parse(["--resume", "s", "--add-trials", "3"])
    assert (resumed.final, resumed.confirm, resumed.model_name) == (False, (1, 2), "m")
    assert resumed.activation_cache == tmp_path / "cache" and resumed.add_trials == 3
    assert tune._options(resumed) == tune._options(started)
    changed = tune.parse(["--resume", "s", "--final", "--concurrency", "None"])
    assert changed.final and changed.concurrency is None and changed.confirm == (1, 2)
    tune._show_changes(tune._options(started), tune._options(changed))
    assert capsys.readouterr().out.splitlines() == [
        "--final is True from now on; the study had False.",
        "--concurrency is None from now on; the study had 1.",
    ]


def test_what_vary_overrules_leaves_no_trace_on_the_space(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("model.unfreeze_depth: 0\n")
    job = tune.Tune(
        data="d",
        space=tmp_path / "space.yaml",
        vary=("model.unfreeze_depth=0,5",),
        studies=tmp_path,
    )
    _, spec = search.create_study(tune._new_study(job))
    assert "optim.lr_backbone" in spec.space


def test_eight_writers_on_one_sqlite_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracking.connect()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("drone").experiment_id
    warnings: list[str] = []
    runs = [
        TrackedRun(client.create_run(experiment).info.run_id, f"trial {n}", warnings.append, set())
        for n in range(8)
    ]
    metrics = {f"train/{name}": 0.5 for name in "abcdefgh"}

    def write(run: TrackedRun) -> None:
        history = []
        for epoch in range(1, 13):
            history.append({"epoch": epoch, "time_ms": epoch, "metrics": metrics})
            run.log_history(history)

    threads = [threading.Thread(target=write, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not warnings
    for run in runs:
        for name in metrics:
            steps = [point.step for point in client.get_metric_history(run.run_id, name)]
            assert steps == list(range(1, 13))
