"""A sqlite store that several jobs create at once, that was left half made, or that is in use."""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from mlflow.tracking import MlflowClient

from drone.errors import LockedError, TrackingError
from drone.files import locked
from drone.tracking import runs, sqlite_store
from tests.conftest import RunJob
from tests.job_process import start_code

_CONNECT = "from drone.tracking import runs; print(runs.connect())"
_MLFLOW = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_whole(file: Path) -> bool:
    sqlite_store.check(file)
    with sqlite3.connect(file) as store:
        (version,) = store.execute("SELECT version_num FROM alembic_version").fetchone()
        names = {name for (name,) in store.execute("SELECT name FROM experiments")}
    return version == utils._get_latest_schema_revision() and "drone" in names


@pytest.mark.slow
def test_six_jobs_and_mlflow_itself_on_a_missing_store_one_is_killed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("jobs")
    jobs = [start_code(_CONNECT, folder, outside / str(number)) for number in range(6)]
    other = start_code(_MLFLOW, folder, outside / "mlflow")
    give_up_at = time.monotonic() + 120
    # The one that creates the store, in the midst of it.
    while not (folder / ".mlflow.db.new").exists() and time.monotonic() < give_up_at:
        time.sleep(0.01)
    holder = _holder(folder)
    os.kill(holder, signal.SIGKILL)
    codes = []
    for number, job in enumerate(jobs):
        code = job.wait(timeout=200)
        out, err = ((outside / str(number) / name).read_text() for name in ("out", "err"))
        codes.append(code)
        assert "Traceback" not in err
        assert code in (0, -signal.SIGKILL), err
        assert code or out == f"sqlite:///{folder}/mlflow.db\n"
    other.wait(timeout=200)
    assert sorted(codes) == [-signal.SIGKILL, 0, 0, 0, 0, 0]
    assert is_whole(folder / "mlflow.db")
    assert not (folder / ".mlflow.db.new").exists()


def _holder(folder: Path) -> int:
    """Process that holds the lock of the store."""

    return int(json.loads((folder / ".mlflow.db.lock").read_text())["pid"])


@pytest.mark.parametrize("done", ["nothing", "the first tables", "some migrations"])
def test_a_store_that_a_kill_left_half_created(
    folder: Path, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_STALLED_S", 0.5)
    monkeypatch.setattr(sqlite_store, "_EMPTY_S", 0.5)
    file = folder / "mlflow.db"
    file.touch()
    if done != "nothing":
        migrate(file, 0 if done == "the first tables" else 20)
    runs.connect()
    assert is_whole(file)


def migrate(file: Path, num_migrations: int) -> str:
    """Creates a store with the first migrations alone; returns its version."""
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{file}")
    InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{file}")
    revisions = list(reversed(list(ScriptDirectory.from_config(config).walk_revisions())))
    if num_migrations:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revisions[num_migrations].revision)
    engine.dispose()
    return str(revisions[num_migrations].revision)


def test_the_store_of_an_older_mlflow_is_upgraded_and_kept(folder: Path) -> None:
    file = folder / "mlflow.db"
    version = migrate(file, 40)
    with sqlite3.connect(file) as store:
        store.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (7, 'of before', 'file:///x', 'active')"
        )
    runs.connect()
    assert is_whole(file)
    assert MlflowClient().get_experiment("7").name == "of before"
    with sqlite3.connect(folder / f"mlflow.db.{version}") as store:
        assert store.execute("SELECT version_num FROM alembic_version").fetchone() == (version,)


def test_a_store_that_another_program_has_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call_job: RunJob
) -> None:
    runs.connect()
    monkeypatch.setattr(sqlite_store, "_BUSY_WAIT_S", 0.3)
    for begin in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        other = sqlite3.connect("mlflow.db")
        other.execute(begin)
        with pytest.raises(TrackingError, match=r"mlflow\.db has been locked by another program"):
            runs.connect()
        other.close()
    runs.connect()


def test_a_job_that_was_stopped_while_it_opened_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_LOCK_WAIT_S", 0.3)
    refused = pytest.raises(LockedError, match="The tracking store .* is being written by")
    with locked(folder / ".mlflow.db.lock", "It"), refused:
        runs.connect()


_WRITE = """
import os, signal, sqlite3
store = sqlite3.connect("mlflow.db", isolation_level=None)
store.execute("PRAGMA cache_size = 2")
store.execute("BEGIN")
for number in range(3000):
    store.execute("INSERT INTO tags VALUES (?, ?, ?)", (f"k{number}", "v" * 500, RUN))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_job_that_was_killed_while_it_wrote(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs.connect()
    with runs.start_run("one", print) as run:
        pass
    code = _WRITE.replace("RUN", repr(run.run_id))
    start_code(code, folder, tmp_path_factory.mktemp("jobs") / "killed").wait(timeout=60)
    assert (folder / "mlflow.db-journal").stat().st_size > 0
    runs.connect()
    assert not any(tag.startswith("k") for tag in MlflowClient().get_run(run.run_id).data.tags)
    assert is_whole(folder / "mlflow.db")


@pytest.mark.parametrize("name", ["a & b", "50 %20 off?", "#1 ö 'x'"])
def test_a_store_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    runs.connect()
    with runs.start_run("run", print) as run:
        run.log_text("text", "file.txt")
    found = tmp_path.glob(f"*/mlartifacts/{run.run_id}/artifacts/file.txt")
    assert [file.relative_to(tmp_path).parts[0] for file in found] == [name]
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert is_whole(tmp_path / name / "mlflow.db")
