"""The demonstration: from raw images to a served champion, each stage as the command of its job.

Without ImageNet weights it trains from random ones, on synthetic images that are simple enough.
Such a score shows that the stages work together; it says nothing about real drones and birds.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drone.commands import command
from drone.data.dataset import open_dataset
from drone.errors import DroneError, RunError, WeightsError
from drone.labels import NONE
from drone.model import weights
from drone.project import ROOT
from drone.storage.raw_roots import open_root
from drone.synth.raw_folder import SynthSettings, write_ground_truth, write_raw_folder
from drone.workflows.display import SILENT, Display
from drone.workflows.requests import DemoRequest

_MAX_SIDE_PX = 448
"""Maximum side of the synthetic images: larger ones take most of the time and show nothing more."""

_MAX_QUESTIONS = 40
"""Maximum number of test images that are sent to the server."""

_MAX_UPLOAD_BYTES = 5 * 2**20


@dataclass(frozen=True)
class Recipe:
    """What is trained, and on how much; chosen to end within five minutes on two cores."""

    presets: tuple[str, ...]
    side_px: int
    """Side of the packed images."""

    images_per_class: int
    """Number of synthetic images in each class."""

    epochs: int


PRETRAINED = Recipe(("frozen", "finetune"), side_px=224, images_per_class=150, epochs=4)
SCRATCH = Recipe(("scratch",), side_px=96, images_per_class=450, epochs=24)
"""At 224 px the same number of training steps would take five times as long."""


@dataclass(frozen=True)
class Answers:
    """What the server answered about images of the test split."""

    num_images: int
    num_right: int
    num_as_reported: int
    """Number of answers equal to the prediction in the report."""

    example: str
    """One right answer in a sentence; a wrong one if there is no right one."""


@dataclass(frozen=True)
class DemoResult:
    """How the demonstration ended."""

    runs: list[dict[str, Any]]
    """What train and evaluate returned, by run."""

    best: dict[str, Any]
    """The run with the highest macro F1 on validation."""

    champion: str | None
    """URI of the promoted model; None if the best run did not pass the gate."""

    answers: Answers
    pretrained: str
    """Starting weights: "none", "imagenet" or a file name."""

    drawn: bool
    """Whether the images are synthetic."""

    seconds: float


def run(request: DemoRequest, display: Display = SILENT) -> DemoResult:
    """Runs every stage, from raw images to a served model.

    Raises:
        WeightsError: The file of weights cannot be read.
        RunError: A command failed.
    """
    start_s = time.monotonic()
    request.out.mkdir(parents=True, exist_ok=True)
    source, recipe = choose_recipe(request, display)
    raw = request.raw or _draw(request, recipe, display)
    data = request.out / f"dataset-{recipe.side_px}px"
    side_px = ["--preprocessing.side-px", recipe.side_px] if recipe is SCRATCH else []
    _call("prepare", "--raw", raw, "--out", data, *side_px, display=display)
    runs = [_train(request, recipe, preset, source, data, display) for preset in recipe.presets]
    best = max(runs, key=lambda row: float(row["best"]["macro_f1"]))
    champion = _promote(best["run_id"], display)
    model = ("--model", champion) if champion else ("--run", best["run_id"])
    _call("export", *model, "--out", request.out / "export", display=display)
    return DemoResult(
        runs=runs,
        best=best,
        champion=champion,
        answers=_ask(model, data, Path(best["report"]).parent, display),
        pretrained=source if source in ("none", "imagenet") else Path(source).name,
        drawn=request.raw is None,
        seconds=time.monotonic() - start_s,
    )


def choose_recipe(request: DemoRequest, display: Display = SILENT) -> tuple[str, Recipe]:
    """Returns the starting weights and what is trained from them.

    Random weights replace ImageNet's if those cannot be downloaded, with a loud warning.

    Raises:
        WeightsError: The file of weights cannot be read.
    """
    source = request.weights
    try:
        weights.load(source)
    except WeightsError as error:
        if source != "imagenet":
            raise
        display.warn(str(error))
        source = "none"
    if source != "none":
        return source, PRETRAINED
    display.warn(
        "",
        "TRAINING FROM RANDOM WEIGHTS with the preset scratch: all layers, images of 96 px.",
        "The task is made up and easy: synthetic images, not photos. Its score says nothing about "
        "real drones and birds."
        if request.raw is None
        else "It is meant for simple synthetic images: expect low scores on photos.",
        "",
    )
    return source, SCRATCH


def _draw(request: DemoRequest, recipe: Recipe, display: Display) -> Path:
    """Draws the raw folder unless it exists."""
    number = request.images_per_class or recipe.images_per_class
    folder = request.out / f"raw-{number}-s{request.seed}"
    truth = request.out / f"{folder.name}.json"
    if not truth.exists():  # It is written last: an interrupted generation is repeated.
        display.show(f"Generating {number} images per class, with defects among the files ...")
        settings = SynthSettings(
            images_per_class=number, max_side_px=_MAX_SIDE_PX, seed=request.seed
        )
        write_ground_truth(write_raw_folder(folder, settings), truth)
    display.show(f"The synthetic images are in {folder}, and their defects are listed in {truth}")
    return folder


def _train(
    request: DemoRequest, recipe: Recipe, preset: str, source: str, data: Path, display: Display
) -> dict[str, Any]:
    """Trains and evaluates a preset; returns what both commands returned."""
    epochs, storage = request.epochs or recipe.epochs, request.out / "runs"
    flags = ["--epochs", epochs, "--seed", request.seed, "--storage", storage]
    result = _call("train", preset, "--data", data, "--weights", source, *flags, display=display)
    reports = request.out / "reports"
    return result | _call("evaluate", "--run", result["run_id"], "--out", reports, display=display)


def _promote(run_id: str, display: Display) -> str | None:
    """Returns the champion's URI, or None if the gate rejected the run."""
    try:
        result = _call("promote", "--run", run_id, display=display)
    except DroneError:
        return None  # A decision of the gate, which the command has explained; the demo continues.
    return f"models:/{result['name']}@champion"


