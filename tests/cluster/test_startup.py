"""Ray starts from any path, and whatever keeps its workers from starting is said."""

import contextlib
import os
import shutil
import site
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from drone.data.dataset import Dataset
from tests.conftest import ROOT, MadeUp, RunJob, job_environment
from tests.faults.disks import fill, small_disk
from tests.inference.conftest import onnx

__all__ = ["onnx"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_SCRIPT = """
import sys, ray
from drone.cluster import connection

def prefix():
    import drone
    return sys.prefix

with connection.connected(num_cpus=1, environment={"SEEN": "1"}):
    print(ray.get(ray.remote(prefix).remote()))
"""

_MAX_S = 60.0
"""Of Ray's part; the imports before it come on top."""


@pytest.mark.parametrize("name", ["it's my project (2)", 'Möwen & "b" $HOME `x` a\\b;c'])
def test_an_environment_at_any_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    venv.create(folder / ".venv", system_site_packages=True, symlinks=True)
    shutil.copytree(ROOT / "drone", folder / "drone")
    (packages,) = (folder / ".venv").glob("lib/*/site-packages")
    (packages / "more.pth").write_text("\n".join(site.getsitepackages()))
    environment = {**job_environment(), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [folder / ".venv" / "bin" / "python", "-c", _SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / '.venv'}\n"


def test_beside_another_ray_nothing_waits_for_its_port(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "from drone.cluster import connection, startup",
            "with connection.connected(num_cpus=1):",
            "    print((startup._log_folder() / 'dashboard_agent.log').read_text())",
        ]
    )
    with socket.socket() as other:
        # Where the address is taken, a Ray of another test has the port.
        with contextlib.suppress(OSError):
            other.bind(("0.0.0.0", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT))
            other.listen()
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**job_environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "Dashboard agent http address" in done.stdout
    assert "Failed to bind" not in done.stdout


@pytest.fixture
def broken_shell(tmp_path: Path) -> str:
    """A PATH on which Ray's workers find a shell that does not run."""
    shell = tmp_path / "bin" / "bash"
    shell.parent.mkdir()
    shell.write_text("#!/bin/sh\necho 'bash: no such library' >&2\nexit 127\n")
    shell.chmod(0o755)
    return f"{shell.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("job", [["train", "smoke"], ["tune", "--num-trials", "1"]])
def test_workers_that_end_at_their_start(
    run_job: RunJob, dataset: Dataset, broken_shell: str, job: list[str]
) -> None:
    began = time.monotonic()
    args = [*job, "--data", dataset.folder, "--weights", "none"]
    done = run_job(*args, PATH=broken_shell)
    assert done.code == 1 and "Traceback" not in done.err
    assert "error: Ray has started no worker within" in done.err
    assert "bash: no such library. Its logs are in" in done.err
    assert time.monotonic() - began < _MAX_S + 60


def on_ray(images: Path, onnx: Path) -> list[object]:
    """Arguments of a job that needs Ray."""
    return ["predict", "--images", images, "--onnx", onnx, "--out", "out", "--ray-from", 0]


def test_no_memory_for_workers(
    run_job: RunJob, made_up: MadeUp, onnx: Path, tmp_path: Path
) -> None:
    done = run_job(*on_ray(made_up.folder, onnx), RAY_memory_usage_threshold="0.01")
    assert done.code == 1 and "error: Ray could not run a worker: " in done.err
    assert "low on memory" in done.err
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_no_space_for_the_files_of_ray(
    run_job: RunJob, made_up: MadeUp, onnx: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 512) as small:
        fill(small)
        done = run_job(*on_ray(made_up.folder, onnx), RAY_TMPDIR=str(small))
    assert done.code == 1
    assert f"error: Ray needs space for its files, and {small} has 0.0 MiB left." in done.err


def test_a_folder_for_ray_that_is_too_long(
    run_job: RunJob, made_up: MadeUp, onnx: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("n" * 90)
    done = run_job(*on_ray(made_up.folder, onnx), RAY_TMPDIR=str(long))
    assert done.code == 1 and "error: Ray does not start: " in done.err
    assert "RAY_TMPDIR, at most 40 characters" in done.err
