"""From raw folders to a champion, by the commands that a user types, on real Ray."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from drone.data.dataset import open_dataset
from drone.files import checksum, seal, unseal
from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from drone.serving.roles import decide
from drone.training.checkpoint import SCHEMA, STATE_FILE
from tests.conftest import ROOT, SMALL_PX, MadeUp, RunJob, job_environment, run_to_end
from tests.jobs.processes import (
    free_port,
    is_up,
    points,
    started,
    tracking_server,
    wait_for,
    workers_of,
)
from tests.training.short_runs import TIMINGS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EPOCHS = 10
"""Long enough to be interrupted several times: a few seconds."""

QUICK = ["--weights", "none", "--batch-size", "8", "--precision", "fp32", "--epochs", str(EPOCHS)]
QUICK += ["--model.unfreeze-depth", "2", "--storage", "runs"]


@pytest.fixture(scope="module")
def folder(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, in which jobs run and MLflow keeps its store."""
    folder = tmp_path_factory.mktemp("folder")
    args = ["--raw", made_up.folder, "--out", "dataset"]
    args += ["--preprocessing.side-px", SMALL_PX, "--json"]
    done = run_to_end("prepare", *args, cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> str:
    """Id of a run that was not disturbed, of two workers."""
    args = ["finetune", "--data", "dataset", *QUICK, "--num-workers", "2"]
    done = run_to_end("train", *args, "--json", cwd=folder)
    assert done.code == 0, done.err
    return done.result["run_id"]


@pytest.fixture(scope="module")
def export(folder: Path, finished: str) -> tuple[Path, dict]:
    """The folder of the exported run, and the result of the job."""
    args = ["--run", finished, "--out", "export", "--int8", "--alarm-recall", 0.5, "--json"]
    done = run_to_end("export", *args, cwd=folder)
    assert done.code == 0, done.err
    return folder / "export", done.result


@pytest.fixture
def client(folder: Path) -> MlflowClient:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    return MlflowClient()


def newest_run(client: MlflowClient, name: str) -> str | None:
    found = client.search_runs(
        [item.experiment_id for item in client.search_experiments()],
        f"attributes.run_name = '{name}'",
    )
    return found[0].info.run_id if found else None


def checkpoints(folder: Path, run_id: str) -> list[Path]:
    return sorted((folder / "runs" / run_id).glob("attempt_*/checkpoint_*/state.json"))


def attempts_of(folder: Path, run_id: str) -> set[Path]:
    """Starts of a run that have a checkpoint."""
    return {file.parents[1] for file in checkpoints(folder, run_id)}


def test_a_run_is_complete_in_mlflow(folder: Path, finished: str, client: MlflowClient) -> None:
    run = client.get_run(finished)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.unfreeze_depth"] == "2"
    assert int(run.data.params["parameters"]) > int(run.data.params["parameters_trainable"]) > 0
    assert run.data.tags["pretrained"] == "none"
    description = json.loads((folder / "dataset" / "dataset.json").read_text())
    assert run.data.tags["fingerprint"] == description["fingerprint"]
    assert run.inputs.dataset_inputs[0].dataset.digest == description["fingerprint"][:36]
    history = points(client, finished)
    assert all(
        [step for step, _ in values] == list(range(1, EPOCHS + 1)) for values in history.values()
    )
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert run.data.metrics["model/onnx_max_difference"] < 1e-3


@pytest.mark.slow
def test_a_run_that_loses_workers_and_is_stopped_gives_the_undisturbed_result(
    folder: Path, finished: str, client: MlflowClient, run_job: RunJob
) -> None:
    args: list[object] = ["finetune", "--data", "dataset", *QUICK, "--name", "stopped"]
    args += ["--checkpoint-interval-s", "0.5"]
    attempts: set[Path] = set()
    # Each time a worker dies first, then the job: by a power cut, then by being told to end.
    for to_worker, to_job in ((signal.SIGTERM, signal.SIGKILL), (signal.SIGKILL, signal.SIGTERM)):
        with started(folder, "train", *args, "--num-workers", 2) as job:
            wait_for(lambda: newest_run(client, "stopped"))
            run_id = newest_run(client, "stopped")
            # A checkpoint of this attempt: one of an earlier attempt may just have become whole.
            wait_for(lambda run_id=run_id, known=attempts: attempts_of(folder, run_id) - known)
            lost = workers_of(job)[-1]
            lost.send_signal(to_worker)
            wait_for(lambda job=job, lost=lost: workers_of(job) and lost not in workers_of(job))
            if to_job is signal.SIGTERM:
                job.send_signal(to_job)
            else:
                os.killpg(job.pid, to_job)
            code = job.wait(timeout=120)
        attempts = attempts_of(folder, run_id)
        output = (folder / "job.log").read_text()
        status = client.get_run(run_id).info.status
        if to_job is signal.SIGKILL:
            assert status == "RUNNING"
        else:
            assert (code, status) == (130, "KILLED"), output
            assert f"Continue: python ray_jobs/train.py --resume {run_id}" in output
            assert "Resuming from epoch" in output
        args = ["--resume", "stopped"]
    done = run_job("train", *args, "--num-workers", 2, "--json", cwd=folder)
    assert done.code == 0, done.err
    assert done.result["run_id"] == run_id
    assert points(client, run_id) == points(client, finished)
    assert client.get_run(run_id).info.status == "FINISHED"
    again = run_job("train", "--resume", "stopped", cwd=folder)
    assert again.code == 1
    assert "Cannot resume run stopped: it is finished" in again.err


def test_evaluate_and_promote(
    folder: Path, finished: str, client: MlflowClient, made_up: MadeUp, call_job: RunJob
) -> None:
    early = call_job("promote", "--run", finished, cwd=folder)
    assert early.code == 1
    assert "python ray_jobs/evaluate.py --run" in early.err
    done = call_job("evaluate", "--run", finished, "--json", cwd=folder)
    assert done.code == 0, done.err
    report = Path(done.result["report"])
    html = report.read_text()
    assert "http://" not in html and "https://" not in html  # Nothing beside it is needed.
    predictions = pd.read_csv(report.with_name("predictions.csv"))
    assert predictions["right"].mean() == pytest.approx(done.result["accuracy"])
    manifest = pd.read_parquet(folder / "dataset" / "manifest.parquet")
    assert set(predictions["path"]) == set(manifest.loc[manifest["split"] == "test", "path"])
    assert client.get_run(finished).data.metrics["test/accuracy"] == done.result["accuracy"]
    assert client.get_run(finished).info.status == "FINISHED"
    artifacts = {item.path for item in client.list_artifacts(finished, "evaluation/test")}
    assert "evaluation/test/report.html" in artifacts

    seen = call_job("evaluate", "--run", finished, "--images", made_up.folder, "--json", cwd=folder)
    assert seen.code == 0, seen.err
    trained = set(manifest.loc[manifest["split"].isin(["train", "validation"]), "path"])
    assert trained <= set(seen.result["left_out"])

    strict = call_job(
        "promote", "--run", finished, "--limits.min-recall", 1, "--name", "other", cwd=folder
    )
    assert strict.code == 1 and "did not pass the gate (" in strict.err
    assert "minimum recall" in strict.err and "the champion stays" in strict.err
    assert "python ray_jobs/promote.py --why 1 --name other" in strict.err
    lax = ["--limits.min-recall", 0, "--limits.max-ece", 1]
    dry = call_job("promote", "--run", finished, "--dry-run", *lax, cwd=folder)
    assert dry.code == 0 and "Nothing was changed" in dry.out
    assert [model.name for model in client.search_registered_models()] == ["other"]
    first = call_job("promote", "--run", finished, "--json", *lax, cwd=folder)
    assert first.code == 0, first.err
    assert client.get_model_version_by_alias("drone-classifier", "champion").run_id == finished
    again = call_job("promote", "--run", finished, cwd=folder)
    assert again.code == 0 and "already" in again.out
    back = call_job("promote", "--rollback", cwd=folder)
    assert back.code == 1 and "Cannot roll back drone-classifier" in back.err

    model = "models:/drone-classifier@champion"
    named = call_job("evaluate", "--model", model, "--json", cwd=folder)
    assert named.code == 0, named.err
    assert named.result["accuracy"] == done.result["accuracy"]


def test_the_logged_model_predicts_over_http(
    folder: Path, finished: str, client: MlflowClient, made_up: MadeUp
) -> None:
    model = client.get_run(finished).outputs.model_outputs[0].model_id
    port = free_port()
    args = ["-m", "mlflow", "models", "serve", "-m", f"models:/{model}"]
    args += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *args],
        cwd=folder,
        # The model's artifacts hold no code: MLflow loads them by a module of the checkout.
        env=job_environment(
            MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", PYTHONPATH=str(ROOT)
        ),
        start_new_session=True,
    )
    image = next(made_up.folder.glob("Winged Drones/winged_00*.jpg")).read_bytes()
    try:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/ping"))
        status, response = predict(port, base64.b64encode(image).decode())
        assert status == 200
        row = response["predictions"][0]
        assert sum(row[name] for name in CLASSES) == pytest.approx(1)
        assert row["label"] == max(CLASSES, key=row.__getitem__)
        # One bad image of a batch fails alone.
        status, response = predict(port, base64.b64encode(b"no image").decode())
        (row,) = response["predictions"]
        assert status == 200 and row["label"] is None and "Not an image" in row["error"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def test_export_checks_calibrates_and_describes(folder: Path, export: tuple[Path, dict]) -> None:
    exported, result = export
    parity, int8 = result["parity"], result["int8"]
    assert parity["max_difference"] < 1e-3 and parity["top1_agreement"] == 1
    assert parity["num_images"] == len(open_dataset(folder / "dataset").split("test"))
    facts = json.loads((exported / "model.json").read_text())
    predictor = Predictor(exported / "model.onnx")
    assert facts["classes"] == list(predictor.info.classes)
    assert facts["temperature"] == predictor.info.temperature != 1
    assert 0 < facts["unsure_below"] == predictor.info.unsure_below < 1
    assert facts["fingerprint"] == open_dataset(folder / "dataset").fingerprint
    assert (exported / "model.int8.onnx").exists() == int8["kept"]
    assert int8["kept"] == (
        int8["accuracy_int8"] >= int8["accuracy_fp32"] - 0.005 and int8["speedup"] > 1
    )
    assert int8["size_mb"] < 0.5 * (exported / "model.onnx").stat().st_size / 1e6
    assert 0 < facts["alarm_above"] == predictor.info.alarm_above
    # The temperature makes validation likelier, and the file is_up what it says.
    validation = open_dataset(folder / "dataset").split("validation")
    pixels = validation.gather(np.arange(len(validation)))
    rows = np.arange(len(validation))
    plain, calm = predictor.predict_uncalibrated(pixels), predictor.predict_pixels(pixels)
    assert (
        -np.log(calm[rows, validation.labels_N]).mean()
        <= -np.log(plain[rows, validation.labels_N]).mean() + 1e-6
    )
    # The reference for drift is of the same answers, after the temperature.
    reference = predictor.info.reference
    assert reference is not None
    confidence_N = calm[rows, decide(calm, predictor.info.classes)]
    bins_N = np.digitize(confidence_N, reference.edges)
    assert list(reference.confidence) == list(
        np.bincount(bins_N, minlength=len(reference.edges) + 1)
    )


def test_an_export_without_parity_is_refused(
    folder: Path, finished: str, call_job: RunJob, tmp_path: Path
) -> None:
    # The checkpoint of another run in the folder of this one's.
    runs = tmp_path / "runs"
    shutil.copytree(folder / "runs" / finished, runs)
    for file in runs.rglob("best.pt"):
        state = torch.load(file, weights_only=True)
        for value in state.values():
            if value.is_floating_point():
                value.add_(0.05)
        torch.save(state, file)
        position = unseal(file.with_name(STATE_FILE).read_bytes(), SCHEMA)
        position["files"][file.name] = checksum(file)
        file.with_name(STATE_FILE).write_bytes(seal(position, SCHEMA))
    original = folder / "runs" / finished
    aside = original.with_name("aside")
    original.rename(aside)
    try:
        gone = call_job("export", "--run", finished, "--out", "other", cwd=folder)
        assert gone.code == 1 and "--unchecked" in gone.err
        shutil.copytree(runs, original)
        done = call_job("export", "--run", finished, "--out", "other", cwd=folder)
        assert done.code == 1, done.out
        num_test = len(open_dataset(folder / "dataset").split("test"))
        assert f"fails the parity check on {num_test} images" in done.err
        assert "damaged" not in done.err
        assert not (folder / "other").exists()
    finally:
        shutil.rmtree(original, ignore_errors=True)
        aside.rename(original)


def test_a_run_is_served(
    folder: Path, finished: str, export: tuple[Path, dict], made_up: MadeUp
) -> None:
    port = free_port()
    image = next(made_up.folder.glob("Winged Drones/winged_00*.jpg")).read_bytes()
    with started(folder, "serve", "--run", finished, "--port", port) as server:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", image)
        with urllib.request.urlopen(request, timeout=60) as response:
            response = json.loads(response.read())
        assert sum(response["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/model", timeout=60) as response:
            served = json.loads(response.read())
        with pytest.raises(urllib.error.HTTPError, match="415"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", b"text", timeout=60)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=90) == 130, (folder / "job.log").read_text()
    # As sure, and as unsure, as the exported file.
    exported = json.loads((export[0] / "model.json").read_text())
    assert served["temperature"] == exported["temperature"] != 1
    assert served["unsure_below"] == exported["unsure_below"] > 0


def predict(port: int, image: str) -> tuple[int, dict]:
    body = json.dumps({"dataframe_records": [{"image": image}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.slow
def test_training_survives_the_loss_of_the_tracking_server(
    folder: Path, finished: str, run_job: RunJob
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    args = ["finetune", "--data", "dataset", *QUICK, "--num-workers", 2]
    args += ["--name", "server-lost"]
    with contextlib.ExitStack() as stack:
        with tracking_server(folder, port, "server.db"):
            job = stack.enter_context(started(folder, "train", *args, MLFLOW_TRACKING_URI=uri))
            client = MlflowClient(uri)
            wait_for(lambda: (folder / "job.log").read_text().count("of them trainable"))
            run_id = newest_run(client, "server-lost")
            wait_for(lambda: workers_of(job))
        log = folder / "job.log"
        wait_for(lambda: "raining continues" in log.read_text())
        wait_for(lambda: f"epoch {EPOCHS:>3}/{EPOCHS}" in log.read_text())
        with tracking_server(folder, port, "server.db"):
            assert job.wait(timeout=200) == 0, log.read_text()
            client = MlflowClient(uri)
            assert client.get_run(run_id).info.status == "FINISHED"
            history = points(client, run_id)
    local = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert history == points(local, finished)
    assert set(TIMINGS).isdisjoint(history)
