"""What a model is made of."""

from dataclasses import dataclass
from typing import Literal

from drone.errors import ConfigError

NUM_BLOCKS = 19
"""Blocks of MobileNet_V2's features: a stem, 17 inverted residuals, a last convolution."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A MobileNet_V2 with a head of our own."""

    unfreeze_depth: int = 3
    """Blocks that train, counted from the end: 0 the head only, 3 features 16 to 18, 19 all."""

    head: Literal["mlp", "seed"] = "mlp"
    """mlp: linear, or one hidden layer. seed: the original's three layers and LogSoftmax."""

    head_width: int = 0
    """Units of the hidden layer of an mlp head; 0 makes it linear."""

    dropout: float = 0.2
    """Probability of dropping a feature before each layer that has one."""

    batchnorm: Literal["stored", "trainable", "drift"] = "stored"
    """Which blocks normalise by the batch in training: none, those that train, or all of them."""

    flip_test: bool = True
    """Answer with the mean of the picture's and its mirror image's probabilities."""

    resizer: Literal["none", "stack", "residual"] = "none"
    """none: every picture at 224 px. Else each is taken at the bin of its own size, and brought to
    224 by the original's strided convolutions, or by the average and a small network beside it."""

    resizer_start: Literal["area", "random"] = "area"
    """How a stack begins: as the average, or at random as the original's did."""

    def __post_init__(self) -> None:
        if not 0 <= self.unfreeze_depth <= NUM_BLOCKS:
            raise ConfigError(
                f"model.unfreeze_depth is {self.unfreeze_depth}; it must be 0 to {NUM_BLOCKS}."
            )
        if self.head_width < 0:
            raise ConfigError(f"model.head_width is {self.head_width}; it must be 0 or more.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; it must be 0 to below 1.")

    @property
    def mixed(self) -> bool:
        """Whether it takes pictures of several sizes."""
        return self.resizer != "none"

    @property
    def cut(self) -> int:
        """The first block that trains: features[:cut] are frozen."""
        return NUM_BLOCKS - self.unfreeze_depth
