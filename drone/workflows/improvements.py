"""What would improve a model trained on a data set: more images of a class, or cleaner labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from drone.commands import command
from drone.curation import advice, frozen_features, learning_curve, probe
from drone.curation.learning_curve import LearningCurve
from drone.data.dataset import DEVELOPMENT_SPLITS, Dataset
from drone.errors import DataError
from drone.model.weights import Weights
from drone.workflows.display import Display

_MAX_IMAGES = 5000
"""Of more images the features take longer than a user of a search would wait."""


@dataclass(frozen=True)
class Improvements:
    """Learning curves, and what they say."""

    curve: LearningCurve | None
    sentences: Sequence[str]


def estimate(dataset: Dataset, weights: Weights, display: Display) -> Improvements:
    """Estimates what more images or cleaner labels would add; says so if it cannot be told.

    From training and validation images: a search does not read test.
    """
    rows = dataset.packed_rows()
    kept = rows[rows["kept"] & rows["split"].isin(DEVELOPMENT_SPLITS)]
    if weights.pretrained == "none":
        return Improvements(
            None, ("What more images would add is not estimated: the weights are random.",)
        )
    if len(kept) > _MAX_IMAGES:
        review = command("review", data=dataset.folder)
        sentence = f"What more images would add takes minutes to estimate: {review} does it."
        return Improvements(None, (sentence,))
    try:
        probe.check_groups(kept["class_name"], kept["group"])
    except DataError as error:
        return Improvements(None, (str(error),))
    display.show("", "Estimating what more images, or cleaner labels, would add ...")
    features = frozen_features.compute(dataset, weights, display.track, DEVELOPMENT_SPLITS)
    predictions = probe.out_of_fold(features.features_ND, features.labels_N, features.groups_N)
    curve = learning_curve.measure(features, predictions)
    return Improvements(curve, advice.sentences(curve))
