"""Predicts the images of an evaluation: a test split, or a folder of class folders."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drone.commands import command
from drone.data.dataset import Dataset, Split
from drone.data.prepare.listing import LeftOut
from drone.errors import ConfigError, RunError
from drone.evaluation import mixed_resolution
from drone.evaluation.batch_inference import (
    LoadPixels,
    Track,
    predict_in_batches,
    predict_outputs_in_batches,
)
from drone.evaluation.evidence import LoadEvidence, OutsideBoxes, evidence_loader
from drone.evaluation.latency import measure_latency_ms
from drone.evaluation.metrics import Predictions, Proportion, proportion
from drone.evaluation.mixed_resolution import Comparison, Variant
from drone.evaluation.none_of_these import KnownScores, score_known
from drone.evaluation.operating_point import AlarmScores, OperatingPoint, find_operating_point
from drone.evaluation.unseen import Unseen, load_unseen
from drone.labels import ClassSet
from drone.names import short_key
from drone.serving.predictor import ModelInfo, Predictor, alarm_scores
from drone.serving.preprocess import Preprocessing
from drone.serving.roles import decide
from drone.storage import dataset_cache
from drone.tracking import artifacts
from drone.tracking.runs import Run
from drone.workflows.moved import open_recorded
from drone.workflows.negatives import (
    PredictedNegatives,
    no_negatives,
    predict_negative_folders,
    predict_negatives,
)
from drone.workflows.run_spec import read_spec

_MIN_CLASSES = 2
"""Classes that a model and a data set must have in common."""

OWN_TEST_SPLIT = "test"
"""Name of an evaluation on the test split of the run's own data set."""


@dataclass(frozen=True)
class ImageFile:
    """Where an image lies, and its size in pixels with its EXIF rotation applied."""

    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class EvaluatedImages:
    """Images, and what the model predicted for them."""

    name: str
    """Short, for metrics and folders: "test" is the test split of the run's own data set."""

    title: str
    predictions: Predictions
    load_pixels: LoadPixels
    load_evidence: LoadEvidence
    files: tuple[ImageFile, ...]
    facts: dict[str, str]
    known: KnownScores
    """How well images of the classes are told from negatives."""

    operating_point: OperatingPoint | None
    """How many drones raise an alarm, and how many birds, others and negatives; None without
    drones, or if the classes do not tell them."""

    left_out: dict[str, str] = field(default_factory=dict)
    """Path and reason of each file that was not evaluated."""

    folders_left_out: tuple[LeftOut, ...] = ()
    """Files that were not read, by folder."""

    by_labels: dict[str, Proportion] = field(default_factory=dict)
    """Accuracy against the labels before and after the review; empty without one."""

    by_size: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Of a model of mixed resolutions: see `mixed_resolution.by_size`."""

    comparisons: tuple[Comparison, ...] = ()
    """Of a model of mixed resolutions, against all images squashed to one size."""

    outside_boxes: OutsideBoxes | None = None
    """How much of the evidence lies outside of boxes; None without any."""


@dataclass(frozen=True)
class Baseline:
    """A model of one image size to compare with."""

    name: str
    run_id: str
    predictor: Predictor


def predict_test_split(
    run: Run,
    predictor: Predictor,
    data: str | None,
    track: Track,
    baseline: Baseline | None = None,
) -> EvaluatedImages:
    """Predicts the test split of a data set.

    Args:
        run: Run of the model.
        predictor: The model.
        data: Data set; None takes the one that the run was trained on.
        track: Shows the progress.
        baseline: A model of one image size to compare a model of mixed resolutions with.

    Raises:
        RunError: The data set was prepared in another way than the model needs, or one of the
            models was trained or selected on its test images.
        ConfigError: The model is of one image size and there is a baseline.
    """
    _check_baseline(predictor, baseline)
    # Bins only where the model reads them: not every data set has been packed with them.
    dataset = _open(run, data, at_bins=bool(predictor.info.sides_px))
    difference = _difference(predictor.info, dataset)
    if difference:
        raw = dict.fromkeys(dataset.manifest["root"])
        advice = command("evaluate", run=run.info.run_id, images=next(iter(raw)))
        raise RunError(
            f"The model of run {run.info.run_name} does not fit {dataset.folder}: {difference}. "
            f"Evaluate it on raw images, which it prepares itself: {advice}"
        )
    # The test split of another data set may hold what this model was trained on.
    own = dataset.fingerprint == run.data.tags.get("fingerprint")
    if not own:
        advice = "--images with a folder of class folders leaves such images out"
        _check_unseen(dataset, run.info.run_id, str(run.info.run_name), advice)
    if baseline:
        advice = "name a run that was trained on this data set"
        _check_unseen(dataset, baseline.run_id, baseline.name, advice)
    # Of one size, for the report and for the comparison.
    known_N = _known_classes(dataset, predictor.info.classes)
    squashed = _with_classes(replace(dataset, at_own_sizes=False).split("test"), known_N)
    test = _with_classes(dataset.split("test"), known_N)
    rows = dataset.rows("test")
    predictions = _predict(predictor, test, test.sides_N, test.gather, track)
    negatives = predict_negatives(predictor, dataset.negatives("test"), track)
    evaluated = EvaluatedImages(
        name=test_split_name(dataset.fingerprint, own),
        title="its test split" if own else f"the test split of {dataset.folder}",
        predictions=predictions,
        load_pixels=squashed.gather,
        load_evidence=evidence_loader(predictor, test.sides_N, test.gather),
        files=_files(rows[known_N >= 0]),
        facts={"data set": str(dataset.folder), "fingerprint": dataset.fingerprint},
        left_out=_of_unknown_classes(rows[known_N < 0]),
        known=_score_known(predictor, predictions, negatives),
        operating_point=_operating_point(predictor, predictions, negatives),
        by_labels=_accuracy_by_labels(predictor, test, predictions, dataset, track)
        if predictor.info.classes.names == dataset.classes.names
        else {},
    )
    return _with_comparisons(evaluated, test.sides_N, predictor, track, baseline)


def _known_classes(dataset: Dataset, classes: ClassSet) -> NDArray[np.int64]:
    """Returns the model's class index of each test image, -1 for a class that it does not know."""
    indices = {name: index for index, name in enumerate(classes)}
    names = dataset.rows("test")["class_name"]
    return np.array([indices.get(name, -1) for name in names])


