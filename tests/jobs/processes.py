"""Jobs in processes of their own, and what they left in MLflow."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

from tests.conftest import job_command, job_environment


def points(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each metric by epoch, as they were logged."""
    names = client.get_run(run_id).data.metrics
    kept = [name for name in names if name.split("/")[0] in ("train", "validation", "lr")]
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in kept
    }


def wait_for(condition: Callable[[], object], timeout_s: float = 150) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@contextlib.contextmanager
def started(
    place: Path, name: str, *words: object, **environment: str
) -> Iterator[subprocess.Popen]:
    """A job that runs while the block does, in a process group of its own."""
    with (place / "job.log").open("w") as log:
        job = subprocess.Popen(
            job_command(name, *words),
            cwd=place,
            env=job_environment(**environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def workers_of(job: subprocess.Popen) -> list[psutil.Process]:
    """The processes that train."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(job.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(cmdline(child))]
    return []


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []
