"""BatchNorm on stored statistics, folded into the convolution before it.

With fixed statistics BatchNorm is a scale and a shift per channel, which can be multiplied into
the convolution's weights. That saves one pass over the activations, forward and backward. Folding
is computed in every step, so the weights of both layers keep their names and stay trainable;
gradients reach them through the scale.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_Conv = TypeVar("_Conv", bound=nn.Conv2d)
_Norm = TypeVar("_Norm", bound=nn.BatchNorm2d)


class FoldingConv2d(nn.Conv2d):
    """Conv2d that applies the BatchNorm behind it as well, unless that is in training mode.

    A strided depthwise convolution that needs the gradient of its input takes another path on a
    CPU. oneDNN has no bf16 kernel for it and falls back to a plain loop: 242 ms instead of 3.4 for
    the one in MobileNet_V2's features[14] (batch 64, one core of an AMD EPYC, torch 2.15), 40 % of
    a whole training step. If its weights are trainable it computes in fp32; if they are frozen the
    gradient is a convolution without stride, in half of that time.
    """

    next_norm: "tuple[FoldedBatchNorm2d]"
    """The BatchNorm behind, in a tuple: as a submodule its weights would appear under two names."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns activations, (N, C, H, W), in the type that autocast would give."""
        weight, bias = self._folded()
        if not self._lacks_kernel(input):
            output: Tensor = self._conv_forward(input, weight, bias)
            return output
        if bias is not None and not weight.requires_grad and self.kernel_size == (3, 3):
            frozen: Tensor = _FrozenStridedDepthwise.apply(input, weight, bias)
            return frozen
        with torch.autocast("cpu", enabled=False):
            precise: Tensor = self._conv_forward(input.float(), weight, bias)
        return precise.to(input.dtype)

    def merged(self) -> nn.Conv2d:
        """Returns a plain convolution with the BatchNorm in its weights."""
        weight, bias = self._folded()
        assert bias is not None, "the BatchNorm is in training mode"
        plain: nn.Conv2d = copy.deepcopy(self)
        plain.__class__ = nn.Conv2d
        del plain.__dict__["next_norm"]
        plain.weight, plain.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return plain

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        (norm,) = self.next_norm
        # In training mode the batch's statistics are unknown until the convolution has run.
        if not norm.folds:
            return self.weight, None
        assert norm.running_mean is not None and norm.running_var is not None
        scale_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias_C = norm.bias - norm.running_mean * scale_C
        return self.weight * scale_C.view(-1, 1, 1, 1), bias_C

    def _lacks_kernel(self, input: Tensor) -> bool:
        strided_depthwise = self.stride == (2, 2) and self.groups == self.in_channels
        cpu_bf16 = input.device.type == "cpu" and input.dtype == torch.bfloat16
        return strided_depthwise and cpu_bf16 and torch.is_grad_enabled() and input.requires_grad


class _FrozenStridedDepthwise(torch.autograd.Function):
    """A depthwise 3x3 convolution of stride 2 and padding 1 with frozen weights.

    The gradient of the input is that of the output, spread out with zeros between its values and
    convolved with the flipped kernel.
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
        # In the input's layout (channels-last), so that the convolution need not reorder it.
        spread = kernel.new_empty_strided(ctx.shape, ctx.strides).zero_()
        spread[:, :, ::2, ::2] = gradients[0]
        flipped = kernel.flip(2, 3)
        return functional.conv2d(spread, flipped, padding=1, groups=len(kernel)), None, None


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that leaves its work to the convolution before it, except in training mode."""

    enabled = True
    """Whether folding is on; otherwise both layers compute separately."""

    @property
    def folds(self) -> bool:
        """Whether the convolution applies this BatchNorm now."""
        return self.enabled and not self.training

    def forward(self, input: Tensor) -> Tensor:
        """Returns normalised activations, (N, C, H, W)."""
        if self.folds:
            return input
        return self.normalise(input)

    def normalise(self, input: Tensor) -> Tensor:
        """Normalises by the batch in training, else by the stored statistics."""
        output: Tensor = super().forward(input)
        return output


def fold_batchnorm(features: nn.Module) -> None:
    """Folds every BatchNorm below the module into the convolution right before it."""
    for _, _, conv, norm in _pairs(features, nn.Conv2d, nn.BatchNorm2d):
        assert conv.bias is None
        # The class is swapped in place because new layers would have to copy torchvision's
        # parameters and every setting, and would draw random numbers for weights they then lose.
        conv.__class__ = FoldingConv2d
        norm.__class__ = FoldedBatchNorm2d
        # Past nn.Module.__setattr__, which would look for modules to register.
        conv.__dict__["next_norm"] = (norm,)


def merge_batchnorm(features: nn.Module) -> None:
    """Writes the folded weights into the convolutions for good, for a model trained to its end.

    Activation functions stop overwriting their input too. torch.onnx exports such a model in a
    quarter of the time.
    """
    for sequence, index, conv, _ in _pairs(features, FoldingConv2d, FoldedBatchNorm2d):
        sequence[index] = conv.merged()
        sequence[index + 1] = nn.Identity()
    for module in features.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False


def _pairs(
    features: nn.Module, conv_type: type[_Conv], norm_type: type[_Norm]
) -> Iterator[tuple[nn.Sequential, int, _Conv, _Norm]]:
    """Yields each convolution followed by a BatchNorm, with their sequence and its index there."""
    for sequence in [child for child in features.modules() if isinstance(child, nn.Sequential)]:
        for index, (conv, norm) in enumerate(itertools.pairwise(list(sequence))):
            # The exact type, since a FoldingConv2d is a Conv2d too and must not be folded twice.
            if type(conv) is conv_type and isinstance(norm, norm_type):
                yield sequence, index, conv, norm


def set_folding(module: nn.Module, enabled: bool) -> None:
    """Switches folding on or off below a module."""
    for child in module.modules():
        if isinstance(child, FoldedBatchNorm2d):
            child.enabled = enabled
