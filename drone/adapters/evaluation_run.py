"""Asks a run's exported model about pictures, and logs what came of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray

from drone.adapters import dataset_cache, mlflow_model, training_run
from drone.adapters import mlflow_tracking as tracking
from drone.data.dataset import Dataset, Split
from drone.data.unseen import load_unseen
from drone.errors import ConfigError, RunError
from drone.evaluation import report, sizes
from drone.evaluation.asking import Gather, Track, ask
from drone.evaluation.metrics import Answers, Scores, Share, score, share
from drone.evaluation.sizes import Comparison
from drone.labels import normalised
from drone.serving.predictor import Predictor
from drone.serving.timing import milliseconds


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

    by_size: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Of a model of mixed resolutions: see `sizes.by_size`."""

    comparisons: tuple[Comparison, ...] = ()
    """Of a model of mixed resolutions, against all pictures squashed to one size."""


@dataclass(frozen=True)
class Other:
    """A model to compare with."""

    name: str
    run_id: str
    predictor: Predictor


def ask_split(
    run: Run, predictor: Predictor, data: str | None, track: Track, against: Other | None = None
) -> Asked:
    """Asks about the test split of a data set, by default the one that the run was trained on.

    Args:
        run: whose model.
        predictor: the model.
        data: data set; None takes the run's own.
        track: shows how far it is.
        against: a model of one size to compare a model of mixed resolutions with.

    Raises:
        RunError: the data set was prepared in another way than the model wants, or one of the
            models was trained or chosen on its test pictures.
        ConfigError: the model is of one size and there is another to hold it against.
    """
    _check_against(predictor, against)
    place = data or training_run.plan_of(run.info.run_id).data
    dataset = dataset_cache.open_at(place, at_bins=bool(predictor.sides_px))
    if dataset.classes != predictor.classes or dataset.preprocessing != predictor.preprocessing:
        raise RunError(
            f"{dataset.folder} was prepared with other classes or another preprocessing than "
            f"the model of run {run.info.run_name} was trained with."
        )
    own = dataset.fingerprint == run.data.tags.get("fingerprint")
    if not own:
        advice = "--images FOLDER leaves such pictures out"
        _check_unseen(dataset, run.info.run_id, str(run.info.run_name), advice)
    if against:
        _check_unseen(dataset, against.run_id, against.name, f"train it on {place}")
    squashed = replace(dataset, at_own_sizes=False).split("test")
    test = dataset.split("test")
    answers = Answers(
        paths=test.paths,
        labels_N=test.labels_N,
        probs_NK=ask(predictor.predict_pixels, test.sides_N, test.gather, track),
        classes=predictor.classes,
    )
    asked = Asked(
        name="test" if own else f"test-{dataset.fingerprint[:8]}",
        title="its test split" if own else f"the test split of {dataset.folder}",
        answers=answers,
        pixels_of=squashed.gather,
        facts={"data set": str(dataset.folder), "fingerprint": dataset.fingerprint},
        by_labels=_by_labels(predictor, test, answers, dataset, track),
    )
    return _compared(asked, test.sides_N, predictor, track, against)


def _check_unseen(dataset: Dataset, run_id: str, name: str, advice: str) -> None:
    """Fails if a run was trained or chosen on pictures that it is to be asked about."""
    known = dataset.rows("test")["md5"].isin(tracking.learnt_from(run_id)).sum()
    if known:
        raise RunError(
            f"{name} was trained or chosen on {known} of the test pictures of {dataset.folder}, so "
            f"it would look better than it is; {advice}."
        )


def _check_against(predictor: Predictor, against: Other | None) -> None:
    """Fails before any work if a model cannot be held against another."""
    if against is None:
        return
    if not predictor.sides_px:
        raise ConfigError(
            "--against compares a model of mixed resolutions, such as of preset multires, with "
            "one of a single size; this model has a single size itself. promote.py compares "
            "any two."
        )
    other = against.predictor
    if other.classes != predictor.classes or other.preprocessing != predictor.preprocessing:
        raise RunError(
            f"{against.name} has other classes or another preprocessing, so the two cannot be "
            f"asked about the same pixels."
        )


