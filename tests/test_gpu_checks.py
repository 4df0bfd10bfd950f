"""The checks for a GPU, on a processor: a first run on a card has nothing trivial to find."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "bench" / "gpu_checks.py"


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, SCRIPT, *args]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_check_runs_without_a_card() -> None:
    checks = ["device", "views", "pipeline", "cache", "precision", "processes", "onnx"]
    done = run("--small", *checks)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert {row[0].removeprefix("| ") for row in rows} == set(checks)
    assert not any("skipped" in row[2] for row in rows)
    assert "differ from the processor's by up to 0.0e+00" in done.stdout
    assert "two processes, gloo" in done.stdout


def test_a_check_that_does_not_hold_is_in_the_table(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from bench import gpu_checks
def fails(small, folder):
    raise AssertionError("views differ by up to 3")
gpu_checks.CHECKS["device"] = gpu_checks.Check(fails, 60)
gpu_checks.CHECKS["views"] = gpu_checks.Check(fails, 60, ("no_such_module",))
gpu_checks.__file__ = __file__
sys.exit(gpu_checks.main(sys.argv[1:] or ["device", "views"]))
"""
    (tmp_path / "failing.py").write_text(code)
    words = [sys.executable, tmp_path / "failing.py"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "| device | device | FAILED: AssertionError: views differ by up to 3" in done.stdout
    assert "| views | views | skipped: no_such_module not installed" in done.stdout