def _of_unknown_classes(rows: pd.DataFrame) -> dict[str, str]:
    """Returns why the images of classes that the model does not know are left out, by path."""
    pairs = zip(rows["path"], rows["class_name"], strict=True)
    return {path: f"The model does not know the class {name}." for path, name in pairs}


def _with_classes(split: Split, labels_N: NDArray[np.int64]) -> Split:
    """Returns the images of a split that have a label, with these labels."""
    positions = np.flatnonzero(labels_N >= 0)
    return replace(split.subset(split.name, positions), labels_N=labels_N[positions])


def _open(run: Run, data: str | None, *, at_bins: bool) -> Dataset:
    """Opens a data set, by default the one that a run was trained on."""
    if data:
        return dataset_cache.open_at(data, at_bins=at_bins)
    run_id = run.info.run_id
    return open_recorded(
        read_spec(run_id).data,
        f"run {run.info.run_name}",
        command("evaluate", run=run_id, data="DATASET"),
        at_bins=at_bins,
    )


def test_split_name(fingerprint: str, own: bool) -> str:
    """Returns the name under which an evaluation on a test split is logged.

    Args:
        fingerprint: Fingerprint of the data set.
        own: Whether the run was trained on that data set.
    """
    return OWN_TEST_SPLIT if own else f"test-{fingerprint[:8]}"


