"""What the loop needs from whoever launched it."""

import shutil
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import torch

from drone.training.checkpoint import latest

History = list[dict[str, Any]]
"""An entry for each finished epoch: "epoch", "time_ms" and "metrics" by name."""


class Stop(IntEnum):
    """Why training should stop at the next step; the largest of all ranks counts."""

    NO = 0
    PREEMPTED = 1
    """This worker's machine goes away: checkpoint, then let the launcher start again."""

    INTERRUPTED = 2
    """A person wants it: checkpoint and end."""


@dataclass(frozen=True)
class Progress:
    """Where training stands, for a person to look at."""

    epoch: int
    epochs: int
    step: int
    steps: int
    batch_size: int
    images_per_s: float


class Context(Protocol):
    """The loop's only view of its surroundings."""

    rank: int
    world_size: int
    device: torch.device
    saves_each_epoch: bool
    """Whether each epoch ends with a checkpoint; else only those that are due by time."""

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Hands over all epochs so far and a checkpoint folder; every rank calls it together.

        Only rank 0 brings a checkpoint, if one is due. The folder may be moved or copied.
        """

    def progress(self, progress: Progress) -> None:
        """Tells how far the epoch is; called by rank 0 after each step, must be cheap."""

    def resume_from(self) -> Path | None:
        """The checkpoint folder to go on from, or None for a fresh start."""

    def stop(self) -> Stop:
        """Whether this rank has been asked to stop."""


class LocalContext:
    """One process, checkpoints in a folder: for tests and the simplest case."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Uses the folder; what is in it is gone on from.

        Args:
            folder: for checkpoints, each in a subfolder.
            keep: the newest ones that stay.
        """
        self.rank, self.world_size = 0, 1
        self.device = torch.device("cpu")
        self.saves_each_epoch = True
        self.folder = folder
        self.history: History = []
        self._keep = keep

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Renames the checkpoint into the folder."""
        self.history = list(history)
        if checkpoint is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(self.folder.glob("checkpoint_*"))
        number = int(existing[-1].name.split("_")[1]) + 1 if existing else 0
        arriving = self.folder / f".arriving_{number:06d}"
        shutil.copytree(checkpoint, arriving)
        arriving.rename(self.folder / f"checkpoint_{number:06d}")
        for old in existing[: len(existing) + 1 - self._keep]:
            shutil.rmtree(old)

    def progress(self, progress: Progress) -> None:
        """Nobody looks."""

    def resume_from(self) -> Path | None:
        """The newest whole checkpoint in the folder."""
        return latest(self.folder)

    def stop(self) -> Stop:
        """Never."""
        return Stop.NO
