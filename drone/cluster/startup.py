"""Starts Ray and its first worker; whatever keeps them from starting is an error with its reason.

Ray itself would wait for workers without end, and say why in a log.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from drone.errors import RunError

_TIMEOUT_S = 40.0
"""Seconds in which Ray and its first worker must start; usual are 5."""

_MIN_WORKER_S = 20.0
"""Seconds that the worker has of these, however long Ray has taken."""

_MIN_FREE_BYTES = 5 * 2**20


def start(runtime_env: dict[str, Any], **settings: Any) -> None:
    """Starts a local Ray, or joins a cluster, and waits for a first worker.

    Args:
        runtime_env: The runtime environment of the job.
        settings: Further arguments of `ray.init`.

    Raises:
        RunError: Ray does not start, or cannot start a worker; gives the reason.
        ConnectionError, ValueError: There is no cluster at this address.
    """
    started_at, is_local = time.monotonic(), settings.get("address") == "local"
    if is_local:
        _check_space()
    # Ray passes Python's path to a shell as it is.
    if shlex.quote(sys.executable) != sys.executable:
        runtime_env = {**runtime_env, "py_executable": shlex.quote(sys.executable)}
    try:
        with _corrected_commands():
            ray.init(runtime_env=runtime_env, log_to_driver=False, **settings)
    except Exception as error:  # What fails while Ray starts is a bare Exception, or any other.
        if not is_local and isinstance(error, ConnectionError | ValueError):
            raise
        raise RunError(
            f"Ray does not start: {_sentence(error)}. It keeps its files in {_temporary_folder()} "
            f"(RAY_TMPDIR, at most 40 characters), which needs some space, and its processes need "
            f"memory."
        ) from error
    elapsed_s = time.monotonic() - started_at
    _start_worker(max(_MIN_WORKER_S, _TIMEOUT_S - elapsed_s))


def _start_worker(timeout_s: float) -> None:
    """Returns when a worker has answered; later tasks use it again."""
    with errors_explained():
        # No retries: Ray would go on where a worker is killed for lack of memory.
        ready = ray.remote(num_cpus=0, max_retries=0)(_answer).remote()
        try:
            ray.get(ready, timeout=timeout_s)
        except GetTimeoutError as error:
            logs = _log_folder()
            raise RunError(
                f"Ray has started no worker within {timeout_s:.0f} s: {_last_line(logs)}. "
                f"Its logs are in {logs}."
            ) from error


def _answer() -> bool:
    return True


@contextlib.contextmanager
def errors_explained() -> Iterator[None]:
    """Turns what Ray raises about its processes in the block into an error for the user.

    Raises:
        RunError: A worker could not be started, or was lost; gives the reason.
    """
    try:
        yield
    except RayTaskError:
        raise  # A defect of ours, in a worker.
    except RayError as error:
        raise RunError(
            f"Ray could not run a worker: {_sentence(error)}. Correct that, then start the job "
            f"again."
        ) from error


@contextlib.contextmanager
def _corrected_commands() -> Iterator[None]:
    """Corrects the commands with which Ray starts its processes.

    Ray quotes them by the rules of Windows, but reads them by those of POSIX: an apostrophe in a
    path would end its raylet. Its agent listens at one fixed port, and beside another Ray on this
    machine it would wait for that port in vain for 3 seconds; at 0 it takes a free one.
    """
    original = subprocess.list2cmdline
    subprocess.list2cmdline = lambda seq: shlex.join(
        re.sub("^--listen-port=.*", "--listen-port=0", str(word)) for word in seq
    )
    try:
        yield
    finally:
        subprocess.list2cmdline = original


def _temporary_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _check_space() -> None:
    """Fails at once where Ray would wait for half a minute."""
    folder = _temporary_folder()
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError:
        return  # Ray creates it, or says why it cannot.
    if free_bytes < _MIN_FREE_BYTES:
        raise RunError(
            f"Ray needs space for its files, and {folder} has {free_bytes / 2**20:.1f} MiB left. "
            f"Free some, or set RAY_TMPDIR to a folder elsewhere (at most 40 characters)."
        )


def _log_folder() -> Path:
    context = ray.get_runtime_context()
    return Path(str(context.get_temp_dir()), str(context.get_session_name()), "logs")


def _last_line(logs: Path) -> str:
    """Returns the last line on standard error of what was to become a worker."""
    with contextlib.suppress(OSError):
        lines = (logs / "raylet.err").read_text("utf-8", "replace").split("\n")
        found = [line.strip() for line in lines if line.strip()]
        if found:
            # Bash repeats the whole command in the line after its complaint.
            return next((line for line in reversed(found) if "`exec" not in line), found[-1])[:300]
    return "no process has said why"


def _sentence(error: Exception) -> str:
    """Returns what an error says: its first line, and the last one if that gives the cause."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [type(error).__name__]
    cause = f" {lines[1]}" if len(lines) > 1 and len(lines[0]) < 60 else ""
    return f"{lines[0]}{cause}"[:400].rstrip(".")
