"""Checkpoint folders.

    weights.pt      the model and the moving average of its weights, under "model" and "average"
    optimizer.pt    the optimiser
    best.pt         the weights of the best epoch so far, as they were evaluated
    state.json      everything else; written last, with the checksums of the others and of itself

A run resumes from, in this order: the launcher's newest checkpoint of this attempt; the newest of
earlier attempts; a fresh start from the configured weights. No state of random generators is saved:
every random number is a function of seed, epoch and image (drone.counter_rng).
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drone.commands import command
from drone.errors import RunError
from drone.files import SchemaError, checksum, flush, seal, unseal
from drone.training.best_epoch import History

SCHEMA = 3
"""Raised whenever an older program could misread the folder."""

STATE_FILE = "state.json"
_FILES = ("weights.pt", "optimizer.pt", "best.pt")

StateDict = dict[str, Tensor]


@dataclass
class Position:
    """Where training stands, and what it remembers besides tensors."""

    epoch: int = 0
    """The current epoch, from 0."""

    batch: int = 0
    """Completed batches of the current epoch."""

    metric_sums: list[float] = field(default_factory=list)
    """`EpochMetrics.state` over these batches, of all ranks."""

    elapsed_s: float = 0.0
    """Seconds that these batches took."""

    history: History = field(default_factory=list)
    """An entry for each completed epoch."""

    best: dict[str, float] = field(default_factory=dict)
    """Validation "epoch", "macro_f1" and "loss" of the best epoch; empty before the first."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; it only fits a run of the same."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    fingerprint: str
    commit: str


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint."""

    weights: dict[str, StateDict]
    """"model", and "average" if there is a moving average."""

    optimizer: dict[str, Any]
    best: StateDict


def save(folder: Path, position: Position, identity: Identity, tensors: Tensors) -> None:
    """Writes a checkpoint folder, under another name until it is complete."""
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    contents = (tensors.weights, tensors.optimizer, tensors.best)
    for name, content in zip(_FILES, contents, strict=True):
        torch.save(content, building / name)
    state = {
        "files": {name: checksum(building / name) for name in _FILES},
        "position": asdict(position),
        **asdict(identity),
    }
    (building / STATE_FILE).write_bytes(seal(state, SCHEMA))
    flush(building)
    building.rename(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file is what was saved; reads every byte, some 30 MB."""
    try:
        files = unseal((folder / STATE_FILE).read_bytes(), SCHEMA)["files"]
        return all(checksum(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below a folder, or None. Checkpoints sort by name."""
    checkpoints = sorted(folder.glob("checkpoint_*"), reverse=True)
    return next((checkpoint for checkpoint in checkpoints if is_whole(checkpoint)), None)


def read_position(folder: Path) -> tuple[Position, Identity]:
    """Reads the small part of a checkpoint.

    Raises:
        RunError: The checkpoint is damaged or of another schema.
    """
    try:
        state = unseal((folder / STATE_FILE).read_bytes(), SCHEMA)
        identity = Identity(
            config=state["config"],
            classes=tuple(state["classes"]),
            fingerprint=state["fingerprint"],
            commit=state["commit"],
        )
        return Position(**state["position"]), identity
    except SchemaError as error:
        raise other_schema(folder, error) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The checkpoint {folder} is damaged: {STATE_FILE}: {error}. Remove its folder, and "
            f"--resume continues from the one before."
        ) from error


def other_schema(folder: Path | str, error: SchemaError) -> RunError:
    """Returns the error for a checkpoint of another version of this program."""
    return RunError(
        f"Cannot read the checkpoint {folder}: it has schema {error.schema}, this version reads "
        f"{SCHEMA}. Start a new run: {command('train', 'finetune', data='DATASET')}"
    )


def load(folder: Path) -> tuple[Position, Identity, Tensors]:
    """Reads a checkpoint; tensors only, nothing in it is executed.

    Raises:
        RunError: The checkpoint is damaged or of another schema.
    """
    position, identity = read_position(folder)
    if not is_whole(folder):
        raise RunError(
            f"The checkpoint {folder} is damaged: a file is missing or not what was saved. Remove "
            f"its folder, and --resume continues from the one before."
        )
    weights, optimizer, best = (
        # To the CPU, so that a run from a GPU can be resumed without one.
        torch.load(folder / name, map_location="cpu", weights_only=True)
        for name in _FILES
    )
    return position, identity, Tensors(weights, optimizer, best)


def load_best(folder: Path) -> StateDict:
    """Reads the weights of the best epoch alone."""
    best: StateDict = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
    return best
