"""Batch normalisation over the global batch of several processes."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from drone.model.folding import FoldedBatchNorm2d


class _SumOverRanks(torch.autograd.Function):
    """All-reduce sum whose gradient is summed over the ranks too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradients[0])


class GlobalBatchNorm2d(FoldedBatchNorm2d):
    """BatchNorm2d that normalises by the batch of all ranks together, on any backend.

    torch's SyncBatchNorm does the same on GPUs only. With one process it is plain BatchNorm2d.
    """

    sharded = True
    """Whether each rank holds its part of the batch; otherwise every rank holds all of it."""

    padding = False
    """Whether this rank's part of the batch is padding, which statistics must not count."""

    def normalise(self, input: Tensor) -> Tensor:
        """Normalises by the global batch in training, else by the stored statistics."""
        single = not distributed.is_initialized() or distributed.get_world_size() == 1
        if not self.training or single or not self.sharded:
            return super().normalise(input)
        assert self.running_mean is not None
        # Sums about a value near the mean: squares of large activations would lose their digits.
        near_C = self.running_mean.clone()
        precise = torch.promote_types(input.dtype, torch.float32)
        values = input.to(precise) - near_C.view(1, -1, 1, 1)
        sums_C = values.sum(dim=(0, 2, 3))
        squares_C = values.square().sum(dim=(0, 2, 3))
        count = values.new_full((1,), values.numel() / values.shape[1])
        # A padding rank sends zeros: were it to skip the all-reduce, the others would wait for it.
        parts = torch.cat([sums_C, squares_C, count]) * (0.0 if self.padding else 1.0)
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
        """Updates the stored statistics as BatchNorm2d does, with the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum or 1 / float(self.num_batches_tracked)
        unbiased_C = variance_C * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_C, momentum)


def use_global_batchnorm(module: nn.Module) -> None:
    """Turns every FoldedBatchNorm2d below the module into a GlobalBatchNorm2d."""
    for child in module.modules():
        if type(child) is FoldedBatchNorm2d:
            # See `folding.fold_batchnorm` for why the class is swapped in place.
            child.__class__ = GlobalBatchNorm2d


def has_statistics(module: nn.Module) -> bool:
    """Returns whether the BatchNorm statistics below the module come from data."""
    layers = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    return any(bool(layer.running_mean.any()) for layer in layers if layer.running_mean is not None)


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the stored statistics to their mean over some batches.

    Needed for random weights: with the initial statistics (mean 0, variance 1) their activations
    shrink towards zero from block to block, and no head can be trained on them.

    Args:
        module: Module with BatchNorm2d layers; their modes and momenta are restored afterwards.
        batches: Inputs of the module, the same ones on every rank.
    """
    layers = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    modes, momenta = [layer.training for layer in layers], [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch then takes the plain mean over all batches.
        # Not the module's own train(), which may keep frozen blocks in evaluation mode.
        layer.training = True
    _set_sharded(layers, False)
    for batch in batches:
        module(batch)
    _set_sharded(layers, True)
    for layer, mode, momentum in zip(layers, modes, momenta, strict=True):
        layer.training, layer.momentum = mode, momentum


def set_padding(module: nn.Module, padding: bool) -> None:
    """Sets whether this rank's next images are padding, which batch statistics must not count."""
    for layer in module.modules():
        if isinstance(layer, GlobalBatchNorm2d):
            layer.padding = padding


def _set_sharded(layers: Iterable[nn.Module], sharded: bool) -> None:
    for layer in layers:
        if isinstance(layer, GlobalBatchNorm2d):
            layer.sharded = sharded
