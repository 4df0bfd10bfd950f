"""Which pictures a step takes, and their pixels on the device that wants them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drone.data.bins import batch_of
from drone.data.dataset import Split
from drone.data.pixels import PixelStore


def num_steps(count: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return math.ceil(count / min(batch_size, count))


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Positions of the pictures of an epoch, (steps, B), a row for each global batch.

    A pure function of its arguments, which do not name the number of workers. Every batch is
    full: the last one is filled up with the first pictures of the same order.
    """
    batch_size = min(batch_size, count)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    steps = num_steps(count, batch_size)
    return np.resize(order, (steps, batch_size))


@dataclass(frozen=True)
class Batches:
    """How the pictures of a split are shared out to steps, and a step's to parts.

    A step has a constant number of pictures, whatever their sizes and however many workers there
    are. Its parts hold one bin each, the same on all workers at the same time, and as many
    pictures as each worker may take.
    """

    sides_N: NDArray[np.int64]
    """Side of each picture."""

    batch_size: int
    """Pictures of a step, at most all."""

    pixel_budget: int | None
    """Pixels of a part on each worker; None makes one part of a step of any size."""

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return num_steps(len(self.sides_N), self.batch_size)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Positions of the pictures of an epoch, (steps, B), a row for each step.

        A pure function of seed and epoch. Pictures of a bin come in runs of as many as go through
        the network together; the runs are shuffled, and so are the pictures of each bin. The last
        step is filled up with the first pictures of the same order.
        """
        if self.pixel_budget is None:
            return epoch_order(len(self.sides_N), self.batch_size, seed, epoch)
        generator = np.random.default_rng([seed, epoch])
        runs: list[NDArray[np.int64]] = []
        for side in np.unique(self.sides_N):
            own = generator.permutation(np.flatnonzero(self.sides_N == side))
            size = batch_of(int(side), self.batch_size, self.pixel_budget)
            runs += [own[start : start + size] for start in range(0, len(own), size)]
        shuffled = np.concatenate([runs[at] for at in generator.permutation(len(runs))])
        return np.resize(shuffled, (self.steps, min(self.batch_size, len(shuffled))))

    def parts(self, positions_B: NDArray[np.int64], world: int) -> list[NDArray[np.int64]]:
        """The pictures of a step in parts of one bin, over all workers; largest bin last.

        Args:
            positions_B: of the step.
            world: workers, each of which takes its share of every part.
        """
        if self.pixel_budget is None:
            return [positions_B]
        sides_B = self.sides_N[positions_B]
        parts: list[NDArray[np.int64]] = []
        for side in np.unique(sides_B):
            own = positions_B[sides_B == side]
            most = batch_of(int(side), self.batch_size, self.pixel_budget) * world
            parts += np.array_split(own, -(-len(own) // most))
        return parts

    def once(self, rank: int, world: int, most: int) -> list[NDArray[np.int64]]:
        """All pictures of a worker, each picture on exactly one, in batches of one bin.

        Args:
            rank: of the worker.
            world: workers.
            most: pictures of a batch.
        """
        batches: list[NDArray[np.int64]] = []
        for side in np.unique(self.sides_N):
            own = np.flatnonzero(self.sides_N == side)[rank::world]
            size = most
            if self.pixel_budget is not None:
                size = batch_of(int(side), most, self.pixel_budget)
            batches += [own[start : start + size] for start in range(0, len(own), size)]
        return batches


class Feed:
    """The pictures of a split on a device.

    On a GPU the whole split moves to its memory if its pictures are of one size and take at most
    half of what is free; else each batch is copied when it is asked for.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        """Moves the split to the device, if it fits."""
        self.split = split
        self.device = device
        self.labels_N = torch.from_numpy(split.labels_N).to(device)
        self.keys_N = torch.from_numpy(split.keys_N)
        self._resident: Tensor | None = None
        if device.type == "cuda" and _fits(split, device):
            self._resident = self._load_all()

    def __len__(self) -> int:
        return len(self.split)

    def pixels(self, positions_B: NDArray[np.int64]) -> Tensor:
        """Pixels of the pictures at these positions, (B, H, W, C) uint8, on the device.

        All of them must be of one size.
        """
        if self._resident is not None:
            return self._resident[torch.from_numpy(positions_B).to(self.device)]
        pixels = torch.from_numpy(self.split.gather(positions_B))
        if self.device.type == "cuda":
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels

    def _load_all(self) -> Tensor:
        side = self.split.store.side_px
        resident = torch.empty((len(self), side, side, 3), dtype=torch.uint8, device=self.device)
        for start in range(0, len(self), 512):
            positions = np.arange(start, min(start + 512, len(self)))
            resident[start : start + len(positions)] = torch.from_numpy(
                self.split.gather(positions)
            ).to(self.device)
        return resident


def _fits(split: Split, device: torch.device) -> bool:
    if not isinstance(split.store, PixelStore):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(split) * split.store.side_px**2 * 3 <= free / 2
