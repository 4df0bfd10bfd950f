"""The images of a run: which ones it trains on, and which are held out."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drone.data.dataset import Dataset, Split
from drone.labels import ClassSet
from drone.training.config import TrainOn


@dataclass(frozen=True)
class Fold:
    """One of several parts of the images, held out of training to validate on."""

    number: int
    """From 0."""

    count: int
    """Number of folds; every image of training and validation is in one of them."""


@dataclass(frozen=True)
class TrainingData:
    """The training and validation images of a run."""

    images: Split
    """All images of the data set, in an order that does not depend on their splits: what the
    activation cache numbers them by. Those of test are never read."""

    images_id: str
    """Identity of their pixels, in their order: what the activation cache names views by."""

    development_N: NDArray[np.int64]
    """Positions of the images of training and validation, whatever fold is held out."""

    train_N: NDArray[np.int64]
    """Positions of the training images."""

    validation_N: NDArray[np.int64]
    """Positions of the validation images."""

    classes: ClassSet
    fingerprint: str
    """Of the data set, and of the fold if there is one."""

    @staticmethod
    def of(
        dataset: Dataset, fold: Fold | None = None, train_on: TrainOn = "train"
    ) -> "TrainingData":
        """The images of a data set.

        Args:
            dataset: Prepared data set.
            fold: Fold that is held out for validation; None holds out the validation split.
            train_on: With "train+validation" nothing is held out.
        """
        images, development = dataset.images_by_content(), dataset.development()
        by_row = np.argsort(images.rows_N)
        development_N = by_row[np.searchsorted(images.rows_N[by_row], development.rows_N)]
        if train_on == "train+validation":
            assert fold is None
            held_out_N, suffix = np.zeros(len(development), bool), ""
        elif fold is None:
            num_train = len(dataset.rows("train"))
            held_out_N, suffix = np.arange(len(development)) >= num_train, ""
        else:
            held_out_N = dataset.fold_numbers(fold.count) == fold.number
            # Keeps the checkpoints of one fold from being used for another.
            suffix = f"-fold-{fold.number}-of-{fold.count}"
        return TrainingData(
            images=images,
            images_id=_images_id(dataset, images),
            development_N=development_N,
            train_N=development_N[~held_out_N],
            validation_N=development_N[held_out_N],
            classes=dataset.classes,
            fingerprint=f"{dataset.fingerprint}{suffix}",
        )

    @cached_property
    def train(self) -> Split:
        """The training images."""
        return self.images.subset("train", self.train_N)

    @cached_property
    def validation(self) -> Split:
        """The validation images."""
        return self.images.subset("validation", self.validation_N)


def _images_id(dataset: Dataset, images: Split) -> str:
    digest = hashlib.sha256(dataset.preprocessing.to_json().encode())
    digest.update(images.keys_N.tobytes())
    return digest.hexdigest()
