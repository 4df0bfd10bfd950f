"""Evidence maps within the network and within the exported model, against torch.autograd."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.model.evidence import evidence_maps, logit_gradients
from drone.model.inference import with_mirrored
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing

HEADS = {
    "linear": ModelConfig(),
    "hidden": ModelConfig(head_width=32),
    "seed": ModelConfig(head="seed"),
    "without flip": ModelConfig(head_width=32, test_time_flip=False),
    "all frozen": ModelConfig(unfreeze_depth=0),
}
SIDE_PX = 96


@pytest.fixture(scope="module", params=HEADS.values(), ids=HEADS)
def model(request: pytest.FixtureRequest) -> mobilenet.Classifier:
    built = mobilenet.build(request.param, len(CLASSES), seed=0, backbone=None).eval()
    generator = torch.Generator().manual_seed(0)
    estimate_statistics(built.features, [torch.randn(32, 3, SIDE_PX, SIDE_PX, generator=generator)])
    return built


def logits(model: mobilenet.Classifier, features_MC: Tensor) -> Tensor:
    """The output of the last linear layer, which the head of the original normalises."""
    layers = model.head[:-1] if isinstance(model.head[-1], torch.nn.LogSoftmax) else model.head
    return layers(features_MC)


def hirescam(model: mobilenet.Classifier, images_NCHW: Tensor) -> Tensor:
    """Gradient times activation by autograd, (N, K, H, W)."""
    activations = model.last_activations(images_NCHW).detach().requires_grad_()
    logits_NK = logits(model, mobilenet.pooled(activations))
    gradients = [
        torch.autograd.grad(logits_NK[:, index].sum(), activations, retain_graph=True)[0]
        for index in range(len(CLASSES))
    ]
    return torch.stack([(gradient * activations).sum(1) for gradient in gradients], 1).detach()


def expected_maps(model: mobilenet.Classifier, images_NCHW: Tensor) -> Tensor:
    upright = hirescam(model, images_NCHW)
    if not model.config.test_time_flip:
        return upright
    return (upright + hirescam(model, images_NCHW.flip(3)).flip(3)) / 2


def computed_maps(model: mobilenet.Classifier, images_NCHW: Tensor) -> Tensor:
    views = with_mirrored(images_NCHW) if model.config.test_time_flip else images_NCHW
    with torch.no_grad():
        activations = model.last_activations(views)
        return evidence_maps(model, activations, mobilenet.pooled(activations))


def test_maps_are_gradient_times_activation(model: mobilenet.Classifier) -> None:
    images_NCHW = torch.randn(4, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1))
    maps_NKHW = computed_maps(model, images_NCHW)
    assert maps_NKHW.shape == (4, len(CLASSES), 3, 3)
    expected = expected_maps(model, images_NCHW)
    assert float(expected.std()) > 1e-4
    torch.testing.assert_close(maps_NKHW, expected, rtol=1e-3, atol=1e-5)


def test_maps_of_a_linear_head_sum_to_the_logit_less_its_bias() -> None:
    model = mobilenet.build(ModelConfig(test_time_flip=False), 4, seed=0, backbone=None).eval()
    images_NCHW = torch.randn(3, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        expected = model(images_NCHW) - model.head[-1].bias
        sums_NK = computed_maps(model, images_NCHW).sum((2, 3))
    torch.testing.assert_close(sums_NK, expected, rtol=1e-4, atol=1e-6)


def test_gradients_depend_on_which_hidden_units_are_active() -> None:
    model = mobilenet.build(ModelConfig(head_width=32), 4, seed=0, backbone=None).eval()
    features = torch.randn(2, 1280)
    gradients_MKC = logit_gradients(model.head, features)
    assert not torch.allclose(gradients_MKC[0], gradients_MKC[1])
    jacobian = torch.autograd.functional.jacobian(lambda row: model.head(row[None])[0], features[1])
    torch.testing.assert_close(gradients_MKC[1], jacobian)


def test_the_exported_model_gives_the_same_maps(
    model: mobilenet.Classifier, tmp_path: Path
) -> None:
    target = tmp_path / "model.onnx"
    metadata = {**class_metadata(CLASSES), "preprocessing": Preprocessing().to_json()}
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE_PX, SIDE_PX, 3), np.uint8)
    images_NCHW = export.Served(model).normalise(torch.from_numpy(pixels))[:2]
    expected = computed_maps(model, images_NCHW)
    export.to_onnx(model, target, SIDE_PX, metadata)
    session = onnxruntime.InferenceSession(target)
    (maps,) = session.run(["evidence"], {"pixels": pixels})
    np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_larger_images_of_a_model_of_mixed_resolutions_have_the_grid_of_the_smallest(
    mixed_model: Path,
) -> None:
    session = onnxruntime.InferenceSession(mixed_model)
    for side_px in (224, 448):
        pixels = np.zeros((1, side_px, side_px, 3), np.uint8)
        (maps,) = session.run(["evidence"], {"pixels": pixels})
        assert maps.shape == (1, len(CLASSES), 7, 7)
