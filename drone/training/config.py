"""Training configuration."""

from dataclasses import dataclass, field
from typing import Literal

from drone.data.augment_config import AugmentConfig
from drone.data.bins import PIXEL_BUDGET
from drone.errors import ConfigError
from drone.model.config import ModelConfig
from drone.training.best_epoch import BestEpochBy

ClassWeights = Literal["none", "balanced"]
TrainOn = Literal["train", "train+validation"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser: AdamW, or SGD with Nesterov momentum 0.9 as in the original project."""

    schedule: Literal["cosine", "seed-cyclic"] = "cosine"
    """Learning-rate schedule: cosine is warm-up and cosine decay to zero, per step; seed-cyclic is
    the original's triangular2, per epoch."""

    lr_head: float = 1e-3
    """Peak learning rate of the head."""

    lr_backbone: float = 2e-4
    """Peak learning rate of the unfrozen blocks."""

    resizer_lr_ratio: float = 0.05
    """Maximum learning rate of the resizer as a fraction of the head's, at most 0.1: a resizer that
    moves fast ruins what the backbone sees. (The original's schedule had 1.)"""

    weight_decay: float = 0.05
    """Weight decay; with AdamW, biases and normalisation layers are exempt."""

    head_only_epochs: float = 1.0
    """Epochs at the start in which only the head is trained."""

    warmup_epochs: float = 0.5
    """Epochs over which a learning rate rises to its peak."""

    label_smoothing: float = 0.1
    """Label smoothing: share of the target that is spread over all classes."""

    class_weights: ClassWeights = "none"
    """Weights of the classes in the training loss: none weighs all images equally, balanced all
    classes, whatever their numbers of images."""

    class_weight_values: tuple[float, ...] = ()
    """Weights of the classes in the training loss, in the order of their indices, in place of
    --optim.class-weights; train.py --class-weights takes them from a file."""

    max_grad_norm: float = 1.0
    """Maximum norm of the gradient before it is clipped; 0 disables clipping."""

    ema_decay: float = 0.99
    """Decay per step of the moving average of the weights that is evaluated; 0 disables it."""

    def __post_init__(self) -> None:
        for name in ("lr_head", "lr_backbone"):
            if not 0 < getattr(self, name) <= 10:
                raise ConfigError(
                    f"optim.{name} is {getattr(self, name)}; it must be above 0 and at most 10."
                )
        # A ratio of 1 made the original's attempt collapse: only its own schedule may reproduce it.
        max_ratio = 1.0 if self.schedule == "seed-cyclic" else 0.1
        if not 0 < self.resizer_lr_ratio <= max_ratio:
            raise ConfigError(
                f"optim.resizer_lr_ratio is {self.resizer_lr_ratio}; it must be above 0 and at "
                f"most {max_ratio:g}."
            )
        if any(weight <= 0 for weight in self.class_weight_values):
            raise ConfigError(
                f"optim.class_weight_values are {self.class_weight_values}; each must be above 0."
            )
        for name in ("weight_decay", "head_only_epochs", "warmup_epochs", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"optim.{name} is {getattr(self, name)}; it must be 0 or more and below 1."
                )


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Calibration that is known beforehand; a temperature of 0 fits both on validation images."""

    temperature: float = 0.0
    """Divisor of the logits, 0.25 to 4; 0 fits it, and the threshold, on validation images."""

    unsure_below: float = 0.0
    """Threshold on the confidence, below which a prediction counts as unsure; with a
    temperature, 0 means never."""

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.25 <= self.temperature <= 4:
            raise ConfigError(
                f"calibration.temperature is {self.temperature}; it must be 0.25 to 4, or 0 to fit "
                f"it on validation."
            )
        if self.unsure_below and not self.temperature:
            raise ConfigError(
                "calibration.unsure_below is set without calibration.temperature; set both, or "
                "none of them."
            )
        if not 0 <= self.unsure_below < 1:
            raise ConfigError(
                f"calibration.unsure_below is {self.unsure_below}; it must be 0 or more and below "
                f"1."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes; the number of workers does not."""

    preset: str = "finetune"
    """Name of the preset that the configuration started from."""

    epochs: int = 12
    """Number of passes over the training images."""

    stop_epoch: int = 0
    """Epoch after which training ends, within the schedule of all epochs; 0 trains all of them."""

    train_on: TrainOn = "train"
    """Images to train on. With train+validation none are held out: the last epoch counts as the
    best, and --calibration.temperature and --calibration.unsure-below must be set, as the best.yaml
    of a study has them."""

    batch_size: int = 64
    """Images per optimiser step, over all workers together."""

    pixel_budget: int = PIXEL_BUDGET
    """Maximum pixels of a micro-batch on each worker, with a resizer: a step's images are of
    several sizes and go through the network size by size, 64 of 448 px or 4 of 1792 px at a
    time."""

    early_stopping_patience: int = 0
    """Early stopping: number of consecutive evaluations in which a run may be worse than at its
    start, or predict a single class, before it is stopped; 0 disables it."""

    seed: int = 0
    """Seed for head initialisation, data order, augmentation and dropout."""

    views: int = 0
    """Number of different augmented views (versions) of each image: with V views, epoch e uses view
    e mod V. 0 draws a new view in every epoch."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the activations: auto is bf16 where the device computes in it, else fp32.
    Weights are always fp32."""

    best_epoch_by: BestEpochBy = "loss"
    """Validation metric that selects the best epoch; with few images the loss is less noisy."""

    checkpoint_interval_s: float = 300.0
    """Seconds between checkpoints within an epoch; every epoch ends with one anyway."""

    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler; pays for long runs)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture of the model."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Calibration of the model, where there are no validation images to fit it on."""

    @property
    def last_epoch(self) -> int:
        """The epoch after which training ends."""
        return self.stop_epoch or self.epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "pixel_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("views", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 <= self.stop_epoch <= self.epochs:
            raise ConfigError(
                f"stop_epoch is {self.stop_epoch}; it must be 0 to {self.epochs}, the epochs."
            )
        if self.train_on == "train+validation":
            self._check_nothing_needs_validation()
        # Each size has its own resizer and would be compiled separately.
        if self.compile and self.model.mixed:
            raise ConfigError(
                "compile needs images of one size: disable it, or set model.resizer to none."
            )
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}; it must be 0 to {2**31 - 1}.")
        if self.checkpoint_interval_s <= 0:
            raise ConfigError(
                f"checkpoint_interval_s is {self.checkpoint_interval_s}; it must be above 0."
            )

    def _check_nothing_needs_validation(self) -> None:
        if not self.calibration.temperature:
            raise ConfigError(
                "train_on is train+validation, so there are no images to calibrate on: set "
                "calibration.temperature and calibration.unsure_below, as the best.yaml of a "
                "study has them."
            )
        if self.early_stopping_patience:
            raise ConfigError(
                "early_stopping_patience needs validation images, and train_on is "
                "train+validation. Set one of them back."
            )
