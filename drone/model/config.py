"""Configuration of the model."""

from dataclasses import dataclass
from typing import Literal

from drone.errors import ConfigError

NUM_BLOCKS = 19
"""Blocks of MobileNet_V2's features: a stem, 17 inverted residuals, a last convolution."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a MobileNet_V2 with a head of its own."""

    unfreeze_depth: int = 3
    """Number of trainable backbone blocks, counted from the end: 0 trains the head only, 3 also
    features 16 to 18, 19 the whole backbone."""

    head: Literal["mlp", "seed"] = "mlp"
    """Classifier head. mlp: linear, or with one hidden layer of --model.head-width units. seed: the
    original project's three layers and LogSoftmax."""

    head_width: int = 0
    """Units in the hidden layer of an mlp head; 0 for a linear head."""

    dropout: float = 0.2
    """Dropout probability in the head, from 0 to below 1."""

    batchnorm: Literal["stored", "trainable", "drift"] = "stored"
    """Blocks that normalise by batch statistics during training. stored: none. trainable: the
    trainable blocks. drift: all blocks, so that those of frozen blocks drift too."""

    test_time_flip: bool = True
    """Average the probabilities of each image and its mirror image at inference."""

    resizer: Literal["none", "stack", "residual"] = "none"
    """How images reach 224 px. none: preprocessing resizes them all. stack and residual take each
    image at the resolution of its size bin and downsample it in the network: by the original
    project's strided convolutions, or by averaging plus a small convolutional correction."""

    resizer_init: Literal["area", "random"] = "area"
    """Initial weights of a stack resizer: area averaging, or random as in the original project."""

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
        """Whether the model takes images of several resolutions."""
        return self.resizer != "none"

    @property
    def cut(self) -> int:
        """Index of the first trainable block; features[:cut] are frozen."""
        return NUM_BLOCKS - self.unfreeze_depth
