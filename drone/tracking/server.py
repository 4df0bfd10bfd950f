"""MLflow's server for a cluster: one supervised process, and a store that outlives the machine."""

import contextlib
import os
import secrets
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

from drone import secret_file
from drone.errors import ConfigError, TrackingError, cannot_listen
from drone.hosts import is_reached_by_others
from drone.storage.filesystem import absolute

STORE_FILE = "mlflow.db"
USER = "admin"
"""User of a server with a password: MLFLOW_TRACKING_USERNAME."""

# A service that is being restarted listens again within a minute.
_START_TIMEOUT_S, _POLL_S, _CLOSED_S = 120.0, 1.0, 60.0


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the server listens, and where it keeps its store."""

    host: str
    port: int
    folder: Path
    """Of this machine, for the store and, without a backup location, the artifacts."""

    backup: str | None
    """Folder or URI for artifacts and copies of the store; None keeps everything in the folder."""

    copy_interval_s: float
    """Seconds between two copies of the store, if it has changed."""

    until_closed: str | None
    """HOST:PORT of another service; the server ends a minute after nothing listens there."""

    @property
    def store(self) -> Path:
        """The sqlite file."""
        return self.folder / STORE_FILE

    @property
    def password_file(self) -> Path:
        """The password, if the server has one: MLFLOW_TRACKING_PASSWORD."""
        return self.folder / "password"

    @property
    def needs_password(self) -> bool:
        """Whether other machines reach the server."""
        return is_reached_by_others(self.host)


def serve(settings: ServerSettings, notify: Callable[[str], None]) -> None:
    """Serves until it is interrupted or the other service has closed; copies the store at the end.

    A server process that dies is restarted.

    Raises:
        ConfigError: The backup location cannot be used, or the port is taken.
        TrackingError: MLflow does not start.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    backup = _Backup(settings) if settings.backup else None
    # A store that is here is as new as its copy, or newer.
    if backup is not None and not settings.store.exists() and backup.restore():
        notify(f"The store was restored from {settings.backup}")
    # MLflow would say so in its log only, after seconds of start-up.
    _check_port(settings)
    process = _ServerProcess(settings)
    try:
        process.start()
        url = f"http://{settings.host}:{settings.port}"
        notify(f"MLflow on {url}, its store is {settings.store}")
        if settings.needs_password:
            notify(f"User {USER}, password in {settings.password_file}")
        _supervise(settings, process, backup, notify)
    finally:
        process.stop()
        if backup is not None:
            # Now that nothing writes any more.
            backup.copy(notify)


