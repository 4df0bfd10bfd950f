"""Says what a model is worth: on the test split of its data set, or on pictures it never saw.

    python ray_jobs/evaluate.py --run finetune-s0
    python ray_jobs/evaluate.py --model models:/drone-classifier@champion --data data/drones
    python ray_jobs/evaluate.py --run finetune-s0 --images pictures-of-other-origin

Writes one HTML report with all that is beside it (predictions.csv, metrics.json, figures) and logs
it to the run. The answers come from the exported model, the one that is served.
"""

import sys
import tempfile
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError
from ray_jobs import cli


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Arguments of the job."""

    run: str | None = None
    """Run whose model is evaluated, by id or name (the newest of that name)."""

    model: str | None = None
    """Registered model instead, such as models:/drone-classifier@champion."""

    data: str | None = None
    """Data set whose test split is read; by default the one that the run was trained on."""

    images: Path | None = None
    """Folder of class folders to evaluate on instead; what the model was trained on is left out."""

    out: Path = Path("reports")
    """Folder for the report."""

    experiment: str = "drone"
    """Experiment in MLflow."""

    json: bool = False
    """Print the result as one JSON object, last."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ConfigError("Name what to evaluate: either --run RUN or --model URI.")
        if self.data is not None and self.images is not None:
            raise ConfigError("--data and --images exclude each other.")


def main(job: Evaluate) -> cli.Result:
    """Runs the job."""
    from drone.adapters import evaluation_run, mlflow_model
    from drone.adapters import mlflow_tracking as tracking
    from drone.evaluation.metrics import describe
    from drone.serving.predictor import Predictor

    tracking.connect(job.experiment)
    run = evaluation_run.find(job.run, job.model)
    with tempfile.TemporaryDirectory() as temporary:
        predictor = Predictor(mlflow_model.fetch_onnx(run.info.run_id, Path(temporary)))
        if job.images:
            asked = evaluation_run.ask_folder(run, predictor, job.images, cli.track)
        else:
            asked = evaluation_run.ask_split(run, predictor, job.data, cli.track)
    if asked.left_out:
        path, reason = next(iter(asked.left_out.items()))
        cli.console.print(
            f"[yellow]{len(asked.left_out)} files are left out, such as {path}: {reason}[/]"
        )
    scores, written = evaluation_run.write(run, asked, job.out)
    rows = [
        [name, row["precision"], row["recall"], row["f1"], int(row["support"])]
        for name, row in scores.by_class.to_dict("index").items()
    ]
    cli.table("By class", ["class", "precision", "recall", "F1", "pictures"], rows)
    if asked.by_labels:
        cli.table(
            "Accuracy by labels: as given, without those that the review changed, and changed",
            ["labels", "accuracy", "low", "high", "pictures"],
            [[name, *astuple(found)] for name, found in asked.by_labels.items()],
        )
    cli.console.print(describe(scores))
    cli.console.print(f"Report: {written}", soft_wrap=True)
    return {
        "run_id": run.info.run_id,
        "report": str(written),
        "on": asked.name,
        "left_out": asked.left_out,
        "by_labels": {name: asdict(found) for name, found in asked.by_labels.items()},
        **scores.as_dict(),
    }


if __name__ == "__main__":
    cli.start(Evaluate, main, __doc__)
