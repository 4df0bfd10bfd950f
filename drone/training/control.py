"""Lets all ranks agree on checkpoints and stops, which any one of them may ask for."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as distributed

from drone.training.context import Context, Stop

_GPU_INTERVAL_STEPS = 20
"""Agreeing costs a collective on the CPU; a GPU's steps are too short for one each."""


@dataclass(frozen=True)
class Agreement:
    """What all ranks do after a step."""

    checkpoint: bool
    stop: Stop

    @property
    def stops(self) -> bool:
        """Whether training ends here."""
        return self.stop is not Stop.NO


class Control:
    """Decides after each step, on all ranks alike."""

    def __init__(self, checkpoint_interval_s: float, context: Context) -> None:
        """Starts the checkpoint timer.

        Args:
            checkpoint_interval_s: Seconds between checkpoints.
            context: Context of this rank.
        """
        self._context = context
        self._checkpoint_interval_s = checkpoint_interval_s
        self._last_checkpoint = time.monotonic()
        self._steps = 0
        self._interval_steps = 1 if context.device.type == "cpu" else _GPU_INTERVAL_STEPS
        self._group = _cpu_group()

    def restart_timer(self) -> None:
        """Restarts the checkpoint interval, after a checkpoint."""
        self._last_checkpoint = time.monotonic()

    def after_step(self) -> Agreement:
        """What to do now; every rank calls it together."""
        # Counted alike on all ranks, so that they meet in the same all-reduce.
        self._steps += 1
        if self._steps % self._interval_steps:
            return Agreement(checkpoint=False, stop=Stop.NO)
        elapsed_s = time.monotonic() - self._last_checkpoint
        # By the clock of rank 0 alone, which writes the checkpoints.
        due = self._context.rank == 0 and elapsed_s >= self._checkpoint_interval_s
        votes = torch.tensor([int(due), int(self._context.stop())])
        if self._context.world_size > 1:
            # Agreed by maximum: if one rank stopped alone, the others would wait for it forever.
            distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self._group)
        return Agreement(checkpoint=bool(votes[0]), stop=Stop(int(votes[1])))


def _cpu_group() -> distributed.ProcessGroup | None:
    """A gloo group beside nccl's, so that agreeing needs no wait for the GPU; None if unneeded."""
    if not distributed.is_initialized() or distributed.get_backend() == "gloo":
        return None
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group
