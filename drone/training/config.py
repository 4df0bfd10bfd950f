"""How a model is trained."""

from dataclasses import dataclass, field
from typing import Literal

from drone.data.augment import AugmentConfig
from drone.data.bins import PIXEL_BUDGET
from drone.errors import ConfigError
from drone.model.config import ModelConfig

Select = Literal["loss", "macro_f1"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9 as the original had it."""

    schedule: Literal["cosine", "seed-cyclic"] = "cosine"
    """cosine: warm-up, then down to zero, per step. seed-cyclic: triangular2, per epoch."""

    lr_head: float = 1e-3
    """Peak learning rate of the head."""

    lr_backbone: float = 2e-4
    """Peak learning rate of the unfrozen blocks."""

    resizer_share: float = 0.05
    """Learning rate of the resizer as a share of the head's, at most: a tenth at most, since a
    resizer that moves fast ruins what the backbone sees. (The original's schedule had it at 1.)"""

    weight_decay: float = 0.05
    """Of weights; with AdamW, biases and normalisation have none."""

    head_epochs: float = 1.0
    """Epochs in which only the head learns."""

    warmup_epochs: float = 0.5
    """Epochs in which a learning rate rises to its peak."""

    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""

    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""

    ema_decay: float = 0.99
    """Of the moving average of the weights, per step, that is evaluated; 0 switches it off."""

    def __post_init__(self) -> None:
        for name in ("lr_head", "lr_backbone"):
            if not 0 < getattr(self, name) <= 10:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; above 0, at most 10.")
        most = 1.0 if self.schedule == "seed-cyclic" else 0.1
        if not 0 < self.resizer_share <= most:
            raise ConfigError(
                f"optim.resizer_share is {self.resizer_share}; above 0, at most {most:g}."
            )
        for name in ("weight_decay", "head_epochs", "warmup_epochs", "clip_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes; the number of workers does not."""

    preset: str = "finetune"
    """Name of the preset that this began as."""

    epochs: int = 12
    """Passes over the training pictures."""

    batch_size: int = 64
    """Pictures in an optimiser step, over all workers together."""

    pixel_budget: int = PIXEL_BUDGET
    """With a resizer, pixels that go through the network together on each worker; a step's pictures
    are of several sizes and come in parts, 64 of 448 px, 4 of 1792 px."""

    watchdog: int = 0
    """Evaluations in a row that a run may be below its own start, or have one class for an answer,
    before it is stopped; 0 never stops it."""

    seed: int = 0
    """Of the head's first weights, the order, the views and dropout."""

    views: int = 0
    """Different views of each picture: epoch e sees view e mod this. 0: one for each epoch."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it, else fp32. Weights are always fp32."""

    select: Select = "loss"
    """What chooses the best epoch on validation; the loss is steadier where pictures are few."""

    checkpoint_every_s: float = 300.0
    """Seconds between checkpoints in the middle of an epoch; each epoch ends with one anyway."""

    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler; pays for long runs)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """What the model is made of."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How the pictures vary from epoch to epoch."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("views", "watchdog"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.compile and self.model.mixed:
            raise ConfigError(
                "compile is for pictures of one size; leave it out with model.resizer."
            )
        if self.pixel_budget < 1:
            raise ConfigError(f"pixel_budget is {self.pixel_budget}; it must be at least 1.")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}; it must be 0 to {2**31 - 1}.")
        if self.checkpoint_every_s <= 0:
            raise ConfigError(f"checkpoint_every_s is {self.checkpoint_every_s}; above 0.")


def epoch_rank(macro_f1: float, loss: float, select: Select) -> tuple[float, float]:
    """Epochs of a higher rank are better, by their figures on validation."""
    return (-loss, macro_f1) if select == "loss" else (macro_f1, -loss)
