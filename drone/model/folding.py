"""Batch normalisation on stored statistics, done by the convolution before it.

With fixed statistics normalisation is a factor and a shift for each channel, which can be put into
the convolution's weights: one pass over the activations less, forward and backward. The weights of
both layers keep their names and still learn; gradients reach them through the factor.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_Layer = TypeVar("_Layer", bound=nn.Conv2d)
_Norm = TypeVar("_Norm", bound=nn.BatchNorm2d)


class FoldingConv2d(nn.Conv2d):
    """Conv2d that also does the work of the normalisation behind it, unless that is in training.

    Where a strided depthwise one needs a gradient for its input on a processor, it takes another
    way. oneDNN has no bf16 kernel for that and falls back to a plain loop: 242 ms instead of 3.4
    for the one in MobileNet_V2's features[14] (batch 64, one core of an AMD EPYC, torch 2.15),
    40 % of a whole training step. If its weights learn too it computes in fp32; if it is frozen
    the gradient is a convolution without stride, in half of that time.
    """

    behind: "tuple[FoldedBatchNorm2d]"
    """In a tuple, so that its weights have one name and not two."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations, (N, C, H, W), in the type that autocast would give."""
        weight, bias = self._folded()
        if not self._lacks_kernel(input):
            plain: Tensor = self._conv_forward(input, weight, bias)
            return plain
        if bias is not None and not weight.requires_grad and self.kernel_size == (3, 3):
            frozen: Tensor = _FrozenStridedDepthwise.apply(input, weight, bias)
            return frozen
        with torch.autocast("cpu", enabled=False):
            precise: Tensor = self._conv_forward(input.float(), weight, bias)
        return precise.to(input.dtype)

    def settled(self) -> nn.Conv2d:
        """A plain convolution that does the same, the normalisation included."""
        weight, bias = self._folded()
        assert bias is not None, "the normalisation is in training"
        plain: nn.Conv2d = copy.deepcopy(self)
        plain.__class__ = nn.Conv2d
        del plain.__dict__["behind"]
        plain.weight, plain.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return plain

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        (norm,) = self.behind
        if not norm.folds:
            return self.weight, None
        assert norm.running_mean is not None and norm.running_var is not None
        scale_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias_C = norm.bias - norm.running_mean * scale_C
        return self.weight * scale_C.view(-1, 1, 1, 1), bias_C

    def _lacks_kernel(self, input: Tensor) -> bool:
        strided_depthwise = self.stride == (2, 2) and self.groups == self.in_channels
        short = input.device.type == "cpu" and input.dtype == torch.bfloat16
        return strided_depthwise and short and torch.is_grad_enabled() and input.requires_grad


class _FrozenStridedDepthwise(torch.autograd.Function):
    """A depthwise 3x3 convolution of stride 2 and padding 1, whose weights do not learn.

    The gradient of its input is that of its output with zeros between, convolved with the mirrored
    kernel.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernel = weight.to(input.dtype)
        ctx.save_for_backward(kernel)
        ctx.shape, ctx.strides = input.shape, input.stride()
        output: Tensor = functional.conv2d(
            input, kernel, bias.to(input.dtype), stride=2, padding=1, groups=input.shape[1]
        )
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kernel,) = ctx.saved_tensors
        spread = kernel.new_empty_strided(ctx.shape, ctx.strides).zero_()
        spread[:, :, ::2, ::2] = gradients[0]
        mirrored = kernel.flip(2, 3)
        return functional.conv2d(spread, mirrored, padding=1, groups=len(kernel)), None, None


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that leaves its work to the convolution before it, unless it is in training."""

    enabled = True
    """Whether it may; without, both layers compute as they are."""

    @property
    def folds(self) -> bool:
        """Whether the convolution does it."""
        return self.enabled and not self.training

    def forward(self, input: Tensor) -> Tensor:
        """Normalised activations, (N, C, H, W)."""
        if self.folds:
            return input
        return self.normalise(input)

    def normalise(self, input: Tensor) -> Tensor:
        """By the batch in training, else by the stored statistics."""
        plain: Tensor = super().forward(input)
        return plain


def fold(features: nn.Module) -> None:
    """Lets every convolution below the module do the normalisation right behind it."""
    for _, _, layer, norm in _pairs(features, nn.Conv2d, nn.BatchNorm2d):
        assert layer.bias is None
        layer.__class__ = FoldingConv2d
        norm.__class__ = FoldedBatchNorm2d
        layer.__dict__["behind"] = (norm,)


def settle(features: nn.Module) -> None:
    """Makes what folding computes in each step the convolutions' own weights, for good.

    For a model that has learnt all it will. Activation functions no longer write over their input
    either. To torch.onnx such a model is a quarter of the work.
    """
    for sequence, place, layer, _ in _pairs(features, FoldingConv2d, FoldedBatchNorm2d):
        sequence[place] = layer.settled()
        sequence[place + 1] = nn.Identity()
    for module in features.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False


def _pairs(
    features: nn.Module, kind: type[_Layer], following: type[_Norm]
) -> Iterator[tuple[nn.Sequential, int, _Layer, _Norm]]:
    """A layer of one kind with one of another right behind it, their sequence and its place."""
    for sequence in [child for child in features.modules() if isinstance(child, nn.Sequential)]:
        for place, (layer, norm) in enumerate(itertools.pairwise(list(sequence))):
            if type(layer) is kind and isinstance(norm, following):
                yield sequence, place, layer, norm


def set_folding(module: nn.Module, enabled: bool) -> None:
    """Switches folding on or off below a module."""
    for child in module.modules():
        if isinstance(child, FoldedBatchNorm2d):
            child.enabled = enabled
