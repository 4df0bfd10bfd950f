"""Runs every stage on one machine: raw images, data set, runs, reports, a champion that answers.

    python ray_jobs/demo.py                                  (on generated synthetic images)
    python ray_jobs/demo.py --raw images --weights FILE      (on your own images)

Each step is the command that you would type; it is shown before it runs. Without ImageNet weights
all layers are trained from random ones, on small synthetic images that are easy to tell apart: this
shows how the stages fit together, and says nothing about real drones and birds.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.commands import command
from drone.workflows.requests import DemoRequest
from ray_jobs import cli, console

if TYPE_CHECKING:
    from drone.workflows.demo import DemoResult


@dataclass(frozen=True, kw_only=True)
class Demo(DemoRequest):
    """Arguments of the job."""

    weights: str = field(default_factory=cli.default_weights)
    """Starting weights: imagenet (downloaded once; random if that fails), none (random) or a file;
    DRONE_WEIGHTS sets another default."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Demo) -> cli.Result:
    """Runs the job."""
    from drone.workflows import demo

    result = demo.run(job, console.ConsoleDisplay())
    _show(result)
    return {
        "runs": [row["run_id"] for row in result.runs],
        "report": result.best["report"],
        "accuracy": result.best["accuracy"],
        "champion": result.champion,
        "answers": asdict(result.answers),
        "pretrained": result.pretrained,
    }


def _show(result: "DemoResult") -> None:
    console.table(
        "Runs",
        ["run", "id", "validation macro F1", "test accuracy", "test macro F1", "weights"],
        [
            [
                row["run_name"],
                row["run_id"][:8],
                row["best"]["macro_f1"],
                row["accuracy"],
                row["macro_f1"],
                result.pretrained,
            ]
            for row in result.runs
        ],
    )
    if result.drawn:
        console.warn(
            "These scores are on synthetic images that are easy to tell apart. They say nothing "
            "about real drones and birds."
        )
    answers = result.answers
    champion = result.champion or "unchanged: the best run did not pass the gate"
    console.show(
        f"Report of the best run:  {result.best['report']}",
        f"Champion:                {champion}",
        f"Answers over HTTP:       {answers.num_right} of {answers.num_images} test images right, "
        f"{answers.num_as_reported} as in the report",
        f"One of them:             {answers.example}",
        "Compare the runs:        make ui     (then http://127.0.0.1:5000)",
        "Try the champion:        make page   (then http://127.0.0.1:8000)"
        if result.champion
        else f"Try the best run:        {command('serve', run=result.best['run_id'], open=True)}",
        f"Done in {result.seconds:.0f} s.",
    )


if __name__ == "__main__":
    cli.start(Demo, main, __doc__)
