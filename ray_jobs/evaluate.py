"""Says what a model is worth: on the test split of its data set, or on pictures it never saw.

    python ray_jobs/evaluate.py --run finetune-s0
    python ray_jobs/evaluate.py --model models:/drone-classifier@champion --data data/drones
    python ray_jobs/evaluate.py --run finetune-s0 --images pictures-of-other-origin
    python ray_jobs/evaluate.py --run multires-s0 --against finetune-s0

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

    against: str | None = None
    """Run of a model of one size (such as of preset finetune) to hold a model of mixed resolutions
    against, picture by picture; beside its own pictures squashed to 224 px."""

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
        other = None
        if job.against:
            other_run = evaluation_run.find(job.against, None)
            other_file = mlflow_model.fetch_onnx(other_run.info.run_id, Path(temporary) / "other")
            other = evaluation_run.Other(
                other_run.info.run_name, other_run.info.run_id, Predictor(other_file)
            )
        if job.images:
            asked = evaluation_run.ask_folder(run, predictor, job.images, cli.track, other)
        else:
            asked = evaluation_run.ask_split(run, predictor, job.data, cli.track, other)
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
    if asked.comparisons:
        columns = ["side_px", "pictures", "accuracy", "ms", "accuracy_1", "ms_1"]
        names = ["side", "pictures", "accuracy", "ms", "squashed", "ms"]
        rows = asked.by_size[columns].astype({"ms": int, "ms_1": int})
        cli.table("By size", names, rows.astype(object).to_numpy().tolist())
    for comparison in asked.comparisons:
        cli.console.print(comparison.sentence)
    cli.console.print(describe(scores))
    cli.console.print(f"Report: {written}", soft_wrap=True)
    return {
        "run_id": run.info.run_id,
        "report": str(written),
        "on": asked.name,
        "left_out": asked.left_out,
        "by_size": asked.by_size.to_dict("records"),
        "comparisons": [asdict(comparison) for comparison in asked.comparisons],
        "by_labels": {name: asdict(found) for name, found in asked.by_labels.items()},
        **scores.as_dict(),
    }


if __name__ == "__main__":
    cli.start(Evaluate, main, __doc__)
