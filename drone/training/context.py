"""What the training loop needs from whoever launched it."""

import shutil
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import torch

from drone.training.best_epoch import History
from drone.training.checkpoint import latest


class Stop(IntEnum):
    """Why training should stop at the next step; the largest value of all ranks counts."""

    # Order matters: an interrupted run must not be restarted because a rank was preempted too.
    NO = 0
    PREEMPTED = 1
    """This worker's machine is going away: write a checkpoint, then let the launcher restart."""

    INTERRUPTED = 2
    """The user interrupted the run: write a checkpoint and end."""


@dataclass(frozen=True)
class Progress:
    """How far training is, for a progress bar."""

    epoch: int
    """The current epoch, from 1."""

    epochs: int
    step: int
    """Completed steps of the epoch."""

    steps: int
    batch_size: int
    images_per_s: float


class Context(Protocol):
    """The loop's only view of its surroundings."""

    rank: int
    world_size: int
    device: torch.device
    checkpoint_each_epoch: bool
    """Whether every epoch ends with a checkpoint; otherwise only those due by time are written."""

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Hands over all epochs so far and a checkpoint folder; every rank calls it together.

        Only rank 0 passes a checkpoint, and only if one is due. The folder may be moved or copied.
        """

    def progress(self, progress: Progress) -> None:
        """Reports progress within an epoch; called by rank 0 after each step, must be cheap."""

    def resume_from(self) -> Path | None:
        """The checkpoint folder to resume from, or None for a fresh start."""

    def stop(self) -> Stop:
        """Whether this rank has been asked to stop."""


class LocalContext:
    """One process, checkpoints in a folder: for tests and the simplest case."""

    def __init__(self, folder: Path, max_checkpoints: int = 2) -> None:
        """Uses a folder; a checkpoint in it is resumed from.

        Args:
            folder: Folder for checkpoints, each in a subfolder.
            max_checkpoints: Number of the newest checkpoints to keep.
        """
        self.rank, self.world_size = 0, 1
        self.device = torch.device("cpu")
        self.checkpoint_each_epoch = True
        self.folder = folder
        self.history: History = []
        self._max_checkpoints = max_checkpoints

    def report(self, history: History, checkpoint: Path | None) -> None:
        """Copies the checkpoint into the folder, then deletes the oldest beyond the limit."""
        self.history = list(history)
        if checkpoint is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(self.folder.glob("checkpoint_*"))
        number = int(existing[-1].name.split("_")[1]) + 1 if existing else 0
        # Copied under a name that `latest` ignores: a kill here must not leave half a checkpoint.
        arriving = self.folder / f".arriving_{number:06d}"
        shutil.copytree(checkpoint, arriving)
        arriving.rename(self.folder / f"checkpoint_{number:06d}")
        # Last, so that a complete checkpoint exists at every moment.
        for old in existing[: len(existing) + 1 - self._max_checkpoints]:
            shutil.rmtree(old)

    def progress(self, progress: Progress) -> None:
        """Does nothing."""

    def resume_from(self) -> Path | None:
        """The newest complete checkpoint in the folder."""
        return latest(self.folder)

    def stop(self) -> Stop:
        """Never stops."""
        return Stop.NO
