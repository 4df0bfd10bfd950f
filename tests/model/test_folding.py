"""Normalisation that the convolution does is the same normalisation."""

import copy

import torch
from torchvision.models import mobilenet_v2

from drone.model import mobilenet
from drone.model.config import ModelConfig
from drone.model.folding import FoldedBatchNorm2d, FoldingConv2d, set_folding, settle


def model(depth: int = 5) -> mobilenet.Classifier:
    """With statistics and weights of normalisation that are not those it is made with."""
    made = mobilenet.build(ModelConfig(unfreeze_depth=depth, dropout=0.0), 4, 0, None)
    generator = torch.Generator().manual_seed(1)
    for name, value in [*made.named_buffers(), *made.named_parameters()]:
        if name.endswith(("running_var", "1.weight")) and value.ndim == 1:
            value.data.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    return made.double()


def test_forward_and_gradients_are_those_of_two_layers() -> None:
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    folded, plain = model().train(), model().train()
    set_folding(plain, False)
    outputs = []
    for network in (folded, plain):
        output = network(images)
        output.square().sum().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[0], outputs[1])
    for (name, one), other in zip(folded.named_parameters(), plain.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_names_are_torchvisions() -> None:
    features = mobilenet_v2().features.state_dict()
    assert list(model().features.state_dict()) == list(features)


def test_a_copy_folds_with_its_own_normalisation() -> None:
    original = model()
    duplicate = copy.deepcopy(original)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = original.eval()(images).detach()
    for name, value in duplicate.named_buffers():
        if name.endswith("running_var"):
            value.mul_(2)
    torch.testing.assert_close(original(images), before)
    assert not torch.allclose(duplicate.eval()(images), before)


def test_a_settled_copy_answers_alike_and_leaves_the_original_as_it_was() -> None:
    original = model().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = original(images).detach()
    duplicate = copy.deepcopy(original)
    settle(duplicate)
    assert not any(isinstance(one, FoldedBatchNorm2d) for one in duplicate.modules())
    torch.testing.assert_close(duplicate(images), before)
    torch.testing.assert_close(original(images), before)
    assert sum(isinstance(one, FoldedBatchNorm2d) for one in original.modules()) == 52


def test_short_numbers_give_nearly_the_same_gradients() -> None:
    network = mobilenet.build(ModelConfig(), 4, 0, None).train()
    strided = [
        layer
        for layer in network.features.modules()
        if isinstance(layer, FoldingConv2d) and layer.stride != (1, 1) and layer.groups > 1
    ]
    assert len(strided) == 4
    layer = strided[-1]
    images = torch.randn(2, layer.in_channels, 8, 8).to(memory_format=torch.channels_last)
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        own = images.to(dtype).detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = layer(own)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        gradients[dtype] = own.grad.float()
    difference = gradients[torch.bfloat16] - gradients[torch.float32]
    assert difference.norm() < 0.02 * gradients[torch.float32].norm()
