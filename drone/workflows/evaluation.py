"""Evaluates a run's exported model: predictions, scores, a report, and the log of it."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drone.errors import RunError
from drone.evaluation import report
from drone.evaluation.conditions import Card, make_card
from drone.evaluation.metrics import Scores, score
from drone.inference.box_files import read_boxes
from drone.names import file_name
from drone.serving.predictor import Predictor
from drone.tracking import artifacts, registry, runs
from drone.tracking.history import metric_history
from drone.tracking.model import fetch_onnx, resolve_model, run_of
from drone.tracking.runs import Run
from drone.workflows.display import SILENT, Display
from drone.workflows.evaluated_boxes import with_boxes
from drone.workflows.evaluated_images import (
    OWN_TEST_SPLIT,
    Baseline,
    EvaluatedImages,
    predict_folder,
    predict_test_split,
    test_split_name,
    with_negatives,
)
from drone.workflows.requests import EvaluateRequest
from drone.workflows.run_spec import read_spec

_LOGGED_RECALL = 0.95
"""Recall of the drones whose false alarms are metrics of the run."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on some images."""

    run_id: str
    evaluated: EvaluatedImages
    scores: Scores
    card: Card | None
    """Scores under worse conditions, if they were asked for."""

    report: Path

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        evaluated = self.evaluated
        return {
            "run_id": self.run_id,
            "report": str(self.report),
            "on": evaluated.name,
            "left_out": evaluated.left_out,
            "folders_left_out": [asdict(item) for item in evaluated.folders_left_out],
            "by_size": evaluated.by_size.to_dict("records"),
            "comparisons": [asdict(comparison) for comparison in evaluated.comparisons],
            "by_labels": {name: asdict(part) for name, part in evaluated.by_labels.items()},
            "known": evaluated.known.as_dict(),
            "operating_point": evaluated.operating_point and evaluated.operating_point.as_dict(),
            "conditions": self.card.as_dict() if self.card else None,
            "outside_boxes": evaluated.outside_boxes and evaluated.outside_boxes.as_dict(),
            **self.scores.as_dict(),
        }


def evaluate(request: EvaluateRequest, display: Display = SILENT) -> EvaluationResult:
    """Evaluates a model, writes the report, and logs both to its run.

    Raises:
        RunError: There is no such model, or it was trained on the images.
        DroneError: Anything else that the user can fix.
    """
    # Read first: the predictions take minutes.
    boxes = read_boxes(request.boxes) if request.boxes else []
    runs.connect(request.experiment)
    model = resolve_model(request.model, request.run)
    run = runs.find_run(model.run_id)
    with tempfile.TemporaryDirectory() as temporary:
        # The exported model and not the checkpoint: what is evaluated is what is served.
        predictor = Predictor(fetch_onnx(model, Path(temporary)))
        baseline = None
        if request.against:
            baseline = _baseline(request.against, Path(temporary) / "baseline")
        if request.images:
            evaluated = predict_folder(run, predictor, request.images, display.track, baseline)
        else:
            evaluated = predict_test_split(run, predictor, request.data, display.track, baseline)
            if evaluated.name != OWN_TEST_SPLIT:
                display.warn(
                    f"{evaluated.facts['data set']} is not the data set that run "
                    f"{run.info.run_name} was trained on: these scores are on another test split."
                )
        if request.negatives:
            evaluated = with_negatives(evaluated, run, predictor, request.negatives, display.track)
        if boxes:
            evaluated = with_boxes(evaluated, boxes)
        card = None
        if request.conditions:
            champion = _champion(request.name, run, evaluated, predictor, Path(temporary), display)
            card = _card(str(run.info.run_name), predictor, champion, evaluated, display)
        scores, file = _write(run, evaluated, card, request.out)
    return EvaluationResult(run.info.run_id, evaluated, scores, card, file)


def _baseline(name: str, folder: Path) -> Baseline:
    model = resolve_model(None, name)
    return Baseline(model.name, model.run_id, Predictor(fetch_onnx(model, folder)))


def _champion(
    name: str,
    run: Run,
    evaluated: EvaluatedImages,
    predictor: Predictor,
    folder: Path,
    display: Display,
) -> Predictor | None:
    """Returns the champion, if it is another model that was trained on the same data set."""
    version = registry.version_by_alias(name, registry.CHAMPION)
    if version is None or version.run_id == run.info.run_id:
        return None
    try:
        fingerprint = run_of(version).data.tags.get("fingerprint")
        # One of another data set may have been trained on these very images.
        if fingerprint != evaluated.facts.get("fingerprint"):
            return None
        champion = Predictor(fetch_onnx(version, folder / "champion"))
    except RunError as error:
        display.warn(f"The conditions are shown without the champion of {name}. {error}")
        return None
    ours, theirs = predictor.info, champion.info
    alike = (ours.classes, ours.preprocessing) == (theirs.classes, theirs.preprocessing)
    return champion if alike else None


