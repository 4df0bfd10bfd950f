"""Sets, folders and commands that several tests need."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.data.drawing import draw
from drone.data.prepare import PrepareSettings, map_here, plan
from drone.data.synth import SynthSettings, Truth, make
from drone.data.writing import apply
from drone.labels import CLASSES
from drone.serving.preprocess import Preprocessing
from tests.lively import export_mixed

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL_PX = 64
"""Side of the pictures in tests that train: the same code in a tenth of the time."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What jobs remember of scans does not outlive the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class MadeUp:
    """A drawn raw folder and what is in it."""

    folder: Path
    truth: Truth


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    folder = tmp_path_factory.mktemp("made-up") / "raw"
    return MadeUp(folder, make(folder, SynthSettings(images_per_class=26, seed=3)))


@pytest.fixture(scope="session")
def dataset(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small prepared data set of 64-pixel pictures."""
    settings = PrepareSettings(preprocessing=Preprocessing(side_px=SMALL_PX))
    out = tmp_path_factory.mktemp("prepared") / "dataset"
    return apply(plan([made_up.folder], settings, map_here), out, map_here)[0]


@pytest.fixture(scope="session")
def mixed_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder of drawings of four sizes, few of the largest."""
    folder = tmp_path_factory.mktemp("mixed") / "raw"
    sizes = [(224, 200), (448, 300), (300, 460), (430, 430), (240, 180), (672, 500), (896, 700)]
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(9 if name == CLASSES[0] else 8):
            width, height = sizes[min(image, len(sizes) - 1)] if image < 7 else sizes[1]
            picture = draw(name, width, height, np.random.default_rng([7, number, image]))
            picture.save(folder / name / f"{image}.png")
    return folder


@pytest.fixture(scope="session")
def mixed(mixed_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small data set whose pictures are packed at the bins of their sizes too."""
    out = tmp_path_factory.mktemp("mixed-prepared") / "dataset"
    planned = plan([mixed_raw], PrepareSettings(), map_here)
    return apply(planned, out, map_here, bins=True)[0]


@pytest.fixture(scope="session")
def mixed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that takes pictures at the bins of their sizes."""
    target = tmp_path_factory.mktemp("mixed-model") / "model.onnx"
    export_mixed(target)
    return target


@pytest.fixture(scope="session")
def real_pictures() -> Path:
    folder = SHARED / "data" / "drones"
    if not folder.is_dir():
        pytest.skip(f"no real pictures in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> Path:
    file = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
    if not file.is_file():
        pytest.skip(f"no ImageNet weights in {file}")
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
    """The environment of a job: nothing of the person who runs the tests."""
    dropped = ("DRONE_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    # As in an activated environment: MLflow starts programs by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {"COLUMNS": "200", "PATH": path, "DRONE_FEATURES": "features"}
    return {**inherited, **own, **more}


def job_command(name: str, *words: object) -> list[str]:
    return [sys.executable, str(ROOT / "ray_jobs" / f"{name}.py"), *map(str, words)]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Runs a job as a person would, in a folder of its own."""

    def run(name: str, *words: object, cwd: Path = tmp_path, **environment: str) -> Done:
        done = subprocess.run(
            job_command(name, *words),
            cwd=cwd,
            env=job_environment(**environment),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> RunJob:
    """Like `run_job`, in this process and so quicker: for jobs that do not start Ray."""

    def call(name: str, *words: object, cwd: Path = tmp_path, **environment: str) -> Done:
        for variable in ("DRONE_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(cwd)
        _, script, *arguments = job_command(name, *words)
        monkeypatch.setattr(sys, "argv", [f"ray_jobs/{name}.py", *arguments])
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