def _check_port(settings: ServerSettings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        # The others: the text cannot be an address.
        except (OSError, TypeError, ValueError) as error:
            raise cannot_listen(settings.host, settings.port, error) from error


def _supervise(
    settings: ServerSettings,
    process: "_ServerProcess",
    backup: "_Backup | None",
    notify: Callable[[str], None],
) -> None:
    was_open, open_at, copied_at = False, time.monotonic(), time.monotonic()
    while True:
        time.sleep(_POLL_S)
        now = time.monotonic()
        exit_code = process.exit_code()
        if exit_code is not None:
            notify(f"MLflow's process ended with {exit_code}; restarting it.")
            try:
                process.start()
            except TrackingError as error:
                # The next round finds that it has ended, and starts it again.
                notify(f"{error} Retrying.")
        if backup is not None and now - copied_at >= settings.copy_interval_s:
            backup.copy(notify)
            copied_at = now
        if settings.until_closed is not None:
            if _is_open(settings.until_closed):
                was_open, open_at = True, now
            # Only once it has been open: on a new cluster this server may be up before Ray.
            elif was_open and now - open_at >= _CLOSED_S:
                notify(f"Nothing listens at {settings.until_closed} any more.")
                return


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


class _ServerProcess:
    """MLflow's server process; it can be started again when it has ended."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        hosts = ("localhost", "127.0.0.1", settings.host)
        self._command = [sys.executable, "-m", "mlflow", "server"]
        # One worker starts in 5 s; MLflow's default takes 12 s and 1.7 GB.
        self._command += ["--host", settings.host, "--port", str(settings.port), "--workers", "1"]
        self._command += ["--backend-store-uri", f"sqlite:///{settings.store.resolve()}"]
        self._command += ["--serve-artifacts"]
        # MLflow refuses requests to other host names, against DNS rebinding.
        allowed = ",".join(f"{host}:{settings.port}" for host in hosts)
        self._command += ["--allowed-hosts", allowed]
        if settings.needs_password:
            self._command += ["--app-name", "basic-auth"]
        self._health = f"http://{settings.host}:{settings.port}/health"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns when it answers.

        Raises:
            TrackingError: The process ended, or did not answer in time.
        """
        environment = _server_environment(self._settings)
        # A session of its own: Ctrl-C reaches this process alone, and stop() MLflow's children too.
        self._process = subprocess.Popen(self._command, env=environment, start_new_session=True)
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < give_up_at:
            exit_code = self.exit_code()
            if exit_code is not None:
                raise TrackingError(
                    f"MLflow's server ended at its start with exit code {exit_code}; its own "
                    f"messages are above."
                )
            with contextlib.suppress(OSError), urllib.request.urlopen(self._health, timeout=5):
                return
            time.sleep(0.5)
        self.stop()
        raise TrackingError(f"MLflow's server did not answer within {_START_TIMEOUT_S:.0f} s.")

    def exit_code(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """Ends it with all its child processes."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=15)
                return


def _server_environment(settings: ServerSettings) -> dict[str, str]:
    """Returns the environment of MLflow's process; unlike a command line, only its user sees it."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # On a cluster every shell has it, and it names this very server.
    environment.pop("MLFLOW_TRACKING_URI", None)
    artifacts = f"{absolute(settings.backup or str(settings.folder))}/artifacts"
    environment["MLFLOW_ARTIFACTS_DESTINATION"] = artifacts
    if not settings.needs_password:
        return environment
    # MLflow ignores the password of a user that exists, so the one user is made again.
    users = settings.folder / "users.db"
    users.unlink(missing_ok=True)
    auth = settings.folder / "auth.ini"
    database = f"sqlite:///{users}".replace("%", "%%")  # As configparser wants it.
    auth.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database}\n", "utf-8"
    )
    return {
        **environment,
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": secret_file.read_or_create(settings.password_file),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


class _Backup:
    """Complete copies of the store at another location."""

    def __init__(self, settings: ServerSettings) -> None:
        self._store = settings.store
        try:
            location = absolute(str(settings.backup))
            self._filesystem, self._path = fs.FileSystem.from_uri(location)
            self._filesystem.create_dir(self._path, recursive=True)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"--backup {settings.backup} cannot be used: {error}. Name a folder, or a URI such "
                f"as s3://bucket/mlflow."
            ) from error
        self._copied_state: tuple[float, ...] = ()

    def restore(self) -> bool:
        """Copies the backup here; returns whether there is one."""
        source = f"{self._path}/{STORE_FILE}"
        if self._filesystem.get_file_info(source).type != fs.FileType.File:
            return False
        arriving = self._store.with_suffix(".arriving")
        with self._filesystem.open_input_stream(source) as stream, arriving.open("wb") as target:
            shutil.copyfileobj(stream, target)
        arriving.rename(self._store)
        return True

    def copy(self, notify: Callable[[str], None]) -> None:
        """Copies the store if it has changed; a location that fails is retried later."""
        state = self._state()
        if not self._store.exists() or state == self._copied_state:
            return
        with tempfile.TemporaryDirectory() as temporary:
            snapshot = Path(temporary) / STORE_FILE
            try:
                with (
                    contextlib.closing(sqlite3.connect(self._store)) as source,
                    contextlib.closing(sqlite3.connect(snapshot)) as target,
                ):
                    # Not a copy of the file, which could hold half of a transaction.
                    source.backup(target)
                self._upload(snapshot)
            except (OSError, sqlite3.Error) as error:
                notify(f"The store could not be copied to {self._path}: {error}. Retrying later.")
                return
        self._copied_state = state

    def _state(self) -> tuple[float, ...]:
        """Returns modification times that change whenever the store does."""
        times = []
        for file in (self._store, self._store.with_name(f"{STORE_FILE}-wal")):
            with contextlib.suppress(FileNotFoundError):
                times.append(file.stat().st_mtime)
        return tuple(times)

    def _upload(self, snapshot: Path) -> None:
        target = f"{self._path}/{STORE_FILE}"
        arriving = f"{target}.arriving"
        with (
            snapshot.open("rb") as source,
            self._filesystem.open_output_stream(arriving) as stream,
        ):
            shutil.copyfileobj(source, stream)
        # Only when complete: a machine that dies meanwhile leaves the previous copy.
        self._filesystem.move(arriving, target)