def _compared(
    asked: Asked,
    sides_N: NDArray[np.int64],
    predictor: Predictor,
    track: Track,
    against: Other | None,
) -> Asked:
    """With own sizes held against squashing, for a model that takes them."""
    if not predictor.sides_px:
        return asked
    others = {"squashed to 224 px": predictor}
    if against:
        others[f"of {against.name}, squashed"] = against.predictor
    sides = [int(side) for side in np.unique(sides_N)]
    own_ms = {side: milliseconds(predictor, side) for side in sides}
    ways = [sizes.Way("at their own sizes", asked.answers, own_ms)]
    one_size = np.full(len(sides_N), predictor.preprocessing.side_px)
    for name, other in others.items():
        probs_NK = ask(other.predict_pixels, one_size, asked.pixels_of, track)
        answers = replace(asked.answers, probs_NK=probs_NK)
        ways.append(sizes.Way(name, answers, dict.fromkeys(sides, milliseconds(other))))
    return replace(
        asked,
        by_size=sizes.by_size(sides_N, ways),
        comparisons=tuple(sizes.compare(sides_N, ways[0], way) for way in ways[1:]),
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
    dropped_M = np.flatnonzero(~np.isin(given.rows_N, test.rows_N))
    if len(dropped_M):
        probs_MK = ask(
            predictor.predict_pixels,
            given.sides_N[dropped_M],
            lambda positions_B: given.gather(dropped_M[positions_B]),
            track,
        )
        predicted |= zip(given.rows_N[dropped_M], probs_MK.argmax(axis=1), strict=True)
    right_N = np.array([predicted[row] for row in given.rows_N]) == given.labels_N
    return {
        "raw": share(right_N),
        "cleaned": share(right_N[~touched_N]),
        "relabelled": share(answers.predicted_N == answers.labels_N),
    }


def ask_folder(
    run: Run, predictor: Predictor, folder: Path, track: Track, against: Other | None = None
) -> Asked:
    """Asks about the pictures of a folder of class folders that the model has not seen."""
    _check_against(predictor, against)
    runs = [run.info.run_id, *([against.run_id] if against else [])]
    trained_on = pd.concat([tracking.pictures_of(run_id) for run_id in runs])
    unseen = load_unseen(folder, predictor.classes, predictor.preprocessing, trained_on, track)

    def squashed(positions_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        return unseen.pixels_NHWC[positions_N]

    gather = unseen.at_own_sizes if predictor.sides_px else squashed
    count, side_px = len(unseen.paths), predictor.preprocessing.side_px
    sides_N = unseen.sides_N if predictor.sides_px else np.full(count, side_px)
    answers = Answers(
        paths=unseen.paths,
        labels_N=unseen.labels_N,
        probs_NK=ask(predictor.predict_pixels, sides_N, gather, track),
        classes=predictor.classes,
    )
    asked = Asked(
        name=f"images-{normalised(folder.resolve().name)}",
        title=str(folder),
        answers=answers,
        pixels_of=squashed,
        facts={"pictures": str(folder), "left out": f"{len(unseen.left_out)} files"},
        left_out=unseen.left_out,
    )
    return _compared(asked, sides_N, predictor, track, against)


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
        by_size=asked.by_size,
        comparisons=asked.comparisons,
    )
    folder = out / f"{run.info.run_name}-{run_id[:8]}" / asked.name
    written = report.write(folder, asked.answers, scores, subject, asked.pixels_of)
    values = scores.as_dict().items()
    summary = {f"{asked.name}/{name}": value for name, value in values if isinstance(value, float)}
    summary |= {
        f"{asked.name}/accuracy_{name}": found.value for name, found in asked.by_labels.items()
    }
    if asked.comparisons:
        summary[f"{asked.name}/accuracy_squashed"] = asked.comparisons[0].baseline
    with tracking.reopened(run_id) as reopened:
        reopened.log_summary(summary)
        reopened.log_folder(folder, f"evaluation/{asked.name}")
    return scores, written.resolve()


def find(run: str | None, model: str | None) -> Run:
    """The run that is named, or that a registered model came from."""
    return tracking.find_run(mlflow_model.named(model, None).run_id if model else str(run))
