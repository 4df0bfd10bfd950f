"""Batch normalisation over the whole batch when it is spread over several processes."""

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks together, on any backend.

    torch's SyncBatchNorm does the same on GPUs only. With one process it is plain BatchNorm2d.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalised activations, (N, C, H, W)."""
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        values = input.float()
        sums_C = values.sum(dim=(0, 2, 3))
        squares_C = values.square().sum(dim=(0, 2, 3))
        count = values.new_full((1,), values.numel() / values.shape[1])
        total = all_reduce(torch.cat([sums_C, squares_C, count]))
        mean_C = total[: self.num_features] / total[-1]
        square_C = total[self.num_features : -1] / total[-1]
        variance_C = (square_C - mean_C.square()).clamp_min(0)
        self._track(mean_C.detach(), variance_C.detach(), total[-1].detach())
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        shift_C = self.bias - mean_C * scale_C
        shape = (1, -1, 1, 1)
        return (values * scale_C.view(shape) + shift_C.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        """Moves the stored statistics as BatchNorm2d does, with the unbiased variance."""
        momentum = self.momentum or 0.0
        unbiased_C = variance_C * count / (count - 1).clamp_min(1)
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_C, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def spread_batchnorm(module: nn.Module) -> None:
    """Puts GlobalBatchNorm2d in the place of every BatchNorm2d below the module."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm2d
