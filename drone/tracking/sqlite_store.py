"""Checks a sqlite tracking store before MLflow opens it.

MLflow would retry for two minutes on a file that is no database, and fail with the exceptions of
the libraries below it.
"""

import contextlib
import os
import sqlite3
import struct
from pathlib import Path

import mlflow

from drone.errors import TrackingError

_MAGIC = b"SQLite format 3\0"
_MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
_RESTORE = "Restore it from a copy, or move it away to start a new store."


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
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as store:
            return _schema_problem(store)
    except sqlite3.DatabaseError as error:
        return f"is damaged: {error}. {_RESTORE}"


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
    version = next(
        (name for (name,) in store.execute("SELECT version_num FROM alembic_version")), ""
    )
    # Named by their versions; reading them all would take as long as MLflow's start.
    if not any(_MIGRATIONS.glob(f"{version}_*.py")):
        return (
            f"was written by another version of MLflow: {mlflow.__version__} does not know its "
            f"schema {version!r}. Use the environment that wrote it (make setup), or move the "
            f"file away to start a new store."
        )
    missing = sorted(_expected_tables(version) - tables)
    return f"is damaged: the table {missing[0]} is missing. {_RESTORE}" if missing else None


def _expected_tables(version: str) -> set[str]:
    """Returns the tables of the newest schema; none for an older one, which MLflow migrates."""
    from mlflow.store.db import utils
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  It defines the tables.

    newest = utils._get_latest_schema_revision()
    return set(Base.metadata.tables) if version == newest else set()
