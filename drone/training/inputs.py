"""What one rank trains and validates on: in what order, and as activations at the cut."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drone.data.batches import Batches, DeviceSplit
from drone.data.dataset import Split
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
from drone.training.data import TrainingData
from drone.training.loss import class_roles

_EVALUATION_BATCH = 128
_STATISTICS_BATCH = 64


@dataclass(frozen=True)
class Targets:
    """What is known of the images of a split beside their pixels."""

    labels_N: Tensor
    """Class indices, on the device."""

    keys_N: Tensor
    """Keys of their random numbers."""

    @staticmethod
    def of(split: Split, device: torch.device) -> "Targets":
        """The targets of a split."""
        labels_N, keys_N = torch.from_numpy(split.labels_N), torch.from_numpy(split.keys_N)
        return Targets(labels_N.to(device), keys_N)

    def __len__(self) -> int:
        return len(self.labels_N)


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
        images = DeviceSplit(data.images, device)
        self.train = Targets.of(data.train, device)
        self.validation = Targets.of(data.validation, device)
        weights = class_weights(config.optim, data.train.counts_K)
        self.class_weights_K = torch.from_numpy(weights).float().to(device)
        self.roles_RK = class_roles(data.classes, device)
        self.batch_size = min(config.batch_size, len(self.train))
        self.batches = _batches(config, data.train, self.batch_size)
        self._validation_batches = _batches(config, data.validation, _EVALUATION_BATCH)
        self._images = ImageSource(config, images, data)
        # Before the cache is opened: it names views by a digest of weights and statistics.
        if not has_statistics(model.features):
            estimate_statistics(model.features, self._sample(model))
        self.activations: ActivationSource = (
            CachedActivations(model, self._images, data.images_id, cache)
            if cache
            else ComputedActivations(model, self._images, config.compile)
        )

    def far_away(self, epoch: int, positions_B: NDArray[np.int64]) -> Tensor:
        """Which views of these training images show their objects far away, (B,) bool."""
        return self._images.far_away(epoch, self._images.train_N[positions_B])

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
            images = [self._images.plain(self._images.train_N[part]) for part in parts]
            yield torch.cat([resizer(batch) for batch in images])


def _batches(config: TrainConfig, split: Split, max_size: int) -> Batches:
    return Batches(split.sides_N, max_size, config.pixel_budget if config.model.mixed else None)
