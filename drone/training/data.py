"""The images of a run: which ones, in what order, and as activations at the cut."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from drone.data.batches import Batches, DeviceSplit
from drone.data.dataset import Dataset, Split
from drone.model.batchnorm import estimate_statistics, has_statistics
from drone.model.mobilenet import Classifier
from drone.training.activation_cache.source import (
    ActivationSource,
    CachedActivations,
    ComputedActivations,
    ImageSource,
)
from drone.training.activation_cache.store import CacheSpec
from drone.training.class_weights import class_weights
from drone.training.config import TrainConfig

_EVALUATION_BATCH = 128
_STATISTICS_BATCH = 64


@dataclass(frozen=True)
class TrainingData:
    """The training and validation images of a run."""

    train: Split
    validation: Split
    classes: tuple[str, ...]
    fingerprint: str
    """Of the data set, and of the resplit if there is one."""

    @staticmethod
    def of(dataset: Dataset, resplit: int | None = None) -> "TrainingData":
        """The images of a data set.

        Args:
            dataset: Prepared data set.
            resplit: Number of another partition into training and validation; None is the data
                set's own.
        """
        if resplit is None:
            train, validation = dataset.split("train"), dataset.split("validation")
        else:
            train, validation = dataset.resplit(resplit)
        # Keeps checkpoints and cached views of one resplit from being used for another.
        suffix = "" if resplit is None else f"-resplit-{resplit}"
        return TrainingData(
            train=train,
            validation=validation,
            classes=dataset.classes,
            fingerprint=f"{dataset.fingerprint}{suffix}",
        )


class Inputs:
    """What one rank trains and validates on."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        model: Classifier,
        device: torch.device,
        cache: CacheSpec | None,
    ) -> None:
        """Moves the images to the device and sets up the activations.

        Args:
            config: Config of the run.
            data: Images of the run.
            model: Model on the device, with its starting weights; it gets batch statistics if it
                has none.
            device: Device that this rank computes on.
            cache: Activation cache; None computes activations in each step.
        """
        self.train = DeviceSplit(data.train, device)
        self.validation = DeviceSplit(data.validation, device)
        weights = class_weights(config.optim.class_weights, data.train.counts_K)
        self.class_weights_K = torch.from_numpy(weights).float().to(device)
        self.batch_size = min(config.batch_size, len(self.train))
        self.batches = _batches(config, data.train, self.batch_size)
        self._validation_batches = _batches(config, data.validation, _EVALUATION_BATCH)
        self._images = ImageSource(config, self.train, self.validation)
        # Before the cache is opened: it names views by a digest of weights and statistics.
        if not has_statistics(model.features):
            estimate_statistics(model.features, self._sample(model))
        self.activations: ActivationSource = (
            CachedActivations(model, self._images, data.fingerprint, cache)
            if cache
            else ComputedActivations(model, self._images, config.compile)
        )

    def validation_batches(self, rank: int, world_size: int) -> list[np.ndarray]:
        """Positions of this rank's validation images, batch by batch; each image on one rank."""
        return self._validation_batches.sequential(rank, world_size, _EVALUATION_BATCH)

    def _sample(self, model: Classifier) -> Iterator[Tensor]:
        """A few batches of training images without augmentation, as the backbone takes them."""
        count = min(len(self.train), 4 * _STATISTICS_BATCH)
        resizer = model.resizer or nn.Identity()
        for start in range(0, count, _STATISTICS_BATCH):
            positions = np.arange(start, min(start + _STATISTICS_BATCH, count))
            # World size 1: every rank estimates from all these images, so all agree.
            parts = self.batches.micro_batches(positions, 1)
            yield torch.cat([resizer(self._images.plain("train", part)) for part in parts])


def _batches(config: TrainConfig, split: Split, max_size: int) -> Batches:
    return Batches(split.sides_N, max_size, config.pixel_budget if config.model.mixed else None)
