"""A sqlite tracking store: checked, created and brought up to date before MLflow opens it.

MLflow would retry for two minutes on a file that is no database, and fail with the exceptions of
the libraries below it. It creates a store in 80 steps, in which a second process would fail and
which a kill would leave half done.
"""

import contextlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import mlflow
from sqlalchemy.exc import SQLAlchemyError

from drone.errors import TrackingError
from drone.files import locked

SCHEME = "sqlite:///"

ARTIFACTS = "mlartifacts"
"""Folder beside a store that holds its artifacts."""

_MAGIC = b"SQLite format 3\0"
_MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
_RESTORE = "Restore it from a copy, or move it away to start a new store."

_LOCK_WAIT_S = 120.0
"""Seconds to wait for other jobs that open the store; one that creates it takes 5 to 20."""

_BUSY_WAIT_S = 20.0
"""Seconds to wait for another program's transaction, as MLflow does."""

_STALLED_S, _EMPTY_S, _POLL_S = 20.0, 3.0, 0.2
"""Seconds without a change after which a store is no longer being created by another program."""

_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns that hold a place of artifacts, by table."""


def uri_of(file: Path) -> str:
    """Returns the URI of a store in the working folder."""
    # The URI is decoded when it is opened: such a path would name another file.
    survives = "?" not in str(file) and unquote(str(file)) == str(file)
    return f"{SCHEME}{file if survives else file.name}"


def file_of(uri: str) -> Path | None:
    """Returns the file of a store; None if it is none of sqlite."""
    if not uri.startswith(SCHEME):
        return None
    return Path(unquote(uri.removeprefix(SCHEME).partition("?")[0])).absolute()


@contextlib.contextmanager
def opened(file: Path) -> Iterator[None]:
    """Lets one process at a time open a store, which then is whole, of this version and writable.

    A store that was moved or copied finds its artifacts beside it.

    Raises:
        TrackingError: The store cannot be used; says why, and what to do.
        LockedError: Another job has been opening the store for two minutes.
    """
    check_writable(file)
    lock = file.with_name(f".{file.name}.lock")
    with locked(lock, f"The tracking store {file}", wait_s=_LOCK_WAIT_S):
        _wait_until_created(file)
        check(file)
        new = _aside(file)
        try:
            if not file.exists():
                _create(file, new)
            _upgrade(file, new)
            _take_artifacts_along(file)
        except sqlite3.OperationalError as error:
            raise TrackingError(f"The tracking store {file} {_busy_or_full(error)}") from error
        yield


def check_writable(file: Path) -> None:
    """Checks that a store can be written, or created; its folder is made.

    Raises:
        TrackingError: It cannot.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"The tracking store {file} cannot be created: {error.strerror}. Set "
            f"MLFLOW_TRACKING_URI to another store."
        ) from error
    for path in (file.parent, file):
        if path.exists() and not os.access(path, os.W_OK):
            raise TrackingError(
                f"The tracking store {file} cannot be written: {path} is read-only. Change its "
                f"permissions, or set MLFLOW_TRACKING_URI to another store."
            )


def check(file: Path) -> None:
    """Checks that MLflow can use a file as its store; a missing or an empty file becomes one.

    Raises:
        TrackingError: It is no database, damaged, or of another program or version.
    """
    problem = _problem(file)
    if problem:
        raise TrackingError(f"The tracking store {file} {problem}")


def _problem(file: Path) -> str | None:
    """Returns what is wrong with a store, and what to do about it."""
    if not file.exists():
        return None
    if not file.is_file():
        return f"is not a file. {_RESTORE}"
    if file.stat().st_size == 0:
        return None
    if _is_cut_short(file):
        return f"is no sqlite database, or was cut short. {_RESTORE}"
    try:
        with _connected(file) as store:
            return _schema_problem(store)
    except sqlite3.OperationalError as error:
        return _busy_or_full(error)
    except sqlite3.DatabaseError as error:
        return f"is damaged: {error}. {_RESTORE}"


@contextlib.contextmanager
def _connected(file: Path) -> Iterator[sqlite3.Connection]:
    """Yields a connection, by which sqlite also undoes what a killed process had begun."""
    # Not read-only, with which it could not; nor would it create a file that is missing.
    uri = f"{file.as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_WAIT_S)) as store:
        yield store


def _busy_or_full(error: sqlite3.OperationalError) -> str:
    """Returns why sqlite could not work on a store that is not damaged, and what to do."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"has been locked by another program for {_BUSY_WAIT_S:.0f} s. Close what has it open, "
            f"such as a database browser or a backup, then start the job again."
        )
    return (
        f"cannot be used: {error}. See that its disk has space and that it may be written, then "
        f"start the job again."
    )


def _is_cut_short(file: Path) -> bool:
    """Whether a file is no database, or shorter than its header says."""
    with file.open("rb") as stream:
        header = stream.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        return True
    # https://www.sqlite.org/fileformat.html, section 1.3; the count may be stale if the two differ.
    (page_size,) = struct.unpack(">H", header[16:18])
    changed_at, num_pages = struct.unpack(">II", header[24:32])
    (valid_for,) = struct.unpack(">I", header[92:96])
    size = num_pages * (65536 if page_size == 1 else page_size)
    return bool(changed_at == valid_for and file.stat().st_size < size)


def _schema_problem(store: sqlite3.Connection) -> str | None:
    tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return None
    if "alembic_version" not in tables or "experiments" not in tables:
        return f"is the database of another program, or tables are missing. {_RESTORE}"
    version = _version(store)
    # Named by their versions; reading them all would take as long as MLflow's start.
    if not version or not any(_MIGRATIONS.glob(f"{version}_*.py")):
        return (
            f"was written by another version of MLflow: {mlflow.__version__} does not know its "
            f"schema {version!r}. Use the environment that wrote it (make setup), or move the "
            f"file away to start a new store."
        )
    missing = sorted(_expected_tables(version) - tables)
    return f"is damaged: the table {missing[0]} is missing. {_RESTORE}" if missing else None


def _version(store: sqlite3.Connection) -> str:
    """Returns the schema's version; empty where a kill has left none."""
    rows = store.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(rows[0][0]) if rows else ""


