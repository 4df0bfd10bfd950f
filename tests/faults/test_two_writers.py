"""Of two writers of the same thing one is refused, with the name of the other."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from drone.collect import provenance
from drone.data.prepare.write import writing
from drone.errors import LockedError
from drone.files import locked
from drone.tracking import lease, runs
from tests.conftest import ROOT, RunJob
from tests.job_process import FORK_SERVER, start_code

pytestmark = pytest.mark.slow

_HOLD = """
import sys, time
from pathlib import Path
sys.argv[0] = "first.py"
from drone.files import locked
with locked(Path(sys.argv[1]), "It"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of tmp_path/set."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / ".set.lock")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_refused_with_the_name_of_the_first(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    refused = pytest.raises(
        LockedError, match=rf"It is being written by first.py \(process {holder.pid} on .*, since"
    )
    with refused, locked(tmp_path / ".set.lock", "It"):
        pass


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(
    holder: subprocess.Popen[str], tmp_path: Path, sent: signal.Signals
) -> None:
    holder.send_signal(sent)
    holder.wait()
    with locked(tmp_path / ".set.lock", "It"):
        assert json.loads((tmp_path / ".set.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_prepare_is_refused_before_it_reads_anything(
    holder: subprocess.Popen[str], tmp_path: Path, call_job: RunJob
) -> None:
    for args in (["--raw", "nowhere"], ["--undo"]):
        done = call_job("prepare", *args, "--out", "set")
        assert done.code == 1
        assert "The data set set is being written by first.py (process" in done.err


def _count(folder: Path, number: int) -> None:
    for _ in range(40):
        with locked(folder / "lock", "The counter", wait_s=60):
            value = int((folder / "counter").read_text())
            (folder / "counter").write_text(str(value + 1))


def test_no_two_processes_have_a_lock_at_once(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    # The lock's file is removed each time, and a new one made: none may slip in between.
    assert (tmp_path / "counter").read_text() == "160"
    assert [item.name for item in tmp_path.iterdir()] == ["counter"]


def test_two_collections_into_one_folder(tmp_path: Path) -> None:
    refused = pytest.raises(LockedError, match="The raw folder .* is being written by")
    with provenance.open_locked(tmp_path), refused, provenance.open_locked(tmp_path):
        pass


def test_two_updates_of_one_data_set(tmp_path: Path) -> None:
    refused = pytest.raises(LockedError, match="The data set .* is being written by")
    with writing(tmp_path / "set", print), refused, writing(tmp_path / "set", print):
        pass


def test_two_searches_of_one_name(tmp_path: Path, call_job: RunJob) -> None:
    (tmp_path / "studies").mkdir()
    with locked(tmp_path / "studies" / ".s.lock", "It"):
        done = call_job("tune", "--data", "d", "--weights", "none", "--name", "s")
    assert done.code == 1 and "The study s is being written by" in done.err
    assert not (tmp_path / "studies" / "s").exists()


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs.connect()
    with runs.start_run("first", print) as run:
        return run.run_id


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on this is another machine, with a home folder of its own."""
    monkeypatch.setenv("HOME", str(folder))


def test_two_processes_of_one_machine_on_one_run(run_id: str) -> None:
    refused = pytest.raises(LockedError, match=f"Run {run_id} is being written by")
    with runs.start_run("", print, run_id), refused, lease.hold(run_id, is_new=False, notify=print):
        pass
    assert "lease" not in MlflowClient().get_run(run_id).data.tags


def test_another_machine_is_refused_while_the_lease_is_renewed(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEWAL_S", 0.2)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.1)
    monkeypatch.setattr(lease, "_STALE_S", 5)
    said: list[str] = []
    with lease.hold(run_id, is_new=False, notify=print):
        elsewhere(monkeypatch, tmp_path / "other")
        refused = pytest.raises(LockedError, match="is being written by .*Wait until it has")
        with refused, lease.hold(run_id, is_new=False, notify=said.append):
            pass
    assert "was last written by" in said[0]


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_holder_stops(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SETTLE_S", 0.1)
    monkeypatch.setattr(lease, "_STALE_S", 0.5)
    with lease.hold(run_id, is_new=False, notify=print) as stopped:  # As if it slept.
        elsewhere(monkeypatch, tmp_path / "other")
        with lease.hold(run_id, is_new=False, notify=print) as taken:
            assert not taken.is_lost
            stopped.renew()
            with pytest.raises(LockedError, match=f"Run {run_id} has been taken over by"):
                stopped.check()
            taken.check()


def test_of_two_machines_that_take_a_lease_at_once_one_has_it(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = FORK_SERVER.Queue()
    uri = mlflow.get_tracking_uri()
    homes = [str(tmp_path / f"home{number}") for number in range(3)]
    processes = [
        FORK_SERVER.Process(target=_take, args=(home, uri, run_id, results)) for home in homes
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert sorted(outcomes) == ["held", "refused", "refused"]


def test_first_writes_at_the_same_moment_all_go_through(run_id: str) -> None:
    """A database refuses the second of two inserts of one tag, which is no failure of the store."""
    errors: list[Exception] = []
    barrier = threading.Barrier(4)

    def write(held: lease.Lease) -> None:
        barrier.wait()
        try:
            held.write()
        except Exception as error:
            errors.append(error)

    for _ in range(20):
        threads = [threading.Thread(target=write, args=[lease.Lease(run_id)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        MlflowClient().delete_tag(run_id, "lease")
    assert errors == []


def _take(home: str, uri: str, run_id: str, results: "multiprocessing.Queue[str]") -> None:
    os.environ["HOME"] = home
    mlflow.set_tracking_uri(uri)
    MlflowClient().get_run(run_id)  # Imports take seconds; the taking itself is at the same time.
    try:
        with lease.hold(run_id, is_new=False, notify=print):
            results.put("held")
            time.sleep(12)
    except LockedError:
        results.put("refused")


def test_jobs_that_start_together_on_a_new_store_all_have_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    code = "from drone.tracking import runs; print(runs.connect())"
    outside = tmp_path_factory.mktemp("jobs")
    processes = [start_code(code, tmp_path, outside / str(number)) for number in range(4)]
    for number, process in enumerate(processes):
        exit_code = process.wait(timeout=120)
        out, err = ((outside / str(number) / name).read_text() for name in ("out", "err"))
        assert exit_code == 0, err
        assert out == f"sqlite:///{tmp_path}/mlflow.db\n" and "Traceback" not in err
