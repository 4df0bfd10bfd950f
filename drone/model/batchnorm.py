"""Batch normalisation over the whole batch when it is spread over several processes."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from drone.model.folding import FoldedBatchNorm2d


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradients[0])


class GlobalBatchNorm2d(FoldedBatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks together, on any backend.

    torch's SyncBatchNorm does the same on GPUs only. With one process it is plain BatchNorm2d.
    """

    spread = True
    """Whether the other ranks have their part of the batch; else every rank has all of it."""

    silent = False
    """Whether this rank's part of the batch is not to count."""

    def normalise(self, input: Tensor) -> Tensor:
        """By the batch of all ranks in training, else by the stored statistics."""
        alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        if not self.training or alone or not self.spread:
            return super().normalise(input)
        assert self.running_mean is not None
        # Sums about a value near the mean: squares of large activations would lose their digits.
        near_C = self.running_mean.clone()
        precise = torch.promote_types(input.dtype, torch.float32)
        values = input.to(precise) - near_C.view(1, -1, 1, 1)
        sums_C = values.sum(dim=(0, 2, 3))
        squares_C = values.square().sum(dim=(0, 2, 3))
        count = values.new_full((1,), values.numel() / values.shape[1])
        parts = torch.cat([sums_C, squares_C, count]) * (0.0 if self.silent else 1.0)
        total: Tensor = _SumOverRanks.apply(parts)
        mean_C = total[: self.num_features] / total[-1]
        square_C = total[self.num_features : -1] / total[-1]
        variance_C = (square_C - mean_C.square()).clamp_min(0)
        self._track(near_C + mean_C.detach(), variance_C.detach(), total[-1].detach())
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        shift_C = self.bias - mean_C * scale_C
        shape = (1, -1, 1, 1)
        normalised: Tensor = values * scale_C.view(shape) + shift_C.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        """Moves the stored statistics as BatchNorm2d does, with the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum or 1 / float(self.num_batches_tracked)
        unbiased_C = variance_C * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_C, momentum)


def spread_batchnorm(module: nn.Module) -> None:
    """Puts GlobalBatchNorm2d in the place of every FoldedBatchNorm2d below the module."""
    for child in module.modules():
        if type(child) is FoldedBatchNorm2d:
            child.__class__ = GlobalBatchNorm2d


def has_statistics(module: nn.Module) -> bool:
    """Whether the batch normalisation below the module has ever seen a picture."""
    layers = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    return any(bool(layer.running_mean.any()) for layer in layers if layer.running_mean is not None)


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the stored statistics to the mean over some batches.

    For a network of random weights: with the statistics it is made with, which are those of no
    data, its activations shrink to nothing and no head can learn from them.

    Args:
        module: with BatchNorm2d layers; its modes and momenta are as before afterwards.
        batches: inputs of the module.
    """
    layers = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    modes, momenta = [layer.training for layer in layers], [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # The plain mean over all batches.
        # Not the module's own train(), which may hold frozen blocks back.
        layer.training = True
    _set_spread(layers, False)  # Every rank sees the same batches.
    for batch in batches:
        module(batch)
    _set_spread(layers, True)
    for layer, mode, momentum in zip(layers, modes, momenta, strict=True):
        layer.training, layer.momentum = mode, momentum


def set_silent(module: nn.Module, silent: bool) -> None:
    """Says whether this rank's next pictures are not to count in the batch's statistics."""
    for layer in module.modules():
        if isinstance(layer, GlobalBatchNorm2d):
            layer.silent = silent


def _set_spread(layers: Iterable[nn.Module], spread: bool) -> None:
    for layer in layers:
        if isinstance(layer, GlobalBatchNorm2d):
            layer.spread = spread
