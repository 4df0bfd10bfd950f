"""Stops all ranks before the optimiser's step when the loss or its gradient is not finite."""

import torch
from torch import Tensor

from drone.errors import TrainingError

_GPU_INTERVAL_STEPS = 50


class FiniteCheck:
    """Checks the gradient norm of each step.

    The gradients of all ranks are summed, so one that is not finite makes the norm non-finite on
    every rank, and all of them notice without a further exchange. On a GPU the optimiser is told on
    the device to skip the step, and the CPU looks only every 50 steps, so that it does not wait for
    the device in each.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Watches an optimiser."""
        self._optimizer = optimizer
        self._lazy = device.type != "cpu"
        self._first_bad = torch.full((2,), -1, dtype=torch.int64, device=device)
        self._steps = 0

    def before_step(self, norm: Tensor, epoch: int, batch: int) -> None:
        """Checks a step before the optimiser takes it.

        Args:
            norm: Norm of the gradient over all parameters.
            epoch: Epoch, counted from 0.
            batch: Batch of the epoch, counted from 0.

        Raises:
            TrainingError: The norm is not finite.
        """
        bad = ~torch.isfinite(norm)
        if not self._lazy:
            if bad:
                _fail(epoch, batch)
            return
        # Fused optimisers skip the step on the device if found_inf is 1.
        self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        here = torch.tensor([epoch, batch], device=norm.device)
        # `where` instead of `if`, which would wait for the GPU to know the value.
        first = bad & (self._first_bad[0] < 0)
        self._first_bad = torch.where(first, here, self._first_bad)
        self._steps += 1
        if self._steps % _GPU_INTERVAL_STEPS == 0:
            self.check()

    def check(self) -> None:
        """Raises if a step was skipped on the device.

        Raises:
            TrainingError: A step was skipped; the message names the first one.
        """
        if self._lazy and int(self._first_bad[0]) >= 0:
            epoch, batch = self._first_bad.tolist()
            _fail(epoch, batch)


def _fail(epoch: int, batch: int) -> None:
    raise TrainingError(
        f"The loss or its gradient is not finite in epoch {epoch + 1}, step {batch + 1}. "
        f"Lower --optim.lr-head and --optim.lr-backbone, or set --precision fp32."
    )
