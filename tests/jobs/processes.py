"""Runs jobs in processes of their own, and reads what they logged to MLflow."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

from tests.conftest import job_environment, start_job
from tests.job_process import JobProcess


def points(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each metric that is logged by epoch."""
    names = client.get_run(run_id).data.metrics
    by_epoch = [name for name in names if name.split("/")[0] in ("train", "validation", "lr")]
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in by_epoch
    }


def wait_for(condition: Callable[[], object], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"still not so after {timeout_s:.0f} s"
        time.sleep(0.2)


@contextlib.contextmanager
def started(folder: Path, name: str, *args: object, **environment: str) -> Iterator[JobProcess]:
    """A job that runs while the block does, in a process group of its own."""
    log = folder / "job.log"
    log.write_text("")
    job = start_job(name, *args, cwd=folder, stdout=log, stderr=log, **environment)
    try:
        yield job
    finally:
        job.kill()


def workers_of(job: JobProcess, kind: str = "RayTrainWorker") -> list[psutil.Process]:
    """The processes of a job's local Ray that train, or those of another kind."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(job.pid).children(recursive=True)
        return [child for child in children if kind in " ".join(_cmdline(child))]
    return []


def _cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return bool(response.status == 200)
    return False


@contextlib.contextmanager
def tracking_server(folder: Path, port: int, store: str) -> Iterator[subprocess.Popen]:
    """MLflow's server with its UI on a sqlite store in a folder."""
    args = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    args += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/{store}"]
    args += ["--artifacts-destination", str(folder / "server-artifacts")]
    server = subprocess.Popen(
        [sys.executable, *args],
        cwd=folder,
        env=job_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        start_new_session=True,
    )
    try:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
