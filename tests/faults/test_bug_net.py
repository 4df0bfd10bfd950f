"""An exception that no code expected ends in a line, a file with the traceback, and exit code 1."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT, Done

pytestmark = pytest.mark.slow

JOB = """
import sys
from dataclasses import dataclass
sys.path.insert(0, {root!r})
from ray_jobs import bug_report
bug_report.install(__name__)
{imports}
from ray_jobs import cli, console

@dataclass(frozen=True, kw_only=True)
class Job:
    json: bool = False

def main(job):
    {body}
    return {{}}

if __name__ == "__main__":
    cli.start(Job, main)
"""


def write_job(folder: Path, body: str = "pass", imports: str = "") -> Path:
    file = folder / "faulty.py"
    body = textwrap.indent(textwrap.dedent(body), "    ").strip()
    file.write_text(JOB.format(root=str(ROOT), body=body, imports=imports))
    return file


def run(
    folder: Path, *args: str, body: str = "pass", imports: str = "", **environment: str
) -> Done:
    """Runs a job whose main, or whose imports, are these lines."""
    done = subprocess.run(
        [sys.executable, write_job(folder, body, imports), *args],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), **environment},
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def traceback_of(done: Done) -> str:
    """The content of the file that the message names."""
    (line,) = done.err.splitlines()
    named = re.search(r"This is a bug\. Report it with (\S+), which has the traceback\.", line)
    assert named, line
    return Path(named[1]).read_text()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_bug_is_one_line_and_a_file(tmp_path: Path, flags: list[str]) -> None:
    done = run(tmp_path, *flags, body="raise KeyError('no\\nsuch [/x] key')")
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("error: KeyError: 'no\\nsuch [/x] key'.")
    assert "Traceback (most recent call last)" in traceback_of(done)
    assert "in main" in traceback_of(done) and "faulty.py" in traceback_of(done)


def test_a_bug_while_importing(tmp_path: Path) -> None:
    done = run(tmp_path, imports="1 / 0")
    assert done.code == 1 and done.out == ""
    assert "ZeroDivisionError" in traceback_of(done)


@pytest.mark.parametrize("where", ["imports", "body"])
def test_an_incomplete_installation_names_make_setup(tmp_path: Path, where: str) -> None:
    done = run(tmp_path, **{where: "import no_such_package"})
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "No module named 'no_such_package'" in line and "make setup" in line


def test_a_bug_in_a_thread_is_one_line_and_the_job_continues(tmp_path: Path) -> None:
    body = """
    import threading
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    console.show("the work is done")
    """
    done = run(tmp_path, body=body)
    assert done.code == 0 and done.out == "the work is done\n"
    (line,) = done.err.splitlines()
    assert "ZeroDivisionError" in line and "the thread worker; the job continues" in line


@pytest.mark.parametrize(
    "error",
    [
        "from mlflow.exceptions import RestException as E; error = E({'message': 'gone'})",
        "from requests import ConnectTimeout as E; error = E('gone')",
        "from sqlalchemy.exc import OperationalError as E; error = E('SELECT', {}, 'gone')",
    ],
)
def test_a_store_that_fails_while_a_job_runs_is_no_bug(tmp_path: Path, error: str) -> None:
    done = run(tmp_path, body=f"{error}\nraise error")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "The tracking store failed: " in line and "gone" in line
    assert "MLFLOW_TRACKING_URI" in line and "bug" not in line


def test_developers_see_the_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, body="1 / 0", DRONE_DEBUG="1")
    assert done.code == 1 and "Traceback (most recent call last)" in done.err


def test_a_traceback_that_cannot_be_saved(tmp_path: Path) -> None:
    body = """
    import tempfile
    tempfile.tempdir = "/proc/no-such-folder"
    1 / 0
    """
    done = run(tmp_path, body=body)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "could not be saved" in line and "DRONE_DEBUG=1 shows it" in line


@pytest.mark.parametrize(
    "body",
    [
        # What a module in C makes of an interrupt while it is imported.
        "try: raise KeyboardInterrupt\nexcept BaseException as e: raise ImportError from e",
        "raise KeyboardInterrupt",
    ],
)
def test_an_interrupt_is_no_bug(tmp_path: Path, body: str) -> None:
    done = run(tmp_path, body=body)
    assert (done.code, done.out, done.err) == (130, "", "stopped: interrupted\n")


@pytest.mark.parametrize("where", ["imports", "body"])
def test_ctrl_c_ends_quietly_at_any_moment(tmp_path: Path, where: str) -> None:
    # In short sleeps: a signal just before a long one would not end it.
    waiting = "import time; print('ready', flush=True); [time.sleep(0.1) for _ in range(600)]"
    file = write_job(tmp_path, **{where: waiting})
    with subprocess.Popen(
        [sys.executable, file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "stopped: interrupted\n")


def test_ctrl_c_in_a_finalizer_is_not_lost(tmp_path: Path) -> None:
    body = """
    import signal, time
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
    Finalized()
    for _ in range(300):
        time.sleep(0.1)
    print("slept to the end")
    """
    done = run(tmp_path, body=body)
    assert (done.code, done.out, done.err) == (130, "", "stopped: interrupted\n")


@pytest.mark.parametrize("command", ["print('x' * 100000)", "console.show('x' * 100000)"])
def test_a_reader_that_has_gone_ends_the_job_quietly(tmp_path: Path, command: str) -> None:
    file = write_job(tmp_path, f"for _ in range(100): {command}")
    script = f"{sys.executable} {file} 2>err | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n" and (tmp_path / "err").read_text() == ""


def test_help_for_a_reader_that_has_gone(tmp_path: Path) -> None:
    script = f"{sys.executable} {ROOT}/ray_jobs/train.py --help 2>err | true"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False)
    assert (tmp_path / "err").read_text() == ""
