"""Says what a model is worth: on the test split of its data set, or on pictures it never saw.

    python ray_jobs/evaluate.py --run finetune-s0
    python ray_jobs/evaluate.py --model models:/drone-classifier@champion --data data/drones
    python ray_jobs/evaluate.py --run finetune-s0 --images pictures-of-other-origin

Writes one HTML report with all that is beside it (predictions.csv, metrics.json, figures) and logs
it to the run. The answers come from the exported model, the one that is served.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# `ray submit` copies a job alone to the cluster: find the project beside it, here or in ~/app.
PLACES = (*Path(__file__).resolve().parents, Path.cwd(), Path.home() / "app")
sys.path.insert(0, str(next(place for place in PLACES if (place / "drone").is_dir())))

from drone.errors import ConfigError, RunError
from ray_jobs import cli

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Arguments of the job."""

    run: str | None = None
    """Run whose model is evaluated, by id or name (the newest of that name)."""

    model: str | None = None
    """Registered model instead, such as models:/drone-classifier@champion."""

    data: Path | None = None
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
    from drone.adapters import mlflow_model
    from drone.adapters import mlflow_tracking as tracking
    from drone.evaluation import metrics, report
    from drone.serving.predictor import Predictor

    tracking.connect(job.experiment)
    run_id = mlflow_model.run_of_model(job.model) if job.model else None
    run = tracking.find_run(run_id or str(job.run))
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as temporary:
        predictor = Predictor(mlflow_model.fetch_onnx(run_id, Path(temporary)))
        answers, pixels_of, what = _ask(job, run, predictor)
    scores = metrics.score(answers)
    history = tracking.history(run_id)
    best = run.data.metrics.get("best/epoch")
    subject = report.Subject(
        title=f"{run.info.run_name} on {what.title}",
        facts={
            "run": run_id,
            "preset": run.data.tags.get("preset", ""),
            "starting weights": run.data.tags.get("pretrained", ""),
            **what.facts,
        },
        history=history,
        best_epoch=int(best) if best is not None else None,
    )
    folder = job.out / f"{run.info.run_name}-{run_id[:8]}" / what.name
    written = report.write(folder, answers, scores, subject, pixels_of)
    summary = {
        f"{what.name}/{name}": value
        for name, value in scores.as_dict().items()
        if isinstance(value, float)
    }
    with tracking.reopened(run_id) as reopened:
        reopened.log_summary(summary)
        reopened.log_folder(folder, f"evaluation/{what.name}")
    _show(scores)
    cli.console.print(metrics.describe(scores))
    cli.console.print(f"Report: {written.resolve()}", soft_wrap=True)
    return {
        "run_id": run_id,
        "report": str(written.resolve()),
        "on": what.name,
        "left_out": what.left_out,
        **scores.as_dict(),
    }


@dataclass(frozen=True)
class What:
    """The pictures of an evaluation."""

    name: str
    """Short, for metrics and folders: "test" is the test split of the run's own data set."""

    title: str
    facts: dict[str, str]
    left_out: dict[str, str]


def _ask(job, run, predictor):  # type: ignore[no-untyped-def]
    """The model's answers, a way to the pictures, and what they are."""
    return _ask_folder(job, run, predictor) if job.images else _ask_split(job, run, predictor)


def _ask_split(job, run, predictor):  # type: ignore[no-untyped-def]
    from drone.adapters import mlflow_model
    from drone.data.dataset import open_dataset
    from drone.evaluation.metrics import Answers

    data = job.data
    if data is None:
        with tempfile.TemporaryDirectory() as temporary:
            launch = mlflow_model.read_json(run.info.run_id, "launch.json", Path(temporary))
        data = Path(str(launch["data"]))
    dataset = open_dataset(data)
    if dataset.classes != predictor.classes or dataset.preprocessing != predictor.preprocessing:
        raise RunError(
            f"{data} was prepared with other classes or another preprocessing than the model of "
            f"run {run.info.run_name} was trained with."
        )
    test = dataset.split("test")
    own = dataset.fingerprint == run.data.tags.get("fingerprint")
    name = "test" if own else f"test-{dataset.fingerprint[:8]}"
    answers = Answers(
        paths=test.paths,
        labels_N=test.labels_N,
        probs_NK=_probabilities(predictor, len(test), test.gather),
        classes=predictor.classes,
    )
    facts = {"data set": str(data), "fingerprint": dataset.fingerprint}
    return answers, test.gather, What(name, "its test split" if own else str(data), facts, {})


def _ask_folder(job, run, predictor):  # type: ignore[no-untyped-def]
    import pandas as pd
    from rich.progress import Progress

    from drone.adapters import mlflow_tracking as tracking
    from drone.data.unseen import load_unseen
    from drone.evaluation.metrics import Answers
    from drone.labels import normalised

    with tempfile.TemporaryDirectory() as temporary:
        file = tracking.download(run.info.run_id, tracking.PICTURES_FILE, Path(temporary))
        trained_on = pd.read_parquet(file)
    with Progress(console=cli.console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        unseen = load_unseen(
            job.images,
            predictor.classes,
            predictor.preprocessing,
            trained_on,
            lambda total: bar.update(task, total=total, advance=1),
        )
    if unseen.left_out:
        path, reason = next(iter(unseen.left_out.items()))
        cli.console.print(
            f"[yellow]{len(unseen.left_out)} files are left out, such as {path}: {reason}[/]"
        )

    def gather(positions):  # type: ignore[no-untyped-def]
        return unseen.pixels_NHWC[positions]

    answers = Answers(
        paths=unseen.paths,
        labels_N=unseen.labels_N,
        probs_NK=_probabilities(predictor, len(unseen.paths), gather),
        classes=predictor.classes,
    )
    name = f"images-{normalised(job.images.resolve().name)}"
    facts = {"pictures": str(job.images), "left out": f"{len(unseen.left_out)} files"}
    return answers, gather, What(name, str(job.images), facts, unseen.left_out)


def _probabilities(predictor, count, gather):  # type: ignore[no-untyped-def]
    """The answers for all pictures, a batch at a time."""
    import numpy as np
    from rich.progress import track

    starts = track(
        range(0, count, _BATCH), "asking the model", console=cli.console, transient=True
    )
    return np.concatenate(
        [
            predictor.predict_pixels(gather(np.arange(start, min(start + _BATCH, count))))
            for start in starts
        ]
    )


def _show(scores) -> None:  # type: ignore[no-untyped-def]
    rows = [
        [name, row["precision"], row["recall"], row["f1"], int(row["support"])]
        for name, row in scores.by_class.to_dict("index").items()
    ]
    cli.table("By class", ["class", "precision", "recall", "F1", "pictures"], rows)


if __name__ == "__main__":
    cli.start(Evaluate, main, __doc__)
