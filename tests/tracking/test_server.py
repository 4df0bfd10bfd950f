"""The tracking server of a cluster: its store outlives the machine."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import RunJob, job_command, job_environment
from tests.jobs.processes import free_port, is_up, wait_for


def start_server(folder: Path, port: int, *args: object) -> subprocess.Popen:
    command = job_command(
        "tracking", "--port", port, "--backup", "backup", "--copy-interval-s", 1, *args
    )
    log = (folder / f"server-{port}.log").open("w")
    return subprocess.Popen(
        command, cwd=folder, env=job_environment(), stdout=log, stderr=log, start_new_session=True
    )


def children(process: subprocess.Popen) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


@pytest.mark.slow
def test_a_store_that_is_lost_with_its_machine_is_restored(tmp_path: Path) -> None:
    port = free_port()
    first, log = start_server(tmp_path, port), tmp_path / f"server-{port}.log"
    try:
        wait_for(lambda: "MLflow on http" in log.read_text())
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.create_experiment("cluster")
        run = client.create_run(experiment, run_name="run").info.run_id
        client.log_text(run, "an artifact", "note.txt")
        # Its process dies: it is restarted, and nothing is lost.
        os.killpg(children(first)[0], signal.SIGKILL)
        wait_for(lambda: "ended with -9; restarting it." in log.read_text())
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        assert client.get_run(run).info.run_name == "run"
        client.log_metric(run, "last", 1.0)
    finally:
        first.terminate()
        assert first.wait(timeout=60) == 130
    shutil.rmtree(tmp_path / "mlflow")  # The machine is gone; the backup is not.

    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        second = start_server(tmp_path, port, "--until-closed", address)
        try:
            wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
            client = MlflowClient(f"http://127.0.0.1:{port}")
            assert client.get_run(run).data.metrics == {"last": 1.0}
            assert [item.path for item in client.list_artifacts(run)] == ["note.txt"]
        finally:
            second.terminate()
            second.wait(timeout=60)
    assert "was restored from backup" in (tmp_path / f"server-{port}.log").read_text()


def test_a_port_that_is_in_use_is_named(tmp_path: Path, run_job: RunJob) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_job("tracking", "--port", port)
    assert done.code == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in done.err and "--port" in done.err
