"""What decides an activation: the key under which the cache stores a view."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from drone.model.mobilenet import Classifier
from drone.training.config import TrainConfig
from drone.training.device import activation_dtype

SCHEMA = 3
"""Raised whenever another version of this program could mean something else by a part."""

PART_ROWS = 128
"""Images in a part: small enough for two trials to share the work of a view."""

Facts = dict[str, Any]
"""Everything that decides the numbers of a view, as plain values."""


@dataclass(frozen=True)
class View:
    """A view of all images of a data set."""

    name: str
    """Checksum of the facts that decide it."""

    count: int
    """Number of images."""

    @staticmethod
    def of(facts: Mapping[str, Any], count: int) -> "View":
        """The view of these facts, which must decide every number in it."""
        text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
        return View(hashlib.sha256(text.encode()).hexdigest()[:32], count)

    def positions(self, part: int) -> NDArray[np.int64]:
        """Positions of the images of a part."""
        return np.arange(part * PART_ROWS, min((part + 1) * PART_ROWS, self.count))


def parts_of(positions_N: NDArray[np.int64]) -> list[int]:
    """Numbers of the parts that hold the images at these positions."""
    return [int(part) for part in np.unique(positions_N // PART_ROWS)]


def common_facts(
    config: TrainConfig, model: Classifier, images_id: str, device: torch.device
) -> Facts:
    """What decides all views of a run alike.

    Args:
        config: Config of the run.
        model: Model with its starting weights.
        images_id: Identity of the images of the data set.
        device: Device that computes the activations.
    """
    return {
        # All blocks, not those below a cut only: one view serves every cut.
        "weights": _digest(model.features),
        # Neither their classes nor their splits: every fold, split and label has the same views.
        "images": images_id,
        "dtype": str(activation_dtype(config.precision, device)),
        "device": device.type,
        # Another version may choose other kernels, whose last bits differ.
        "torch": torch.__version__,
    }


def augmented_view_facts(common: Facts, config: TrainConfig, number: int) -> Facts:
    """What decides an augmented view.

    Args:
        common: See `common_facts`.
        config: Config of the run.
        number: Number of the view.
    """
    if config.augment.strength == 0:  # Every view is the image itself.
        return view_facts(common, "plain")
    augment = asdict(config.augment)
    return {**common, "view": number, "seed": config.seed, "augment": augment}


def view_facts(common: Facts, name: str) -> Facts:
    """What decides the "plain" or "mirrored" view."""
    return {**common, "view": name}


def _digest(features: nn.Module) -> str:
    """SHA-256 of all weights and batch statistics."""
    digest = hashlib.sha256()
    for name, value in features.state_dict().items():
        digest.update(name.encode())
        # Contiguous: channels-last weights must give the same bytes as others.
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
