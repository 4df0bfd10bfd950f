"""Asks a run's exported model about pictures, and logs what came of it."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray

from drone.adapters import dataset_cache, mlflow_model, training_run
from drone.adapters import mlflow_tracking as tracking
from drone.data.dataset import Dataset, Split
from drone.data.unseen import load_unseen
from drone.errors import RunError
from drone.evaluation import report
from drone.evaluation.asking import Gather, Track, ask
from drone.evaluation.metrics import Answers, Scores, Share, score, share
from drone.labels import normalised
from drone.serving.predictor import Predictor


@dataclass(frozen=True)
class Asked:
    """Pictures, and what the model said of them."""

    name: str
    """Short, for metrics and folders: "test" is the test split of the run's own data set."""

    title: str
    answers: Answers
    pixels_of: Gather
    facts: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    """Path and reason of each file that was not asked about."""

    by_labels: dict[str, Share] = field(default_factory=dict)
    """Accuracy against the labels before and after a person's review; empty without one."""


def ask_split(run: Run, predictor: Predictor, data: str | None, track: Track) -> Asked:
    """Asks about the test split of a data set, by default the one that the run was trained on.

    Raises:
        RunError: the data set was prepared in another way than the model wants.
    """
    dataset = dataset_cache.open_at(data or training_run.plan_of(run.info.run_id).data)
    if dataset.classes != predictor.classes or dataset.preprocessing != predictor.preprocessing:
        raise RunError(
            f"{dataset.folder} was prepared with other classes or another preprocessing than "
            f"the model of run {run.info.run_name} was trained with."
        )
    test = dataset.split("test")
    own = dataset.fingerprint == run.data.tags.get("fingerprint")
    answers = Answers(
        paths=test.paths,
        labels_N=test.labels_N,
        probs_NK=ask(predictor.predict_pixels, len(test), test.gather, track),
        classes=predictor.classes,
    )
    return Asked(
        name="test" if own else f"test-{dataset.fingerprint[:8]}",
        title="its test split" if own else f"the test split of {dataset.folder}",
        answers=answers,
        pixels_of=test.gather,
        facts={"data set": str(dataset.folder), "fingerprint": dataset.fingerprint},
        by_labels=_by_labels(predictor, test, answers, dataset, track),
    )


def _by_labels(
    predictor: Predictor, test: Split, answers: Answers, dataset: Dataset, track: Track
) -> dict[str, Share]:
    """Accuracy against the labels as given, without those that a person changed, and changed."""
    given, touched_N = dataset.as_given(test.name)
    if not touched_N.any():
        return {}
    predicted = dict(zip(test.rows_N, answers.predicted_N, strict=True))
    # What a person dropped is no part of the split, and so was not asked about yet.
    dropped_M = np.setdiff1d(given.rows_N, test.rows_N)
    if len(dropped_M):
        probs_MK = ask(
            predictor.predict_pixels,
            len(dropped_M),
            lambda positions_B: dataset.pixels(dropped_M[positions_B]),
            track,
        )
        predicted |= zip(dropped_M, probs_MK.argmax(axis=1), strict=True)
    right_N = np.array([predicted[row] for row in given.rows_N]) == given.labels_N
    return {
        "raw": share(right_N),
        "cleaned": share(right_N[~touched_N]),
        "relabelled": share(answers.predicted_N == answers.labels_N),
    }


def ask_folder(run: Run, predictor: Predictor, folder: Path, track: Track) -> Asked:
    """Asks about the pictures of a folder of class folders that the model has not seen."""
    with tempfile.TemporaryDirectory() as temporary:
        file = tracking.download(run.info.run_id, tracking.PICTURES_FILE, Path(temporary))
        trained_on = pd.read_parquet(file)
    unseen = load_unseen(folder, predictor.classes, predictor.preprocessing, trained_on, track)

    def gather(positions_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        return unseen.pixels_NHWC[positions_N]

    answers = Answers(
        paths=unseen.paths,
        labels_N=unseen.labels_N,
        probs_NK=ask(predictor.predict_pixels, len(unseen.paths), gather, track),
        classes=predictor.classes,
    )
    return Asked(
        name=f"images-{normalised(folder.resolve().name)}",
        title=str(folder),
        answers=answers,
        pixels_of=gather,
        facts={"pictures": str(folder), "left out": f"{len(unseen.left_out)} files"},
        left_out=unseen.left_out,
    )


def write(run: Run, asked: Asked, out: Path) -> tuple[Scores, Path]:
    """Scores the answers, writes the report and logs both to the run.

    Returns:
        The scores and the report's path.
    """
    scores = score(asked.answers)
    run_id, tags = run.info.run_id, run.data.tags
    best = run.data.metrics.get("best/epoch")
    subject = report.Subject(
        title=f"{run.info.run_name} on {asked.title}",
        facts={
            "run": run_id,
            "preset": tags.get("preset", ""),
            "starting weights": tags.get("pretrained", ""),
            **asked.facts,
        },
        history=tracking.history(run_id),
        best_epoch=int(best) if best is not None else None,
    )
    folder = out / f"{run.info.run_name}-{run_id[:8]}" / asked.name
    written = report.write(folder, asked.answers, scores, subject, asked.pixels_of)
    values = scores.as_dict().items()
    summary = {f"{asked.name}/{name}": value for name, value in values if isinstance(value, float)}
    summary |= {
        f"{asked.name}/accuracy_{name}": found.value for name, found in asked.by_labels.items()
    }
    with tracking.reopened(run_id) as reopened:
        reopened.log_summary(summary)
        reopened.log_folder(folder, f"evaluation/{asked.name}")
    return scores, written.resolve()


def find(run: str | None, model: str | None) -> Run:
    """The run that is named, or that a registered model came from."""
    return tracking.find_run(mlflow_model.named(model, None).run_id if model else str(run))
