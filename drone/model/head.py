"""The classifier on top of the pooled features."""

import torch.nn.functional as functional
from torch import Tensor, nn

from drone import counter_rng
from drone.model.config import ModelConfig

NUM_FEATURES = 1280
"""Channels of MobileNet_V2's last convolution."""

_FIRST_DROPOUT_STREAM = 100
"""Stream of `counter_rng` that the first dropout layer draws from; the second takes the next."""


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of (seed, epoch, image).

    An image therefore loses the same features whatever batch or worker it is in, and after the
    run is resumed. Call `set_key` before each training step.
    """

    def __init__(self, probability: float, stream: int) -> None:
        """Creates the layer.

        Args:
            probability: Probability of dropping a feature, from 0 to below 1.
            stream: Stream of `counter_rng`; each layer needs its own.
        """
        super().__init__()
        self.probability = probability
        self.stream = stream
        self._seed, self._epoch = 0, 0
        self._keys_N: Tensor | None = None

    def set_key(self, seed: int, epoch: int, keys_N: Tensor) -> None:
        """Sets the run's seed, the epoch and the image keys of the next batch."""
        self._seed, self._epoch, self._keys_N = seed, epoch, keys_N

    def forward(self, features_NF: Tensor) -> Tensor:
        """Drops features in training and scales the others up; returns them all in evaluation."""
        if not self.training or self.probability == 0:
            return features_NF
        if self._keys_N is None:  # A loop that sets no keys gets plain dropout.
            return functional.dropout(features_NF, self.probability)
        columns = features_NF.shape[1]
        draws_NF = counter_rng.uniform(self._seed, self._epoch, self.stream, self._keys_N, columns)
        mask_NF = (draws_NF >= self.probability).to(features_NF.dtype)
        return features_NF * mask_NF / (1 - self.probability)

    def extra_repr(self) -> str:
        """Returns the probability for printing the model."""
        return f"p={self.probability}"


def build_head(config: ModelConfig, num_classes: int) -> nn.Sequential:
    """Builds the head: pooled features (N, 1280) in, logits or log-probabilities (N, K) out."""
    dropout_1, dropout_2 = (
        KeyedDropout(config.dropout, _FIRST_DROPOUT_STREAM + number) for number in range(2)
    )
    if config.head == "seed":
        return nn.Sequential(
            dropout_1,
            nn.Linear(NUM_FEATURES, 512),
            nn.ReLU(),
            dropout_2,
            # No activation before the last layer, as the original had none.
            nn.Linear(512, 1024),
            nn.Linear(1024, num_classes),
            nn.LogSoftmax(dim=1),
        )
    if config.head_width == 0:
        return nn.Sequential(dropout_1, nn.Linear(NUM_FEATURES, num_classes))
    return nn.Sequential(
        dropout_1,
        nn.Linear(NUM_FEATURES, config.head_width),
        nn.ReLU(),
        dropout_2,
        nn.Linear(config.head_width, num_classes),
    )
