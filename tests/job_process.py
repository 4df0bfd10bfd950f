"""Jobs in processes of their own, forked from one that has imported the libraries already.

Importing them takes a job longer than most tests do. The program's own modules are imported by
each job, as when a user starts it.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.multiprocessing

_PRELOADED = [
    *("torch", "torch._dynamo", "torch.onnx", "torchvision.models", "onnx", "onnxscript"),
    *("onnxruntime", "pandas", "pyarrow.dataset", "scipy.optimize", "sklearn.metrics"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "tyro", "rich", "yaml"),
    *("ray", "ray.data", "ray.train.torch", "ray.tune"),
]
FORK_SERVER = multiprocessing.get_context("forkserver")
"""Starts processes that have the libraries already."""

FORK_SERVER.set_forkserver_preload(_PRELOADED)


def start_code(code: str, folder: Path, outside: Path) -> "JobProcess":
    """Starts Python code in a folder; its script and output are in another, a new one."""
    outside.mkdir()
    (outside / "code.py").write_text(code)
    environment = {**os.environ}
    environment.pop("MLFLOW_TRACKING_URI", None)
    out, err = outside / "out", outside / "err"
    return JobProcess(outside / "code.py", [], folder, environment, out, err)


def run_two_ranks(function: Callable[..., None], args: tuple[object, ...]) -> None:
    """Calls a function with the ranks 0 and 1, each in a process of its own, to their ends."""
    torch.multiprocessing.start_processes(function, args, nprocs=2, start_method="forkserver")


class JobProcess:
    """A job that was started, with the methods of subprocess.Popen that tests need."""

    def __init__(
        self,
        script: Path,
        args: list[str],
        folder: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ) -> None:
        """Starts a job as the leader of a process group of its own.

        Args:
            script: The job's file.
            args: Its arguments.
            folder: Its working directory.
            environment: All its environment variables.
            stdout: File that gets its output; created.
            stderr: File that gets its errors, which may be the same.
        """
        settings = (str(script), args, str(folder), dict(environment), str(stdout), str(stderr))
        self._process = FORK_SERVER.Process(target=_run, args=settings)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal, or None while the job runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("job", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the job alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the job and what it has started, unless it has ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(30)


def _run(
    script: str, args: list[str], folder: str, environment: dict[str, str], *output: str
) -> None:
    """Becomes the job: runs it as Python runs a script, from its start to its exit code."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(output, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    # The fork server ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script, *args]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # Waits for threads, as Python itself does.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