def _newest_version() -> str:
    from mlflow.store.db import utils

    return str(utils._get_latest_schema_revision())


def _expected_tables(version: str) -> set[str]:
    """Returns the tables of the newest schema; none for an older one."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  It defines the tables.

    return set(Base.metadata.tables) if version == _newest_version() else set()


def _wait_until_created(file: Path) -> None:
    """Returns when no other program, such as `mlflow ui`, is creating the store any more.

    What such a program has left undone when it was killed is removed.
    """
    seen, changed_at = None, time.monotonic()
    while file.is_file() and (limit_s := _creation_limit_s(file)) is not None:
        status = file.stat()
        if (status.st_size, status.st_mtime_ns) != seen:
            seen, changed_at = (status.st_size, status.st_mtime_ns), time.monotonic()
        if time.monotonic() - changed_at >= limit_s:
            _remove(file)
            return
        time.sleep(_POLL_S)


def _creation_limit_s(file: Path) -> float | None:
    """Returns how long a store that is being created may stay as it is; None if it is complete."""
    if file.stat().st_size == 0:
        return _EMPTY_S
    try:
        with _connected(file) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
            known = {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
            if not tables & known:
                return _STALLED_S if not tables else None
            if any(_has_rows(store, name) for name in ("experiments", "runs") if name in tables):
                return None
            version = _version(store) if "alembic_version" in tables else ""
            return None if version == _newest_version() else _STALLED_S
    except sqlite3.Error:
        return None  # `check` says what is wrong with it.


def _has_rows(store: sqlite3.Connection, table: str) -> bool:
    return store.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def _remove(file: Path) -> None:
    for name in (file, file.with_name(f"{file.name}-journal"), file.with_name(f"{file.name}-wal")):
        name.unlink(missing_ok=True)


def _create(file: Path, new: Path) -> None:
    """Creates a store aside, so that it appears complete."""
    _migrate(new, is_new=True)
    try:
        # Fails where another program has just made one, which a renamed file would replace.
        os.link(new, file)
    except FileExistsError:
        _wait_until_created(file)
    except OSError:  # Not every file system has links.
        new.rename(file)
    _remove(new)


def _upgrade(file: Path, new: Path) -> None:
    """Migrates a store of an older MLflow; the store as it was is kept beside it."""
    with _connected(file) as store:
        version = _version(store)
        if version == _newest_version():
            return
        kept = file.with_name(f"{file.name}.{version}")
        # Nobody may write meanwhile: it would be lost.
        store.execute("BEGIN IMMEDIATE")
        for copy in (kept, new):
            with _connected(file) as source, contextlib.closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        _migrate(new, is_new=False)
        new.replace(file)


def _migrate(file: Path, *, is_new: bool) -> None:
    """Brings the schema of a database to MLflow's newest version, from nothing if it is new.

    Raises:
        TrackingError: It cannot be written, or MLflow cannot migrate it.
    """
    from alembic.util import CommandError
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"{SCHEME}{quote(str(file))}")
    try:
        if is_new:
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)
    except (SQLAlchemyError, CommandError, OSError) as error:
        action = "created" if is_new else "brought to the schema of this MLflow"
        reason = str(error).split("\n")[0][:300]
        raise TrackingError(
            f"The tracking store {file} could not be {action}: {reason}. See that its disk has "
            f"space, then start the job again."
        ) from error
    finally:
        engine.dispose()


def _aside(file: Path) -> Path:
    """Returns the name under which a store is built, free of what a kill has left there."""
    new = file.with_name(f".{file.name}.new")
    _remove(new)
    return new


def _take_artifacts_along(file: Path) -> None:
    """Points a store that was moved or copied to the artifacts beside it.

    MLflow records their absolute paths, so that it would read and write at the old place.
    """
    here = (file.parent / ARTIFACTS).as_uri()
    with _connected(file) as store:
        # A program that has the store locked is noticed here, and not in the middle of the job.
        store.execute("BEGIN IMMEDIATE")
        found = store.execute(
            "SELECT DISTINCT artifact_location FROM experiments "
            "WHERE artifact_location LIKE 'file:///%' || ? AND artifact_location != ?",
            (f"/{ARTIFACTS}", here),
        ).fetchall()
        for (old,) in found:
            for table, columns in _LOCATIONS.items():
                for column in columns:
                    _replace_prefix(store, table, column, old, here)
        store.commit()


def _replace_prefix(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    )
