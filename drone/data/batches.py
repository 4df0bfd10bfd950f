"""Which images a training step takes, and their pixels on the device that needs them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drone.data.bins import batch_size_for
from drone.data.dataset import Split
from drone.data.pixels import PixelStore

_MAX_MEMORY_SHARE = 0.5
"""Share of the free GPU memory that a split may take."""

_LOAD_ROWS = 512


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the positions of the images of an epoch, (steps, B), one row per global batch.

    A pure function of its arguments, which do not include the number of workers. Every batch is
    full: the last one is filled with the first images of the same order.
    """
    batch_size = min(batch_size, count)
    # Seeded with the epoch, so that a resumed run has the same order without saved state.
    order = np.random.default_rng([seed, epoch]).permutation(count)
    # resize() repeats from the start: a short last batch would be a noisy step at full rate.
    return np.resize(order, (_num_steps(count, batch_size), batch_size))


def _num_steps(count: int, batch_size: int) -> int:
    return math.ceil(count / min(batch_size, count))


@dataclass(frozen=True)
class Batches:
    """Divides the images of a split into steps, and each step into micro-batches.

    A step has a constant number of images, whatever their sizes and however many workers there
    are. A micro-batch holds images of one bin, which go through the network together; gradients
    accumulate over the micro-batches of a step. All workers take their share of the same
    micro-batch at the same time.
    """

    sides_N: NDArray[np.int64]
    """Side of each image in pixels."""

    batch_size: int
    """Images per step, or all images if there are fewer."""

    pixel_budget: int | None
    """Maximum pixels per micro-batch on each worker; None makes each step one micro-batch."""

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return _num_steps(len(self.sides_N), self.batch_size)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Returns the positions of the images of an epoch, (steps, B), one row per step.

        A pure function of seed and epoch. The images of each bin are shuffled and cut into runs
        of as many as go through the network together, and then the runs are shuffled. The last
        step is filled with the first images of the same order.
        """
        if self.pixel_budget is None:
            return epoch_order(len(self.sides_N), self.batch_size, seed, epoch)
        generator = np.random.default_rng([seed, epoch])
        # Shuffling single images would leave the rare large bins with micro-batches of one.
        runs: list[NDArray[np.int64]] = []
        for side in np.unique(self.sides_N):
            shuffled = generator.permutation(np.flatnonzero(self.sides_N == side))
            size = batch_size_for(int(side), self.batch_size, self.pixel_budget)
            runs += _chunks(shuffled, size)
        order = np.concatenate([runs[number] for number in generator.permutation(len(runs))])
        return np.resize(order, (self.steps, min(self.batch_size, len(order))))

    def micro_batches(
        self, positions_B: NDArray[np.int64], world_size: int
    ) -> list[NDArray[np.int64]]:
        """Returns the images of a step in micro-batches over all workers; the largest bin last.

        Args:
            positions_B: Images of the step.
            world_size: Number of workers, each of which takes its share of every micro-batch.
        """
        if self.pixel_budget is None:
            return [positions_B]
        sides_B = self.sides_N[positions_B]
        micro_batches: list[NDArray[np.int64]] = []
        for side in np.unique(sides_B):
            in_bin = positions_B[sides_B == side]
            per_worker = batch_size_for(int(side), self.batch_size, self.pixel_budget)
            num_parts = math.ceil(len(in_bin) / (per_worker * world_size))
            micro_batches += np.array_split(in_bin, num_parts)
        return micro_batches

    def sequential(
        self, rank: int, world_size: int, max_batch_size: int
    ) -> list[NDArray[np.int64]]:
        """Returns all images of one worker, for evaluation, in batches of one bin.

        Over all workers each image is in exactly one batch, and none is repeated.

        Args:
            rank: Rank of the worker.
            world_size: Number of workers.
            max_batch_size: Maximum number of images per batch.
        """
        batches: list[NDArray[np.int64]] = []
        # Strided, so that ranks differ by at most one image of each bin.
        for side in np.unique(self.sides_N):
            in_bin = np.flatnonzero(self.sides_N == side)[rank::world_size]
            size = max_batch_size
            if self.pixel_budget is not None:
                size = batch_size_for(int(side), max_batch_size, self.pixel_budget)
            batches += _chunks(in_bin, size)
        return batches


def _chunks(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


class DeviceSplit:
    """The images of a split on a device.

    On a GPU the whole split is copied to its memory if its images are of one size and take at
    most half of what is free. Otherwise each batch is copied when it is needed.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        """Copies the split to the device, if it fits."""
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
        """Returns the images at these positions, (B, H, W, C) uint8, on the device.

        All of them must be of one size.
        """
        if self._resident is not None:
            return self._resident[torch.from_numpy(positions_B).to(self.device)]
        pixels = torch.from_numpy(self.split.gather(positions_B))
        if self.device.type == "cuda":
            # Only a copy from pinned memory runs beside the computation.
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels

    def _load_all(self) -> Tensor:
        side = self.split.store.side_px
        resident = torch.empty((len(self), side, side, 3), dtype=torch.uint8, device=self.device)
        for positions in _chunks(np.arange(len(self)), _LOAD_ROWS):
            pixels = torch.from_numpy(self.split.gather(positions))
            resident[positions[0] : positions[-1] + 1] = pixels.to(self.device)
        return resident


def _fits(split: Split, device: torch.device) -> bool:
    if not isinstance(split.store, PixelStore):  # Images of several sizes are not one tensor.
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return len(split) * split.store.side_px**2 * 3 <= free_bytes * _MAX_MEMORY_SHARE
