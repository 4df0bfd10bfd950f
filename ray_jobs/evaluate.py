"""Evaluates a model: on its test split, on images that it has never seen, or by its served answers.

    python ray_jobs/evaluate.py --run finetune-s0
    python ray_jobs/evaluate.py --model models:/drone-classifier@champion --data data/drones
    python ray_jobs/evaluate.py --run finetune-s0 --images images-of-other-origin
    python ray_jobs/evaluate.py --run finetune-s0 --boxes boxes.csv
    python ray_jobs/evaluate.py --run multires-s0 --against finetune-s0
    python ray_jobs/evaluate.py --served served --data data/drones

Writes one HTML report with everything beside it (predictions.csv, metrics.json, figures) and logs
it to the run. The predictions are those of the exported model, the one that is served.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
ROOTS = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(root for root in ROOTS if (root / "drone").is_dir())))

from ray_jobs import bug_report

bug_report.install(__name__)

from drone.workflows.requests import EvaluateRequest
from ray_jobs import cli, console, results


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluateRequest):
    """Arguments of the job."""

    json: bool = False
    """Print the result as one JSON object, last."""


def main(job: Evaluate) -> cli.Result:
    """Runs the job."""
    if job.served is not None:
        from drone.workflows import served_evaluation

        in_use = served_evaluation.evaluate_served(job, console.ConsoleDisplay())
        results.show_served(in_use)
        return in_use.as_dict()
    # Imported late: it takes seconds, for which --help and wrong usage should not wait.
    from drone.workflows import evaluation

    result = evaluation.evaluate(job, console.ConsoleDisplay())
    results.show_evaluation(result)
    return result.as_dict()


if __name__ == "__main__":
    cli.start(Evaluate, main, __doc__)