def predict_folder(
    run: Run,
    predictor: Predictor,
    folder: Path,
    track: Track,
    baseline: Baseline | None = None,
) -> EvaluatedImages:
    """Predicts the images of a folder of class folders that the model has not been trained on.

    Args:
        run: Run of the model.
        predictor: The model.
        folder: Folder with one subfolder per class.
        track: Shows the progress.
        baseline: A model of one image size to compare a model of mixed resolutions with.

    Raises:
        ConfigError: The model is of one image size and there is a baseline.
        DataError: The folder holds no image that is new to the model.
    """
    _check_baseline(predictor, baseline)
    run_ids = [run.info.run_id, *([baseline.run_id] if baseline else [])]
    # Images that either model has seen are left out: they would favour that model.
    trained_on = pd.concat([artifacts.images_of(run_id) for run_id in run_ids])
    unseen = load_unseen(
        folder, predictor.info.classes, predictor.info.preprocessing, trained_on, track
    )

    def squashed(positions_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        return unseen.pixels_NHWC[positions_B]

    mixed = bool(predictor.info.sides_px)
    side_px = predictor.info.preprocessing.side_px
    sides_N = unseen.sides_N if mixed else np.full(len(unseen.paths), side_px)
    load_pixels = unseen.at_own_sizes if mixed else squashed
    predictions = _predict(predictor, unseen, sides_N, load_pixels, track)
    negatives = no_negatives(len(predictor.info.classes))
    evaluated = EvaluatedImages(
        name=f"images-{short_key(folder.resolve().name)}",
        title=str(folder),
        predictions=predictions,
        load_pixels=squashed,
        load_evidence=evidence_loader(predictor, sides_N, load_pixels),
        files=_files(pd.DataFrame(map(asdict, unseen.records))),
        facts={"images": str(folder), "left out": f"{unseen.num_left_out} files"},
        known=_score_known(predictor, predictions, negatives),
        operating_point=_operating_point(predictor, predictions, negatives),
        left_out=unseen.left_out,
        folders_left_out=unseen.folders_left_out,
    )
    return _with_comparisons(evaluated, sides_N, predictor, track, baseline)


def _files(rows: pd.DataFrame) -> tuple[ImageFile, ...]:
    """Returns the files of images from the columns root, path, width and height."""
    columns = zip(rows["root"], rows["path"], rows["width"], rows["height"], strict=True)
    return tuple(
        ImageFile(Path(root, path), int(width), int(height))
        for root, path, width, height in columns
    )


def _predict(
    predictor: Predictor,
    images: Split | Unseen,
    sides_N: NDArray[np.int64],
    load_pixels: LoadPixels,
    track: Track,
) -> Predictions:
    outputs = predict_outputs_in_batches(predictor, sides_N, load_pixels, track)
    return Predictions(
        paths=images.paths,
        labels_N=images.labels_N,
        probs_NK=outputs.probs_NK,
        classes=predictor.info.classes,
        known_N=outputs.known_N,
        alarm_N=alarm_scores(outputs, predictor.info),
    )


def with_negatives(
    evaluated: EvaluatedImages,
    run: Run,
    predictor: Predictor,
    folders: Sequence[str],
    track: Track,
) -> EvaluatedImages:
    """Returns an evaluation with negatives of folders, under a name of its own.

    Args:
        evaluated: Images of classes, with the model's predictions.
        run: Run of the model; negatives that it was trained on are left out.
        predictor: The model.
        folders: Folders of negatives, as for `prepare`.
        track: Shows the progress.

    Raises:
        DataError: A folder cannot be read, or holds no image that is new to the model.
    """
    images = artifacts.images_of(run.info.run_id)
    seen = set(images.loc[images["split"] != "test", "md5"])
    negatives, left_out = predict_negative_folders(predictor, folders, seen, track)
    names = [short_key(Path(folder).name) for folder in folders]
    return replace(
        evaluated,
        # Not over the evaluation without them, from which the gate reads.
        name="-".join([evaluated.name, "negatives", *names]),
        facts={**evaluated.facts, "negatives": ", ".join(folders)},
        known=_score_known(predictor, evaluated.predictions, negatives),
        operating_point=_operating_point(predictor, evaluated.predictions, negatives),
        left_out={**evaluated.left_out, **left_out},
    )


def _check_unseen(dataset: Dataset, run_id: str, name: str, advice: str) -> None:
    """Fails if a run was trained or selected on test images of the data set."""
    # By content: other data sets have other names and other splits for the same images.
    test = dataset.rows("test")["content"]
    seen = test.isin(artifacts.training_contents(run_id)).sum()
    if seen:
        raise RunError(
            f"Cannot evaluate {name} on {dataset.folder}: it was trained or selected on {seen} of "
            f"the {len(test)} test images, so it would look better than it is; {advice}."
        )


def _check_baseline(predictor: Predictor, baseline: Baseline | None) -> None:
    """Fails before any work if a model cannot be compared with the baseline."""
    if baseline is None:
        return
    if not predictor.info.sides_px:
        raise ConfigError(
            "--against compares a model of mixed resolutions, such as of preset multires, with "
            "one of a single image size; this model has a single size itself. Any two are compared "
            "by python ray_jobs/promote.py."
        )
    other = baseline.predictor.info
    difference = _class_difference(predictor.info, other.classes) or _pixel_difference(
        predictor.info, other.preprocessing
    )
    if difference:
        raise RunError(
            f"Cannot compare with {baseline.name}: {difference}. Compare with a run that was "
            f"trained on the same data set."
        )


def _difference(info: ModelInfo, dataset: Dataset) -> str | None:
    """Returns why a model cannot be evaluated on a data set; None if it can."""
    # On the classes that both have: an extended model is compared with the one before.
    if len(set(info.classes) & set(dataset.classes)) < _MIN_CLASSES:
        return _class_difference(info, dataset.classes)
    return _pixel_difference(info, dataset.preprocessing)


def _class_difference(info: ModelInfo, classes: ClassSet) -> str | None:
    if info.classes.names == classes.names:
        return None
    return f"the classes {', '.join(info.classes)} are not {', '.join(classes)}"


def _pixel_difference(info: ModelInfo, preprocessing: Preprocessing) -> str | None:
    own, others = asdict(info.preprocessing), asdict(preprocessing)
    names = [name for name in own if own[name] != others[name]]
    return ", ".join(f"{name} {own[name]} is not {others[name]}" for name in names) or None


def _with_comparisons(
    evaluated: EvaluatedImages,
    sides_N: NDArray[np.int64],
    predictor: Predictor,
    track: Track,
    baseline: Baseline | None,
) -> EvaluatedImages:
    """Compares own sizes with squashed images, for a model of mixed resolutions."""
    if not predictor.info.sides_px:
        return evaluated
    others = {"squashed to 224 px": predictor}
    if baseline:
        others[f"of {baseline.name}, squashed"] = baseline.predictor
    sides = [int(side) for side in np.unique(sides_N)]
    own_ms = {side: measure_latency_ms(predictor, side) for side in sides}
    variants = [Variant("at their own sizes", evaluated.predictions, own_ms)]
    one_size = np.full(len(sides_N), predictor.info.preprocessing.side_px)
    for name, other in others.items():
        load = evaluated.load_pixels
        probs_NK = predict_in_batches(other.predict_pixels, one_size, load, track)
        predictions = replace(evaluated.predictions, probs_NK=probs_NK)
        # Squashed, all images have one size and so one latency.
        other_ms = dict.fromkeys(sides, measure_latency_ms(other))
        variants.append(Variant(name, predictions, other_ms))
    # The first is what is evaluated; each other one is compared with it image by image.
    own, *rest = variants
    return replace(
        evaluated,
        by_size=mixed_resolution.by_size(sides_N, variants),
        comparisons=tuple(mixed_resolution.compare(sides_N, own, variant) for variant in rest),
    )


def _score_known(
    predictor: Predictor, predictions: Predictions, negatives: PredictedNegatives
) -> KnownScores:
    threshold, known_M = predictor.info.known_above, negatives.outputs.known_N
    return score_known(predictions.known_N, threshold, known_M, negatives.kinds)


def _operating_point(
    predictor: Predictor, predictions: Predictions, negatives: PredictedNegatives
) -> OperatingPoint | None:
    scores_N = predictions.alarm_N
    scores_M = alarm_scores(negatives.outputs, predictor.info)
    if scores_N is None or scores_M is None:
        return None
    return find_operating_point(AlarmScores.split(scores_N, predictions.roles_N, scores_M))


def _accuracy_by_labels(
    predictor: Predictor, test: Split, predictions: Predictions, dataset: Dataset, track: Track
) -> dict[str, Proportion]:
    """Returns accuracy by labels: as collected, those that the review left, those it changed.

    Empty if the review changed no label.
    """
    original, reviewed_N = dataset.split_before_review(test.name)
    if not reviewed_N.any():
        return {}
    predicted = dict(zip(test.rows_N, predictions.predicted_N, strict=True))
    # Images that the review dropped are not in the split, so they have no prediction yet.
    dropped_M = np.flatnonzero(~np.isin(original.rows_N, test.rows_N))
    if len(dropped_M):
        probs_MK = predict_in_batches(
            predictor.predict_pixels,
            original.sides_N[dropped_M],
            lambda positions_B: original.gather(dropped_M[positions_B]),
            track,
        )
        predicted_M = decide(probs_MK, predictions.classes)
        predicted |= zip(original.rows_N[dropped_M], predicted_M, strict=True)
    correct_N = np.array([predicted[row] for row in original.rows_N]) == original.labels_N
    return {
        "raw": proportion(correct_N),
        "cleaned": proportion(correct_N[~reviewed_N]),
        "relabelled": proportion(predictions.predicted_N == predictions.labels_N),
    }
