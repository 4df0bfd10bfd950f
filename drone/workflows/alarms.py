"""The alarm of an exported model: its threshold, and what raises an alarm on the test split."""

from pathlib import Path

import numpy as np

from drone.commands import command
from drone.data.dataset import Dataset, Split
from drone.errors import ConfigError, DataError
from drone.evaluation.batch_inference import predict_outputs_in_batches
from drone.evaluation.operating_point import Alarms, AlarmScores, choose_threshold
from drone.model import export
from drone.serving.predictor import ModelInfo, Predictor, alarm_scores
from drone.training.config import TrainConfig
from drone.workflows.requests import ExportRequest


def check_request(request: ExportRequest, config: TrainConfig, info: ModelInfo) -> None:
    """Checks that a model can have the alarm that was asked for.

    Raises:
        ConfigError: Its classes are not of birds and drones, or it was trained on the images that
            the threshold would be selected on.
    """
    if request.alarm_recall is None and request.alarm_above is None:
        return
    if not info.classes.tells_drones:
        raise ConfigError(
            f"An alarm needs classes that are drones and others that are not; the model's classes "
            f"are {', '.join(info.classes)}. Export it without an alarm, or give the classes their "
            f"roles in the data set (docs/classes.md) and train again."
        )
    if request.alarm_recall is not None and config.train_on != "train":
        raise ConfigError(
            "--alarm-recall selects the threshold on validation images, and this model was trained "
            "on them, so fewer of other drones would raise an alarm. Evaluate it on images that it "
            "has not seen, choose a threshold from the report, and set it by --alarm-above: "
            + command("evaluate", run="RUN", images="FOLDER")
        )


def add_threshold(target: Path, dataset: Dataset, recall: float) -> None:
    """Adds the threshold at which a share of the validation drones raises an alarm.

    Args:
        target: Exported model, with all of its other thresholds.
        dataset: Data set that it was trained on.
        recall: The share, above 0 and at most 1.

    Raises:
        ConfigError: Too few of the drones can raise an alarm.
        DataError: There are no drones.
    """
    scores = validation_scores(Predictor(target), dataset)
    if not len(scores.drones):
        raise DataError("The validation split has no drones: set the threshold by --alarm-above.")
    threshold = choose_threshold(scores.drones, recall)
    if threshold is None:
        raise ConfigError(
            f"--alarm-recall {recall:g} cannot be reached: only {scores.reachable:.1%} of the "
            f"validation drones can raise an alarm, since the others are none of these. Choose a "
            f"lower one, or a lower --known-above."
        )
    export.add_metadata(target, {"alarm_above": repr(threshold)})


def validation_scores(predictor: Predictor, dataset: Dataset) -> AlarmScores:
    """Returns the alarm scores of the validation images of classes."""
    return _scores(predictor, dataset.split("validation"))


def test_alarms(predictor: Predictor, dataset: Dataset) -> Alarms | None:
    """Returns what raises an alarm on the test split; None for a model without alarms."""
    threshold = predictor.info.alarm_above
    return (
        None if threshold is None else _scores(predictor, dataset.split("test")).alarms(threshold)
    )


def _scores(predictor: Predictor, split: Split) -> AlarmScores:
    outputs = predict_outputs_in_batches(predictor, split.sides_N, split.gather)
    scores_N = alarm_scores(outputs, predictor.info)
    assert scores_N is not None  # `check_request` has seen to it.
    roles_N = np.array(predictor.info.classes.roles)[split.labels_N]
    return AlarmScores.split(scores_N, roles_N)
