"""Data sets, folders and commands that several tests need."""

import contextlib
import json
import os
import re
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from drone.synth.drawing import draw
from drone.synth.raw_folder import GroundTruth, SynthSettings, write_raw_folder
from ray_jobs.console import console
from tests.job_process import JobProcess
from tests.lively import export_mixed

pytest_plugins = ["tests.skips"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL_PX = 64
"""Side of the images in tests that train: the same code in a tenth of the time."""

# A shell makes its background jobs ignore SIGINT, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker is left with one at the end.

    The page's tests come last: their browser keeps an event loop running, beside which others
    cannot start one.
    """
    longest = (
        *("two_hosts/test_two", "jobs/test_main", "jobs/test_search", "jobs/test_loop"),
        *("kuberay/test_image", "test_python_docs", "faults/test_moved", "test_gpu_checks"),
        *("jobs/", "test_replicas", "workflows/test_served", "training/"),
        *("faults/test_two_writers", "faults/test_replacement", "tracking/test_server"),
        "faults/test_server",
    )
    order = {name: number for number, name in enumerate(longest)}

    def rank(item: pytest.Item) -> int:
        if "tests/web/" in item.nodeid:
            return len(longest) + (1 if "own_classes" in item.nodeid else 2)
        return min((order[name] for name in longest if name in item.nodeid), default=len(longest))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The scan cache of the tests is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class MadeUp:
    """A drawn raw folder and what is in it."""

    folder: Path
    truth: GroundTruth


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    folder = tmp_path_factory.mktemp("made-up") / "raw"
    settings = SynthSettings(images_per_class=26, max_side_px=448, seed=3)
    return MadeUp(folder, write_raw_folder(folder, settings))


@pytest.fixture(scope="session")
def dataset(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small prepared data set of 64-pixel images."""
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    out = tmp_path_factory.mktemp("prepared") / "dataset"
    planned = plan_dataset([made_up.folder], settings, map_sequentially)
    return write_dataset(planned, out, map_sequentially)[0]


@pytest.fixture(scope="session")
def mixed_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder of drawings of four sizes, few of the largest."""
    folder = tmp_path_factory.mktemp("mixed") / "raw"
    small, large = [(224, 200), (448, 300), (300, 460), (240, 180)], [(672, 500), (896, 700)]
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        sizes = small + (large if number % 2 == 0 else []) + [small[1]] * 3
        for index, (width, height) in enumerate(sizes[: 7 if number == 0 else 6]):
            image = draw(name, width, height, np.random.default_rng([7, number, index]))
            image.save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def mixed(mixed_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small data set whose images are packed at the bins of their sizes too."""
    out = tmp_path_factory.mktemp("mixed-prepared") / "dataset"
    planned = plan_dataset([mixed_raw], PrepareSettings(), map_sequentially)
    return write_dataset(planned, out, map_sequentially, bins=True)[0]


@pytest.fixture(scope="session")
def mixed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that takes images at the bins of their sizes."""
    target = tmp_path_factory.mktemp("mixed-model") / "model.onnx"
    export_mixed(target)
    return target


@pytest.fixture(scope="session")
def real_images() -> Path:
    folder = SHARED / "data" / "drones"
    if not folder.is_dir():
        pytest.skip(f"needs the real images in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> Path:
    file = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
    if not file.is_file():
        pytest.skip(f"needs the ImageNet weights {file}")
    return file


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """What --json printed."""
        return json.loads(self.out.splitlines()[-1])


RunJob = Callable[..., Done]


def job_environment(**more: str) -> dict[str, str]:
    """The environment of a job: nothing of the user who runs the tests."""
    dropped = ("DRONE_WEIGHTS", "MLFLOW_TRACKING_URI")
    # A Ray that has run in this process has left RAY_AUTH_MODE there. A forked job has read Ray's
    # own settings already, before it gets this environment, and would use half of it.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("RAY_")
    }
    # As in an activated environment: MLflow starts programs by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {"COLUMNS": "200", "PATH": path, "DRONE_ACTIVATION_CACHE": "activations"}
    return {**inherited, **own, **more}


def job_command(name: str, *args: object) -> list[str]:
    return [sys.executable, str(ROOT / "ray_jobs" / f"{name}.py"), *map(str, args)]


def start_job(
    name: str, *args: object, cwd: Path, stdout: Path, stderr: Path, **environment: str
) -> JobProcess:
    """Starts a job as a user would, in a folder; its output goes to files."""
    script = ROOT / "ray_jobs" / f"{name}.py"
    environment = job_environment(**environment)
    return JobProcess(script, [str(arg) for arg in args], cwd, environment, stdout, stderr)


def run_to_end(name: str, *args: object, cwd: Path, **environment: str) -> Done:
    """Runs a job as a user would, in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        job = start_job(name, *args, cwd=cwd, stdout=out, stderr=err, **environment)
        try:
            code = job.wait(timeout=280)
        finally:
            job.kill()
        return Done(code, out.read_text(), _with_tracebacks(err.read_text()))


def _with_tracebacks(text: str) -> str:
    """Adds what a job saved of a bug, so that a failed test shows it."""
    saved = re.findall(r"Report it with (\S+\.log), which has the traceback", text)
    return "\n".join([text, *(Path(file).read_text() for file in saved)]) if saved else text


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Runs a job as a user would, by default in a folder of the test's own."""

    def run(name: str, *args: object, cwd: Path = tmp_path, **environment: str) -> Done:
        return run_to_end(name, *args, cwd=cwd, **environment)

    return run


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Restores what a job sets for its own process: signals, hooks for exceptions, the console."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    on_stderr = console.stderr
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        console.stderr = on_stderr


@pytest.fixture
def call_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> RunJob:
    """Like `run_job`, in this process and so quicker: for jobs that do not start Ray."""

    def call(name: str, *args: object, cwd: Path = tmp_path, **environment: str) -> Done:
        for variable in ("DRONE_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(cwd)
        _, script, *arguments = job_command(name, *args)
        monkeypatch.setattr(sys, "argv", [f"ray_jobs/{name}.py", *arguments])
        with restored_process():
            try:
                runpy.run_path(script, run_name="__main__")
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
