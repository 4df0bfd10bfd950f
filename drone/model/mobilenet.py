"""MobileNet_V2 with a head of our own, some of its blocks frozen."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from drone.errors import WeightsError
from drone.model.batchnorm import spread_batchnorm
from drone.model.config import NUM_BLOCKS, ModelConfig
from drone.model.folding import fold
from drone.model.head import KeyedDropout, build_head
from drone.model.resizer import Resizer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the pixel values on the scale 0..1: what the backbone's weights expect."""


@dataclass(frozen=True)
class ParameterCounts:
    """How large a model is and how much of it learns."""

    total: int
    trainable: int


class Classifier(nn.Module):
    """Normalised pictures in, logits out; only the head and the last blocks learn."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Makes the model with random weights; see `build`."""
        super().__init__()
        self.config = config
        self.features = mobilenet_v2().features
        fold(self.features)
        self.head = build_head(config, num_classes)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)
        if config.batchnorm != "stored":
            spread_batchnorm(self.features)
        # Last, so that the head's first weights are those of a model without one.
        self.resizer = Resizer(config) if config.mixed else None

    @property
    def frozen(self) -> nn.Sequential:
        """The blocks that do not learn."""
        return nn.Sequential(*self.features[: self.config.cut])

    @property
    def learning(self) -> nn.Sequential:
        """The blocks that learn."""
        return nn.Sequential(*self.features[self.config.cut :])

    def train(self, mode: bool = True) -> "Classifier":
        """As in torch, but blocks that are to use their stored statistics always do.

        torch's own `train` would put frozen blocks on the statistics of the batch, and these
        would drift although no weight changes.
        """
        super().train(mode)
        if self.config.batchnorm != "drift":
            self.frozen.eval()
        if self.config.batchnorm == "stored":
            self.learning.eval()
        return self

    def stem(self, images_NCHW: Tensor) -> Tensor:
        """What comes before all that learns, without gradient.

        Those are the activations at the cut, pooled to (N, 1280) if no block learns. A resizer
        comes before the blocks, so with one they are the pictures themselves.
        """
        if self.resizer is not None:
            return images_NCHW
        with torch.no_grad():
            activations: Tensor = self.frozen(images_NCHW)
            return _pooled(activations) if self.config.cut == NUM_BLOCKS else activations

    def tail(self, activations: Tensor) -> Tensor:
        """Logits, (N, K), from what `stem` gave."""
        if self.resizer is not None:
            # Its gradient passes through the frozen blocks.
            activations = _pooled(self.features(self.resizer(activations)))
        elif self.config.cut < NUM_BLOCKS:
            activations = _pooled(self.learning(activations))
        logits_NK: Tensor = self.head(activations)
        return logits_NK

    def forward(self, inputs: Tensor, at_cut: bool = False) -> Tensor:
        """Logits (log-probabilities of the seed's head), (N, K).

        Args:
            inputs: normalised pictures, (N, 3, H, W), of one size.
            at_cut: the inputs are what `stem` made of them.
        """
        return self.tail(inputs if at_cut else self.stem(inputs))

    def key_dropout(self, seed: int, epoch: int, keys_N: Tensor) -> None:
        """Says which pictures the next training step sees; see `KeyedDropout`."""
        for module in self.head:
            if isinstance(module, KeyedDropout):
                module.key(seed, epoch, keys_N)

    def parameter_counts(self) -> ParameterCounts:
        """All parameters, and those that learn."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return ParameterCounts(
            total=sum(size for size, _ in sizes),
            trainable=sum(size for size, learns in sizes if learns),
        )


def _pooled(activations_NCHW: Tensor) -> Tensor:
    return activations_NCHW.mean(dim=(2, 3))


def build(
    config: ModelConfig, num_classes: int, seed: int, backbone: Mapping[str, Tensor] | None
) -> Classifier:
    """A model that is the same for the same arguments.

    Args:
        config: what it is made of.
        num_classes: K.
        seed: of the random weights (the head's, and the backbone's without weights).
        backbone: state of torchvision's mobilenet_v2 from `weights.load`, or None for random.

    Raises:
        WeightsError: the state is not one of MobileNet_V2 1.0.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(config, num_classes)
    if backbone is not None:
        features = {
            name.removeprefix("features."): value
            for name, value in backbone.items()
            if name.startswith("features.")
        }
        try:
            model.features.load_state_dict(features)
        except RuntimeError as error:
            raise WeightsError(
                "The weights do not fit MobileNet_V2 1.0 as torchvision builds it: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
    return model.to(memory_format=torch.channels_last)
