"""MLflow's server for a cluster: one process to watch, and a store that outlives the machine."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from drone.adapters import storage
from drone.errors import ConfigError, TrackingError

STORE_FILE = "mlflow.db"
_START_S, _POLL_S, _CLOSED_S = 120.0, 1.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """How the server is run."""

    host: str
    port: int
    folder: Path
    """Of this machine, for the store and, without another place, the artifacts."""

    keep: str | None
    """Folder or URI that artifacts go to and the store is copied to; None keeps all here."""

    every_s: float
    """Seconds between two copies, if anything has changed."""

    until_closed: str | None
    """Address as HOST:PORT; when nobody has listened there for a minute, the server ends."""

    @property
    def store(self) -> Path:
        """The sqlite file."""
        return self.folder / STORE_FILE


def serve(server: Server, say: Callable[[str], None]) -> None:
    """Serves until it is interrupted or what it waits for has closed; copies the store at the end.

    A server process that dies is started again.

    Raises:
        ConfigError: the place to keep cannot be used, or the port is taken.
        TrackingError: MLflow does not start.
    """
    server.folder.mkdir(parents=True, exist_ok=True)
    copies = _Copies(server) if server.keep else None
    if copies is not None and not server.store.exists() and copies.restore():
        say(f"The store was restored from {server.keep}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise ConfigError(
                f"{server.host}:{server.port} cannot be listened on: {error.strerror}. Is a "
                f"tracking server running already? Else choose another --host or --port."
            ) from error
    process = _Process(server)
    try:
        process.start()
        say(f"MLflow on http://{server.host}:{server.port}, its store is {server.store}")
        _watch(server, process, copies, say)
    finally:
        process.stop()
        if copies is not None:
            copies.copy(say)


def _watch(
    server: Server, process: "_Process", copies: "_Copies | None", say: Callable[[str], None]
) -> None:
    seen_open, open_at, copied_at = False, time.monotonic(), time.monotonic()
    while True:
        time.sleep(_POLL_S)
        now = time.monotonic()
        ended = process.ended()
        if ended is not None:
            say(f"MLflow's process ended with {ended}; it is started again.")
            try:
                process.start()
            except TrackingError as error:
                say(f"{error} Tried again.")
        if copies is not None and now - copied_at >= server.every_s:
            copies.copy(say)
            copied_at = now
        if server.until_closed is not None:
            if _listens(server.until_closed):
                seen_open, open_at = True, now
            elif seen_open and now - open_at >= _CLOSED_S:
                say(f"Nobody listens at {server.until_closed} any more.")
                return


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


class _Process:
    """MLflow's server process; it can be started again when it has ended."""

    def __init__(self, server: Server) -> None:
        artifacts = f"{storage.absolute(server.keep or str(server.folder))}/artifacts"
        names = [f"{name}:{server.port}" for name in ("localhost", "127.0.0.1", server.host)]
        self._words = [sys.executable, "-m", "mlflow", "server"]
        self._words += ["--host", server.host, "--port", str(server.port), "--workers", "1"]
        self._words += ["--backend-store-uri", f"sqlite:///{server.store.resolve()}"]
        self._words += ["--artifacts-destination", artifacts, "--serve-artifacts"]
        self._words += ["--allowed-hosts", ",".join(names)]
        self._health = f"http://{server.host}:{server.port}/health"
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns when it answers; raises TrackingError if it does not."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self._running = subprocess.Popen(self._words, env=environment, start_new_session=True)
        give_up_at = time.monotonic() + _START_S
        while time.monotonic() < give_up_at:
            ended = self.ended()
            if ended is not None:
                raise TrackingError(f"MLflow's server ended at its start with {ended}.")
            with contextlib.suppress(OSError), urllib.request.urlopen(self._health, timeout=5):
                return
            time.sleep(0.5)
        self.stop()
        raise TrackingError(f"MLflow's server did not answer within {_START_S:.0f} s.")

    def ended(self) -> int | None:
        """How it ended; None while it runs."""
        return self._running.poll() if self._running else None

    def stop(self) -> None:
        """Ends it with all its own processes."""
        if self._running is None:
            return
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(timeout=15)
                return


class _Copies:
    """Whole copies of the store in another place, the newest beside the one before it."""

    def __init__(self, server: Server) -> None:
        self.store = server.store
        try:
            self.filesystem, self.path = fs.FileSystem.from_uri(storage.absolute(str(server.keep)))
            self.filesystem.create_dir(self.path, recursive=True)
        except (ValueError, OSError) as error:
            raise ConfigError(f"--keep {server.keep} cannot be used: {error}") from error
        self._copied: tuple[float, ...] = ()

    def restore(self) -> bool:
        """Brings the newest copy here, if there is one."""
        wanted = f"{self.path}/{STORE_FILE}"
        if self.filesystem.get_file_info(wanted).type != fs.FileType.File:
            return False
        arriving = self.store.with_suffix(".arriving")
        with self.filesystem.open_input_stream(wanted) as source, arriving.open("wb") as target:
            shutil.copyfileobj(source, target)
        arriving.rename(self.store)
        return True

    def copy(self, say: Callable[[str], None]) -> None:
        """Copies the store if it has changed; a place that is away is tried again later."""
        if not self.store.exists() or self._state() == self._copied:
            return
        state = self._state()
        with tempfile.TemporaryDirectory() as temporary:
            snapshot = Path(temporary) / STORE_FILE
            try:
                with (
                    contextlib.closing(sqlite3.connect(self.store)) as source,
                    contextlib.closing(sqlite3.connect(snapshot)) as target,
                ):
                    source.backup(target)
                self._put(snapshot)
            except (OSError, sqlite3.Error) as error:
                say(f"The store could not be copied to {self.path}: {error}. Tried again later.")
                return
        self._copied = state

    def _state(self) -> tuple[float, ...]:
        """Something that changes whenever the store does."""
        changed = []
        for file in (self.store, self.store.with_name(f"{STORE_FILE}-wal")):
            with contextlib.suppress(FileNotFoundError):
                changed.append(file.stat().st_mtime)
        return tuple(changed)

    def _put(self, snapshot: Path) -> None:
        wanted = f"{self.path}/{STORE_FILE}"
        arriving = f"{wanted}.arriving"
        with (
            snapshot.open("rb") as source,
            self.filesystem.open_output_stream(arriving) as target,
        ):
            shutil.copyfileobj(source, target)
        self.filesystem.move(arriving, wanted)
