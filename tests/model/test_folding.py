"""BatchNorm folded into the convolution gives the same outputs and gradients."""

import copy

import torch
from torchvision.models import mobilenet_v2

from drone.model import mobilenet
from drone.model.config import ModelConfig
from drone.model.folding import FoldedBatchNorm2d, FoldingConv2d, merge_batchnorm, set_folding


def model(depth: int = 5) -> mobilenet.Classifier:
    """A model whose BatchNorm statistics and weights are not the initial ones."""
    network = mobilenet.build(ModelConfig(unfreeze_depth=depth, dropout=0.0), 4, 0, None)
    generator = torch.Generator().manual_seed(1)
    for name, value in [*network.named_buffers(), *network.named_parameters()]:
        if name.endswith(("running_var", "1.weight")) and value.ndim == 1:
            value.data.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    return network.double()


def test_forward_and_gradients_equal_those_of_separate_layers() -> None:
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    folded, plain = model().train(), model().train()
    set_folding(plain, False)
    outputs = []
    for network in (folded, plain):
        output = network(images)
        output.square().sum().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[0], outputs[1])
    for (name, actual), expected in zip(folded.named_parameters(), plain.parameters(), strict=True):
        if actual.requires_grad:
            torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_parameters_have_torchvisions_names() -> None:
    features = mobilenet_v2().features.state_dict()
    assert list(model().features.state_dict()) == list(features)


def test_a_copy_folds_its_own_batchnorm() -> None:
    original = model()
    duplicate = copy.deepcopy(original)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = original.eval()(images).detach()
    for name, value in duplicate.named_buffers():
        if name.endswith("running_var"):
            value.mul_(2)
    torch.testing.assert_close(original(images), before)
    assert not torch.allclose(duplicate.eval()(images), before)


def test_merging_a_copy_keeps_the_outputs_and_the_original() -> None:
    original = model().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = original(images).detach()
    duplicate = copy.deepcopy(original)
    merge_batchnorm(duplicate)
    assert not any(isinstance(layer, FoldedBatchNorm2d) for layer in duplicate.modules())
    torch.testing.assert_close(duplicate(images), before)
    torch.testing.assert_close(original(images), before)
    assert sum(isinstance(layer, FoldedBatchNorm2d) for layer in original.modules()) == 52


def test_bf16_gradients_are_close_to_fp32() -> None:
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
        inputs = images.to(dtype).detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = layer(inputs)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        gradients[dtype] = inputs.grad.float()
    difference = gradients[torch.bfloat16] - gradients[torch.float32]
    assert difference.norm() < 0.02 * gradients[torch.float32].norm()
