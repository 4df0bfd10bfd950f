"""The classifier on top of the pooled features."""

import torch.nn.functional as functional
from torch import Tensor, nn

from drone import noise
from drone.model.config import ModelConfig

FEATURES = 1280
"""Channels of MobileNet_V2's last convolution."""

_DROPOUT = 100
"""The first use of noise that dropout takes; each layer has one of its own."""


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of (seed, epoch, picture).

    So a picture loses the same features whatever batch or worker it is in, and after a
    resumption. `key` must be called before each training step.
    """

    def __init__(self, probability: float, use: int) -> None:
        """Makes the layer.

        Args:
            probability: of dropping a feature.
            use: of noise; another layer takes another.
        """
        super().__init__()
        self.probability = probability
        self.use = use
        self._seed, self._epoch = 0, 0
        self._keys_N: Tensor | None = None

    def key(self, seed: int, epoch: int, keys_N: Tensor) -> None:
        """Says for which pictures the next mask is."""
        self._seed, self._epoch, self._keys_N = seed, epoch, keys_N

    def forward(self, features_NF: Tensor) -> Tensor:
        """The features, some of them zero and the others enlarged in training."""
        if not self.training or self.probability == 0:
            return features_NF
        if self._keys_N is None:
            return functional.dropout(features_NF, self.probability)
        columns = features_NF.shape[1]
        draws_NF = noise.uniform(self._seed, self._epoch, self.use, self._keys_N, columns)
        kept_NF = (draws_NF >= self.probability).to(features_NF.dtype)
        return features_NF * kept_NF / (1 - self.probability)

    def extra_repr(self) -> str:
        """For printing the model."""
        return f"p={self.probability}"


def build_head(config: ModelConfig, num_classes: int) -> nn.Sequential:
    """The head: pooled features (N, 1280) in, logits or log-probabilities (N, K) out."""
    first, second = (KeyedDropout(config.dropout, _DROPOUT + number) for number in range(2))
    if config.head == "seed":
        return nn.Sequential(
            first,
            nn.Linear(FEATURES, 512),
            nn.ReLU(),
            second,
            nn.Linear(512, 1024),
            nn.Linear(1024, num_classes),
            nn.LogSoftmax(dim=1),
        )
    if config.head_width == 0:
        return nn.Sequential(first, nn.Linear(FEATURES, num_classes))
    return nn.Sequential(
        first,
        nn.Linear(FEATURES, config.head_width),
        nn.ReLU(),
        second,
        nn.Linear(config.head_width, num_classes),
    )
