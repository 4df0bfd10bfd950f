"""Passwords, keys and tokens: not shown, not stored, and not readable by others."""

import contextlib
import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.tracking import MlflowClient

from drone import secret_file
from drone.cluster import connection, doctor
from drone.errors import ConfigError, DroneError, TrackingError
from drone.redaction import redact, without_mask
from drone.search.study import Study, StudySpec
from drone.tracking import runs
from drone.tracking.server import ServerSettings
from drone.training.config import TrainConfig
from drone.workflows.run_spec import RunSpec, read_spec
from tests.conftest import ROOT, RunJob, job_environment
from tests.jobs.processes import free_port, is_up, wait_for

SECRET = "hunter2"
SERVER = f"http://user:{SECRET}@127.0.0.1:9"
BUCKET = f"s3://AKIA123:{SECRET}/+x@bucket/runs?region=eu-west-1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("http://hunter2@host/x", "http://***@host/x"),
        ("http://user:hun@ter2@host/x", "http://***@host/x"),
        ("http://user:hun/ter2@host/x", "http://***@host/x"),
        ("s3://AKIA:hun/ter+2@bucket/runs", "s3://***@bucket/runs"),
        ("s3://AKIA:12/hunter2@bucket/runs", "s3://***@bucket/runs"),
        ("postgresql://user:hunter2@db/mlflow", "postgresql://***@db/mlflow"),
        ("s3://b/x?secret_key=hunter2&region=eu", "s3://b/x?secret_key=***&region=eu"),
        ("s3://b/x?access_key=AKIA&scheme=http", "s3://b/x?access_key=***&scheme=http"),
        ("https://h/x?X-Amz-Signature=abc&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        ("GET http://u:p@a/x, http://u:p@b/y.", "GET http://***@a/x, http://***@b/y."),
        ('{"storage": "s3://A:hunter2@b/x", "n": 1}', '{"storage": "s3://***@b/x", "n": 1}'),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/drone-classifier@champion",
        "http://127.0.0.1:5000/#/experiments/1",
        "http://127.0.0.1:5000/image@2x.png",
        "http://[::1]:5000/image@2x.png",
        "https://host/@user/page?page=2&design=a",
        "sqlite:////home/me@work/mlflow.db",
        "s3://bucket/me@work/x?region=eu-west-1",
        "write to me@work.example, see http://host/x",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_long_texts_are_redacted_in_linear_time() -> None:
    token = "t" * 1500
    assert redact(f"http://user:{token}@host/x") == "http://***@host/x"
    for part in ("http://", "http://a:", "s3://a:", "?secret", "a.a-a", "&key"):
        start = time.process_time()
        redact(part * (200_000 // len(part)))
        assert time.process_time() - start < 5, part


def test_every_error_is_redacted_in_other_processes_too() -> None:
    for kind in (DroneError, ConfigError, TrackingError):
        error = pickle.loads(pickle.dumps(kind(f"Cannot open {BUCKET}.")))
        assert type(error) is kind
        assert str(error) == "Cannot open s3://***@bucket/runs?region=eu-west-1."


def test_a_server_that_is_down_is_named_without_its_password(call_job: RunJob) -> None:
    done = call_job("promote", "--run", "r", MLFLOW_TRACKING_URI=SERVER)
    assert done.code == 1
    assert "http://***@127.0.0.1:9" in done.err and SECRET not in done.out + done.err


def test_the_traceback_of_a_bug_is_redacted(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from ray_jobs import cli\n"
        "@dataclass\n"
        "class Job:\n"
        "    json: bool = False\n"
        "def main(job):\n"
        f"    raise RuntimeError('GET {SERVER}/api failed')\n"
        "cli.start(Job, main)\n"
    )
    environment = {**job_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: GET http://***@127.0.0.1:9/api failed" in done.stderr


def test_the_result_as_json_is_redacted(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from ray_jobs import cli, console\n"
        "@dataclass\n"
        "class Job:\n"
        "    json: bool = True\n"
        "def main(job):\n"
        f"    console.show('in {BUCKET}')\n"
        f"    console.warn('in {BUCKET}')\n"
        f"    console.table('T', ['a'], [['{BUCKET}']])\n"
        f"    return {{'storage': '{BUCKET}'}}\n"
        "cli.start(Job, main)\n"
    )
    environment = {**job_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"storage": "s3://***@bucket/runs?region=eu-west-1"}
    assert done.stderr.count("s3://***@bucket/runs") == 3 and SECRET not in done.stderr


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs.connect()


def test_a_run_records_no_credentials(store: None, tmp_path: Path) -> None:
    spec = RunSpec(config=TrainConfig(), data=BUCKET, storage=BUCKET, weights="none")
    with runs.start_run("run", lambda _: None) as run:
        run.log_params({"storage": BUCKET})
        run.log_tags({"reason": f"Cannot write {BUCKET}"})
        run.log_text(spec.to_json(), "launch.json")
    data = MlflowClient().get_run(run.run_id).data
    assert data.params["storage"] == redact(BUCKET) and "***" in data.tags["reason"]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    # It resumes with the credentials of the environment.
    assert read_spec(run.run_id).storage == "s3://bucket/runs?region=eu-west-1"


def test_a_study_records_no_credentials(tmp_path: Path) -> None:
    study = Study(tmp_path / "study")
    spec = StudySpec(
        name="study",
        base=TrainConfig(),
        space={},
        data=BUCKET,
        fingerprint="",
        weights="none",
        first_trials=[],
        num_trials=1,
        scheduler="asha",
        folds=1,
        objective="log_loss",
        run_id="",
        storage=BUCKET,
    )
    study.write_spec(spec)
    assert SECRET not in (study.folder / "study.json").read_text()
    assert study.read_spec().data == study.read_spec().storage == without_mask(redact(BUCKET))


def test_raw_folders_with_credentials_are_refused_as_the_manifest_names_them(
    call_job: RunJob,
) -> None:
    done = call_job("prepare", "--raw", BUCKET, "--out", "set")
    assert done.code == 2 and "AWS_ACCESS_KEY_ID" in done.err and SECRET not in done.err


def test_the_doctor_names_a_server_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_jobs import results

    monkeypatch.setattr("ray_jobs.console.console.width", 200)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(SERVER)
    try:
        results.show_findings([doctor.check_tracking(SERVER)])
    finally:
        mlflow.set_tracking_uri(before)
    output = capsys.readouterr().out
    assert "tracking" in output and "fails" in output and SECRET not in output


def test_a_secret_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    secret = secret_file.read_or_create(file)
    assert len(secret) == 64 and secret_file.read_or_create(file) == secret
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)  # As Ray writes it.
    assert secret_file.read_or_create(file) == secret
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["token"]


def test_processes_that_start_at_once_share_a_secret(tmp_path: Path) -> None:
    code = "import pathlib, sys; from drone import secret_file as s; "
    code += "print(s.read_or_create(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path / "token")]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    secrets = {process.communicate(timeout=60)[0] for process in started}
    assert len(secrets) == 1 and len(secrets.pop().strip()) == 64


def test_the_token_of_a_local_ray_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connection._protect_token()
    assert not token.exists()
    monkeypatch.delenv("RAY_AUTH_MODE")
    connection._protect_token()
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("::1", False),
        ("10.0.0.5", True),
        ("0.0.0.0", True),
        ("head.example", True),
    ],
)
def test_a_tracking_server_that_others_reach_needs_a_password(host: str, needed: bool) -> None:
    assert settings(Path("folder"), host=host).needs_password == needed


def settings(folder: Path, host: str = "127.0.0.1", port: int = 5000) -> ServerSettings:
    return ServerSettings(
        host=host, port=port, folder=folder, backup=None, copy_interval_s=60, until_closed=None
    )


_SERVE = """
import sys
from pathlib import Path
from drone.tracking import server
server.ServerSettings.needs_password = True  # As on an address that others reach.
server.serve(
    server.ServerSettings(
        host="127.0.0.1", port=int(sys.argv[1]), folder=Path(sys.argv[2]),
        backup=None, copy_interval_s=60, until_closed=None,
    ),
    print,
)
"""


@contextlib.contextmanager
def server_with_password(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, "-c", _SERVE, str(port), str(folder)]
    environment = {**job_environment(), "PYTHONPATH": str(ROOT)}
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: is_up(f"{url}/health"), 120)
            yield url, process
        finally:
            # As by Ctrl-C: only a job makes SIGTERM end what it has started.
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


@pytest.mark.slow
def test_mlflow_with_a_password_answers_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlflow"
    with server_with_password(folder) as (url, process):
        password = (folder / "password").read_text()
        assert (folder / "password").stat().st_mode & 0o777 == 0o600
        for wrong in ("", "admin:wrong@", "admin:password1234@"):
            assert status(url.replace("http://", f"http://{wrong}")) == 401
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        client = MlflowClient(url)
        run = client.create_run(client.create_experiment("cluster")).info.run_id
        client.log_text(run, "an artifact", "note.txt")
        assert [item.path for item in client.list_artifacts(run)] == ["note.txt"]
        # In no command line, which every user of the machine can read.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in (process.pid, *children):
            assert password not in Path(f"/proc/{number}/cmdline").read_text()
    (folder / "password").unlink()  # A new one, and the store stays.
    with server_with_password(folder) as (url, _):
        assert status(url.replace("http://", f"http://admin:{password}@")) == 401
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (folder / "password").read_text())
        assert MlflowClient(url).get_experiment_by_name("cluster") is not None


def status(url: str) -> int:
    return requests.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0").status_code
