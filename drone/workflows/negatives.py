"""Predicts the negatives of an evaluation: those of a test split, or those of folders."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from drone.data.images import Negatives
from drone.data.prepare.negatives import list_negatives
from drone.errors import DataError
from drone.evaluation.batch_inference import Track, predict_outputs_in_batches
from drone.inference.items import Item
from drone.inference.prediction import predict_rows
from drone.serving.predictor import Outputs, Prediction, Predictor
from drone.storage.raw_roots import open_root


@dataclass(frozen=True)
class PredictedNegatives:
    """Images of none of the classes, and what the model says of them."""

    outputs: Outputs
    kinds: Sequence[str]
    """Kind of each image, such as "airplane"."""


def no_negatives(num_classes: int) -> PredictedNegatives:
    """Returns the outputs for no images."""
    nothing = Outputs(np.zeros((0, num_classes), np.float32), np.zeros(0, np.float32))
    return PredictedNegatives(nothing, [])


def predict_negatives(
    predictor: Predictor, negatives: Negatives, track: Track
) -> PredictedNegatives:
    """Predicts the negatives of a split, which may have none."""
    if not len(negatives):
        return no_negatives(len(predictor.info.classes))
    outputs = predict_outputs_in_batches(predictor, negatives.sides_N, negatives.gather, track)
    return PredictedNegatives(outputs, negatives.kinds_N.tolist())


def predict_negative_folders(
    predictor: Predictor, folders: Sequence[str], seen: Collection[str], track: Track
) -> tuple[PredictedNegatives, dict[str, str]]:
    """Predicts the negatives of folders.

    Args:
        predictor: The model.
        folders: Folders of negatives, as for `prepare`.
        seen: md5 of the images that the model was trained on, which are left out.
        track: Shows the progress.

    Returns:
        The negatives, and path and reason of each file that was left out.

    Raises:
        DataError: A folder cannot be read, or holds no image that is new to the model.
    """
    files = list_negatives(folders, predictor.info.classes, open_root).files
    items = (Item(root=file.root, name=file.path) for file in files)
    rows = predict_rows(predictor, items, open_root)
    kinds: list[str] = []
    predictions: list[Prediction] = []
    left_out: dict[str, str] = {}
    for number, row in zip(track(range(len(files)), "negatives", len(files)), rows, strict=True):
        if row.prediction is None or row.md5 in seen:
            left_out[row.item.path] = row.detail or "It was trained on."
            continue
        predictions.append(row.prediction)
        kinds.append(files[number].kind)
    if not predictions:
        raise DataError(f"{', '.join(folders)}: no image is new to the model. Name other ones.")
    return PredictedNegatives(_outputs(predictions), kinds), left_out


def _outputs(predictions: Sequence[Prediction]) -> Outputs:
    probabilities = [list(prediction.probabilities.values()) for prediction in predictions]
    known = [prediction.known for prediction in predictions]
    return Outputs(np.array(probabilities, np.float32), np.array(known, np.float32))
