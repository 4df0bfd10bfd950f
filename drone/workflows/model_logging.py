"""Logs a checkpoint's best weights as a model: exported, checked for parity, calibrated."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from drone.data.dataset import Dataset
from drone.evaluation import calibration, parity
from drone.evaluation.batch_inference import predict_outputs_in_batches
from drone.evaluation.calibration import Calibration
from drone.evaluation.known_fit import fit_known_score
from drone.model import export, mobilenet
from drone.serving.drift import Reference
from drone.serving.predictor import Predictor, class_metadata
from drone.tracking.model import log_model, log_model_metrics
from drone.training import checkpoint
from drone.training.config import TrainConfig

ONNX_FILE = "model.onnx"


def export_and_log(
    folder: Path, config: TrainConfig, dataset: Dataset, metadata: Mapping[str, str]
) -> str:
    """Exports the best weights of a checkpoint and logs the model to the active run.

    Args:
        folder: Folder of the checkpoint.
        config: Config of the run.
        dataset: Data set that the run was trained on.
        metadata: Metadata of the model, besides classes, preprocessing and fingerprint.

    Returns:
        The model's URI.

    Raises:
        RunError: The exported model's predictions differ from the trained one's.
    """
    model = load_best_model(folder, config, len(dataset.classes))
    metadata = {
        **metadata,
        "train_on": config.train_on,
        **class_metadata(dataset.classes),
        "preprocessing": dataset.preprocessing.to_json(),
        "fingerprint": dataset.fingerprint,
    }
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / ONNX_FILE
        at_own_sizes = dataset.at_bins() if config.model.mixed else dataset
        known = fit_known_score(model, at_own_sizes, config.augment)
        export.to_onnx(model, target, dataset.preprocessing.side_px, metadata, known)
        validation = at_own_sizes.split("validation")
        predictor = Predictor(target)
        # A few images of each size suffice here; `export` compares the whole test split.
        sample = parity.sample_of_each_side(validation)
        measured = parity.measure(model, predictor, validation, sample)
        # Before the check, so that the run shows by how much it failed.
        log_model_metrics(
            {
                "model/onnx_max_difference": measured.max_difference,
                "model/onnx_mb": target.stat().st_size / 1e6,
            }
        )
        parity.check(measured, require_top1=False)
        calibrated = calibrate(predictor, config, dataset).as_metadata()
        export.add_metadata(target, calibrated)
        add_reference(target, config, at_own_sizes)
        return log_model(target, dataset.classes, {**metadata, **calibrated})


def calibrate(
    predictor: Predictor, config: TrainConfig, dataset: Dataset, unsure_below: float | None = None
) -> Calibration:
    """Returns the calibration of a model: the config's own, or one fitted on validation images.

    Args:
        predictor: The exported model.
        config: Config of its run.
        dataset: Data set that it was trained on.
        unsure_below: Threshold to use instead.
    """
    known = config.calibration
    if known.temperature:
        threshold = known.unsure_below if unsure_below is None else unsure_below
        return Calibration(known.temperature, threshold)
    at_own_sizes = dataset.at_bins() if config.model.mixed else dataset
    return calibration.calibrate(predictor, at_own_sizes.split("validation"), unsure_below)


def add_reference(target: Path, config: TrainConfig, dataset: Dataset) -> None:
    """Adds how the answers of an exported model spread over images that it was not trained on.

    These are those of validation, or of test if it was trained on validation too.

    Args:
        target: Exported model, with its temperature and thresholds.
        config: Config of its run.
        dataset: Data set that it was trained on, at the sizes that it takes.
    """
    split = dataset.split("validation" if config.train_on == "train" else "test")
    predictor = Predictor(target)
    outputs = predict_outputs_in_batches(predictor, split.sides_N, split.gather)
    answers = predictor.to_predictions(outputs)
    reference = Reference.of(answers, len(dataset.classes))
    export.add_metadata(target, reference.as_metadata())


def load_best_model(folder: Path, config: TrainConfig, num_classes: int) -> mobilenet.Classifier:
    """Returns the model with the weights of a checkpoint's best epoch, ready for inference."""
    # No starting weights: the checkpoint replaces all of them.
    model = mobilenet.build(config.model, num_classes, config.seed, None).eval()
    model.load_state_dict(checkpoint.load_best(folder))
    return model
