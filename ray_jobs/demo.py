"""The whole way on one machine: raw folders, data set, runs, reports, a champion that answers.

    python ray_jobs/demo.py                                    (a made-up set, drawn for this)
    python ray_jobs/demo.py --raw pictures --weights FILE      (your own)

Each step is the command that you would type; it is shown before it runs.
"""

import io
import json as jsonlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
ROOT = next(place for place in PLACES if (place / "drone").is_dir())
sys.path.insert(0, str(ROOT))

from drone.errors import DroneError, RunError, WeightsError
from ray_jobs import cli

_NO_FLOOR = ["--limits.floor", "0", "--limits.most-ece", "1"]
"""Random weights learn too little for the gate's own limits."""

_FROM_SCRATCH = ["--model.unfreeze-depth", "19", "--model.batchnorm", "trainable"]
_FROM_SCRATCH += ["--optim.lr-backbone", "2e-3", "--optim.lr-head", "2e-3"]
_FROM_SCRATCH += ["--optim.head-epochs", "0", "--augment.strength", "0.25", "--epochs", "10"]
"""Nothing is worth keeping frozen in random weights: all blocks learn, at a higher rate."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Arguments of the job."""

    raw: Path | None = None
    """Folder with one subfolder a class; by default a made-up set is drawn."""

    weights: str = field(default_factory=lambda: os.environ.get("DRONE_WEIGHTS", "imagenet"))
    """imagenet (downloaded once), none (random) or a file."""

    out: Path = Path("demo")
    """Folder for the pictures, the data set and the reports."""

    images_per_class: int = 60
    """Pictures to draw of each class."""

    epochs: int = 4
    """Epochs of each run."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Demo) -> cli.Result:
    """Runs the job."""
    began = time.monotonic()
    job.out.mkdir(parents=True, exist_ok=True)
    weights = _weights(job.weights)
    raw = job.raw or _draw(job)
    data = job.out / "dataset"
    _step("prepare", "--raw", str(raw), "--out", str(data))
    rows = []
    for preset in ("frozen", "finetune"):
        words = [preset, "--data", str(data), "--weights", weights, "--epochs", str(job.epochs)]
        if weights == "none" and preset == "finetune":
            words += _FROM_SCRATCH
        run = _step("train", *words, "--storage", str(job.out / "runs"))
        found = _step("evaluate", "--run", run["run_id"], "--out", str(job.out / "reports"))
        rows.append({**run, **found})
    best = max(rows, key=lambda row: row["best"]["macro_f1"])
    promoted = _promote(best["run_id"], _NO_FLOOR if weights == "none" else [])
    model = [f"--model=models:/{promoted}"] if promoted else ["--run", best["run_id"]]
    _step("export", *model, "--out", str(job.out / "export"))
    answer = _ask(model, data)
    cli.table(
        "Runs",
        ["run", "id", "validation macro F1", "test accuracy", "test macro F1", "pretrained"],
        [
            [
                row["run_name"],
                row["run_id"][:8],
                row["best"]["macro_f1"],
                row["accuracy"],
                row["macro_f1"],
                "none" if weights == "none" else Path(weights).name,
            ]
            for row in rows
        ],
    )
    if weights == "none":
        _loud("These scores come from random weights (every run is tagged pretrained=none).")
    cli.console.print(f"Report of the best run:  {best['report']}", soft_wrap=True)
    said = promoted or "unchanged: the best run did not pass the gate"
    cli.console.print(f"Champion:                {said}")
    cli.console.print(f"Its answer over HTTP:    {answer}", soft_wrap=True)
    cli.console.print("Compare the runs:        make ui     (then http://127.0.0.1:5000)")
    cli.console.print("Try it on a page:        make page   (then http://127.0.0.1:8000)")
    cli.console.print(f"Done in {time.monotonic() - began:.0f} s.")
    return {"runs": [row["run_id"] for row in rows], "report": best["report"]}


def _weights(wanted: str) -> str:
    """The weights that can be had: those wanted, or random ones with a loud warning."""
    from drone.model import weights

    try:
        weights.load(wanted)
    except WeightsError as error:
        if wanted != "imagenet":
            raise
        _loud(
            f"{error}\n\nThe demonstration goes on from RANDOM WEIGHTS. Its scores say nothing "
            f"about the method; every run is tagged pretrained=none."
        )
        return "none"
    return wanted


def _loud(text: str) -> None:
    from rich.panel import Panel

    cli.console.print(Panel(text, title="No pretrained weights", border_style="bold yellow"))


def _draw(job: Demo) -> Path:
    """Draws the made-up set, unless it is there already."""
    from drone.data.synth import SynthSettings, make, write_truth

    raw, truth = job.out / "raw", job.out / "truth.json"
    if not truth.exists():
        cli.console.print(f"Drawing {4 * job.images_per_class} pictures with known dirt ...")
        write_truth(make(raw, SynthSettings(images_per_class=job.images_per_class)), truth)
    cli.console.print(f"Made-up pictures are in {raw}; what is wrong with them in {truth}")
    return raw


def _promote(run_id: str, limits: list[str]) -> str | None:
    """The champion's name and alias; None if the gate said no, which is no failure of the demo."""
    try:
        result = _step("promote", "--run", run_id, *limits)
    except DroneError:
        return None
    return f"{result['name']}@champion"


def _ask(model: list[str], data: Path) -> str:
    """What the served model says of a test picture."""
    import numpy as np
    from PIL import Image

    from drone.data.dataset import open_dataset

    test = open_dataset(data).split("test")
    picture = io.BytesIO()
    Image.fromarray(test.gather(np.array([0]))[0]).save(picture, "PNG")
    words = [*model, "--port", "0"]
    cli.console.print(f"\n[bold]$ python ray_jobs/serve.py {' '.join(words)}[/]", soft_wrap=True)
    command = [sys.executable, str(ROOT / "ray_jobs" / "serve.py"), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            found = next((re.search(r"http://\S+", line) for line in server.stdout), None)
            if found is None:
                raise RunError("serve ended before it listened; run it by hand to see why.")
            request = urllib.request.Request(f"{found[0]}/predict", picture.getvalue())
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = jsonlib.loads(response.read())
        finally:
            server.terminate()
    sure = "unsure" if answer["unsure"] else f"{answer['confidence']:.0%}"
    return f"{test.paths[0]} shows {answer['label']} ({sure})"


def _step(name: str, *words: str) -> dict[str, Any]:
    """Runs a job as a person would and gives its result."""
    script = ROOT / "ray_jobs" / f"{name}.py"
    cli.console.print(f"\n[bold]$ python ray_jobs/{name}.py {' '.join(words)}[/]", soft_wrap=True)
    command = [sys.executable, str(script), *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise RunError(f"{name} ended with exit code {done.returncode}; see above.")
    result: dict[str, Any] = jsonlib.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    cli.start(Demo, main, __doc__)
