"""Presets: named training configurations, the original project's recipes among them.

docs/performance.md has the scores of each, and how they were measured.
"""

from dataclasses import dataclass, replace

from drone.data.augment_config import AugmentConfig
from drone.errors import ConfigError
from drone.labels import nearest
from drone.model.config import NUM_BLOCKS, ModelConfig
from drone.training.config import OptimConfig, TrainConfig

_SEED_AUGMENT = AugmentConfig(
    strength=1.0,
    brightness=0.2,
    brightness_p=0.5,
    contrast=0.2,
    contrast_p=0.5,
    rotation_deg=10.0,
    rotation_p=0.7,
    scale=0.0,
    # Padding 224 px to 256 and cropping 224 again shifts by up to 16 px.
    shift=16 / 224,
    shift_p=0.2,
    # Twice the probability: the original flips half of the images.
    flip_p=1.0,
    cutout_p=0.7,
    elastic_p=0.1,
)
"""The original project's augmentation."""

_SEED_OPTIM = OptimConfig(
    optimizer="sgd",
    schedule="seed-cyclic",
    lr_head=0.1,
    lr_backbone=0.1,
    weight_decay=1e-4,
    head_only_epochs=0.0,
    warmup_epochs=0.0,
    label_smoothing=0.0,
    max_grad_norm=0.0,
    ema_decay=0.0,
)


def _seed_model(unfreeze_depth: int) -> ModelConfig:
    # Drift, since the original set the whole network to training mode, frozen blocks included.
    return ModelConfig(
        unfreeze_depth=unfreeze_depth, head="seed", batchnorm="drift", test_time_flip=False
    )


@dataclass(frozen=True)
class Preset:
    """A configuration and what to expect of it."""

    about: str
    config: TrainConfig


PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        "Two short epochs of the head, to see that everything works.",
        TrainConfig(
            preset="smoke",
            epochs=2,
            # Without test-time flip, which doubles the time of validation.
            model=ModelConfig(unfreeze_depth=0, test_time_flip=False),
        ),
    ),
    "frozen": Preset(
        "Trains only a linear head on a frozen backbone.",
        TrainConfig(
            preset="frozen",
            epochs=12,
            model=ModelConfig(unfreeze_depth=0),
            optim=OptimConfig(lr_head=3e-3),
        ),
    ),
    "finetune": Preset(
        "The head first, then the last blocks at a lower rate. The recommended preset.",
        TrainConfig(
            preset="finetune",
            epochs=12,
            model=ModelConfig(unfreeze_depth=5),
            # Accuracy was 0.840, and 0.815 at strength 0.5 (one seed; docs/log.md).
            augment=AugmentConfig(strength=1.0),
        ),
    ),
    "distant": Preset(
        "As finetune, for objects that are small in the image and cut out by their boxes.",
        TrainConfig(
            preset="distant",
            epochs=16,
            model=ModelConfig(unfreeze_depth=5),
            # Drones of 15 to 60 px were found more often (0.84 instead of 0.57; docs/boxes.md).
            augment=AugmentConfig(strength=1.0, distance_p=0.3),
        ),
    ),
    "scratch": Preset(
        "All layers from random weights, on small simple images: for trying things out without "
        "ImageNet weights; prepare with --preprocessing.side-px 96.",
        TrainConfig(
            preset="scratch",
            epochs=24,
            batch_size=32,
            # All weights change, so statistics from before the first step would not stay true.
            model=ModelConfig(unfreeze_depth=NUM_BLOCKS, batchnorm="trainable"),
            augment=AugmentConfig(strength=0.25),
            # At 1e-3 it learns half as fast; at 5e-3 some runs never leave chance level.
            optim=OptimConfig(
                lr_head=2e-3,
                lr_backbone=2e-3,
                head_only_epochs=0.0,
                warmup_epochs=1.0,
                ema_decay=0.97,
            ),
        ),
    ),
    "seed-attempt-1": Preset(
        "The original project's first attempt: frozen backbone, 30 epochs of cyclic SGD.",
        TrainConfig(
            preset="seed-attempt-1",
            epochs=30,
            batch_size=128,
            precision="fp32",
            best_epoch_by="macro_f1",
            model=_seed_model(0),
            augment=_SEED_AUGMENT,
            optim=_SEED_OPTIM,
        ),
    ),
    "seed-attempt-2": Preset(
        "The original project's second attempt: features 16 to 18 unfrozen, 25 epochs.",
        TrainConfig(
            preset="seed-attempt-2",
            epochs=25,
            batch_size=256,
            precision="fp32",
            best_epoch_by="macro_f1",
            model=_seed_model(3),
            augment=_SEED_AUGMENT,
            optim=_SEED_OPTIM,
        ),
    ),
    "multires": Preset(
        "Images at their own sizes through a learned resizing network; prepare with --bins.",
        TrainConfig(
            preset="multires",
            epochs=12,
            early_stopping_patience=3,
            # Test accuracy was 0.799, and 0.788 with a stack resizer (docs/performance.md).
            model=ModelConfig(unfreeze_depth=5, resizer="residual"),
            augment=AugmentConfig(strength=1.0),
        ),
    ),
    "seed-attempt-3": Preset(
        "The original project's third attempt: a resizing network, one image per step. Collapses.",
        TrainConfig(
            preset="seed-attempt-3",
            epochs=11,
            batch_size=1,
            precision="fp32",
            best_epoch_by="macro_f1",
            early_stopping_patience=3,
            model=replace(_seed_model(2), resizer="stack", resizer_init="random"),
            augment=_SEED_AUGMENT,
            optim=replace(_SEED_OPTIM, resizer_lr_ratio=1.0),
        ),
    ),
}


def get_preset(name: str) -> TrainConfig:
    """Returns the configuration of a preset.

    Raises:
        ConfigError: There is no such preset; suggests the nearest name.
    """
    if name not in PRESETS:
        like = nearest(name, list(PRESETS))
        hint = f"Did you mean {like!r}?" if like else f"There are: {', '.join(PRESETS)}."
        raise ConfigError(f"There is no preset {name!r}. {hint}")
    return PRESETS[name].config