def _ask(model: Sequence[str], data: Path, report: Path, display: Display) -> Answers:
    """Asks the served model about files of the test split."""
    rows = open_dataset(data).rows("test")
    rows = rows[rows["size_bytes"] <= _MAX_UPLOAD_BYTES]
    # Evenly spaced over the rows, which are sorted by path: all classes are among them.
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _MAX_QUESTIONS)).astype(int)
    rows = rows.iloc[chosen]
    with _served(model, display) as url:
        answers = [
            _predict(url, open_root(root).read(path, _MAX_UPLOAD_BYTES))
            for root, path in zip(rows["root"], rows["path"], strict=True)
        ]
    # As the report counts: by the predicted class, also where the answer is none of these.
    predicted = np.array([list(answer["probabilities"])[answer["index"]] for answer in answers])
    right = predicted == rows["class_name"].to_numpy()
    is_known = np.array([answer["label"] != NONE for answer in answers])
    # As text: a class may be called NA or 01.
    table = pd.read_csv(report / "predictions.csv", keep_default_na=False, dtype=str)
    reported = table.set_index("path")["predicted"]
    shown = int((right & is_known).argmax())
    return Answers(
        num_images=len(rows),
        num_right=int(right.sum()),
        num_as_reported=int((predicted == reported.loc[rows["path"]].to_numpy()).sum()),
        example=f"{rows['path'].iloc[shown]} shows {predicted[shown]} "
        f"({answers[shown]['confidence']:.0%})",
    )


@contextmanager
def _served(model: Sequence[str], display: Display) -> Iterator[str]:
    """Serves a model on a free port; yields the URL."""
    arguments = [*model, "--port", "0"]
    shown = command("serve", *arguments)
    display.show("", f"$ {shown}")
    words = [sys.executable, str(ROOT / "ray_jobs" / "serve.py"), *arguments]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = next((re.search(r"http://\S+", line) for line in server.stdout), None)
            if url is None:
                raise RunError(f"The server ended before it listened. See why: {shown}")
            yield url[0]
        finally:
            server.terminate()


def _predict(url: str, image: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/predict", image, timeout=60) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def _call(job: str, *arguments: object, display: Display) -> dict[str, Any]:
    """Runs a job as the user would, after showing its command; returns its result."""
    flags = [str(argument) for argument in arguments]
    display.show("", f"$ {command(job, *flags)}")
    words = [sys.executable, str(ROOT / "ray_jobs" / f"{job}.py"), *flags, "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise RunError(
            f"The command {command(job, *flags)} ended with exit code {done.returncode}; its own "
            f"message is above."
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
