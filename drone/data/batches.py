"""Which pictures a step takes, and their pixels on the device that wants them."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drone.data.dataset import Split


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


class Feed:
    """The pictures of a split on a device.

    On a GPU the whole split moves to its memory if that takes at most half of what is free;
    else each batch is copied when it is asked for.
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
        """Pixels of the pictures at these positions, (B, H, W, C) uint8, on the device."""
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
    free, _ = torch.cuda.mem_get_info(device)
    return len(split) * split.store.side_px**2 * 3 <= free / 2