def _card(
    name: str,
    predictor: Predictor,
    champion: Predictor | None,
    evaluated: EvaluatedImages,
    display: Display,
) -> Card:
    predictors = {name: predictor}
    if champion:
        predictors["the champion"] = champion
    predictions = evaluated.predictions
    return make_card(
        predictors,
        predictions.labels_N,
        predictions.classes,
        evaluated.load_pixels,
        display.track,
    )


def _write(
    run: Run, evaluated: EvaluatedImages, card: Card | None, out: Path
) -> tuple[Scores, Path]:
    """Scores the predictions, writes the report and logs both to the run."""
    scores = score(evaluated.predictions, _class_weights(run))
    run_id, tags = run.info.run_id, run.data.tags
    best_epoch = run.data.metrics.get("best/epoch")
    header = report.ReportHeader(
        title=f"{run.info.run_name} on {evaluated.title}",
        facts={
            "run": run_id,
            "preset": tags.get("preset", ""),
            "starting weights": tags.get("pretrained", ""),
            "class weights": tags.get("class_weights", ""),
            **evaluated.facts,
        },
        history=metric_history(run_id),
        best_epoch=int(best_epoch) if best_epoch is not None else None,
        known=evaluated.known,
        by_size=evaluated.by_size,
        comparisons=evaluated.comparisons,
        card=card,
        outside_boxes=evaluated.outside_boxes,
        operating_point=evaluated.operating_point,
    )
    # Run names repeat; the id keeps the reports apart. A run can be renamed to anything.
    folder = out / f"{file_name(str(run.info.run_name))}-{run_id[:8]}" / evaluated.name
    images = report.Images(evaluated.load_pixels, evaluated.load_evidence)
    file = report.write(folder, evaluated.predictions, scores, header, images)
    # Last, so that an evaluation that fails leaves no trace on the run.
    with runs.reopen_run(run_id) as reopened:
        reopened.log_final(_metrics(evaluated, scores, card))
        reopened.log_folder(folder, f"evaluation/{evaluated.name}")
    return scores, file.resolve()


def _class_weights(run: Run) -> tuple[float, ...]:
    """Returns the weights of the classes that a run was given; empty for none."""
    try:
        return read_spec(run.info.run_id).config.optim.class_weight_values
    except RunError:  # Of other origin, or damaged: evaluation needs nothing else of it.
        return ()


def _metrics(evaluated: EvaluatedImages, scores: Scores, card: Card | None) -> dict[str, float]:
    name = evaluated.name
    metrics = {
        f"{name}/{metric}": value
        for metric, value in scores.as_dict().items()
        # Tables and counts are in metrics.json; a metric is one number.
        if isinstance(value, float)
    }
    for labels, part in evaluated.by_labels.items():
        metrics[f"{name}/accuracy_{labels}"] = part.value
    metrics[f"{name}/known_accepted"] = evaluated.known.accepted.value
    if evaluated.known.kinds:
        metrics[f"{name}/known_auroc"] = evaluated.known.kinds[0].auroc.value
    alarms = evaluated.operating_point and evaluated.operating_point.at[_LOGGED_RECALL]
    for images, part in alarms.false_alarms.items() if alarms else ():
        metrics[f"{name}/false_alarms_per_1000_{images}"] = part.value
    if evaluated.comparisons:
        metrics[f"{name}/accuracy_squashed"] = evaluated.comparisons[0].baseline
    for condition, accuracy in (card.mean_accuracies if card else {}).items():
        metrics[f"{name}/accuracy_{condition}"] = accuracy
    return metrics


def test_result(run_id: str, fingerprint: str, own: bool) -> dict[str, Any] | None:
    """Returns a run's logged metrics on the test split of a data set; None if there are none.

    Raises:
        RunError: They are damaged, or cannot be read.
    """
    artifact = f"evaluation/{test_split_name(fingerprint, own)}/metrics.json"
    try:
        # The file is logged with each evaluation, so without it there was none.
        metrics = artifacts.read_json(run_id, artifact)
    except artifacts.MissingArtifactError:
        return None
    try:
        report.check_metrics(metrics)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise artifacts.damaged(run_id, artifact, error) from error
    return metrics
