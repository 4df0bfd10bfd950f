"""Checkpoint folders.

    weights.pt      the model, and of its moving average, under "model" and "average"
    optimizer.pt    the optimiser
    best.pt         the weights of the best epoch so far, as they were evaluated
    state.json      everything else; written last, with the sizes of the others

Order of precedence when a run goes on: the launcher's newest checkpoint of this attempt; the
newest of earlier attempts; a fresh start from the configured weights. There is no state of random
generators to keep: every random number is a function of seed, epoch and picture (drone.noise).
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drone.errors import RunError

SCHEMA = 1
"""Raised whenever an older program could misread the folder."""

STATE_FILE = "state.json"
_FILES = ("weights.pt", "optimizer.pt", "best.pt")

State = dict[str, Tensor]


@dataclass
class Position:
    """Where training stands and what it knows besides tensors."""

    epoch: int = 0
    """The epoch that goes on, from 0."""

    batch: int = 0
    """Its batches that are done."""

    tally: list[float] = field(default_factory=list)
    """Sums over these batches, of all ranks."""

    elapsed_s: float = 0.0
    """Seconds that these batches took."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """An entry for each finished epoch."""

    best: dict[str, float] = field(default_factory=dict)
    """"epoch", "macro_f1" and "loss" on validation of the best epoch; empty before the first."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; it only fits a run of the same."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    fingerprint: str
    commit: str


def save(
    folder: Path,
    position: Position,
    identity: Identity,
    weights: dict[str, State],
    optimizer: dict[str, Any],
    best: State,
) -> None:
    """Writes a checkpoint folder, under another name until it is whole."""
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name, content in zip(_FILES, (weights, optimizer, best), strict=True):
        torch.save(content, building / name)
    sizes = {name: (building / name).stat().st_size for name in _FILES}
    state = {
        "schema": SCHEMA,
        "files": sizes,
        "position": asdict(position),
        **asdict(identity),
    }
    (building / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n", "utf-8")
    building.rename(folder)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint folder holds."""

    position: Position
    identity: Identity
    weights: dict[str, State]
    optimizer: dict[str, Any]
    best: State


def is_whole(folder: Path) -> bool:
    """Whether every file is there in its full size."""
    try:
        sizes = json.loads((folder / STATE_FILE).read_text("utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder, or None. Checkpoints sort by name."""
    found = sorted(folder.glob("checkpoint_*"), reverse=True)
    return next((checkpoint for checkpoint in found if is_whole(checkpoint)), None)


def read_position(folder: Path) -> tuple[Position, Identity]:
    """The small part of a checkpoint.

    Raises:
        RunError: it is damaged or of another schema.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        if state["schema"] != SCHEMA:
            raise RunError(
                f"The checkpoint {folder} has schema {state['schema']}; "
                f"this program reads {SCHEMA}."
            )
        identity = Identity(
            config=state["config"],
            classes=tuple(state["classes"]),
            fingerprint=state["fingerprint"],
            commit=state["commit"],
        )
        return Position(**state["position"]), identity
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"The checkpoint {folder} is damaged ({error}).") from error


def load(folder: Path) -> Loaded:
    """Reads a checkpoint; tensors only, nothing in it is executed.

    Raises:
        RunError: it is damaged or of another schema.
    """
    position, identity = read_position(folder)
    if not is_whole(folder):
        raise RunError(f"The checkpoint {folder} is damaged: a file is missing or cut short.")
    weights, optimizer, best = (
        torch.load(folder / name, map_location="cpu", weights_only=True) for name in _FILES
    )
    return Loaded(position, identity, weights, optimizer, best)


def load_best(folder: Path) -> State:
    """The weights of the best epoch alone."""
    best: State = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
    return best
