"""Learned resizers: they start as area averaging and export to one ONNX graph."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as functional

from drone.data.dataset import Dataset
from drone.data.prepare.plan import PrepareSettings, map_sequentially, plan_dataset
from drone.data.prepare.write import write_dataset
from drone.model import export, mobilenet, weights
from drone.model.config import ModelConfig
from drone.model.resizer import SIDES_PX, STACKS, Resizer
from tests.lively import make_lively

KINDS = ("stack", "residual")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES_PX)
def test_it_starts_as_area_averaging(kind: str, side: int) -> None:
    resizer = Resizer(ModelConfig(resizer=kind))
    images = torch.randn(1, 3, side, side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        resized = resizer(images)
    expected = functional.interpolate(images, (224, 224), mode="area")
    assert resized.dtype == torch.float32
    assert (resized - expected).abs().max() < 1e-5


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"300 px.*224, 448"):
        Resizer(ModelConfig(resizer="stack"))(torch.zeros(1, 3, 300, 300))


def test_random_init_is_not_averaging() -> None:
    config = ModelConfig(resizer="stack", resizer_init="random")
    images = torch.rand(1, 3, 448, 448)
    assert (Resizer(config)(images) - functional.avg_pool2d(images, 2)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_starts_with_the_same_weights_as_without_a_resizer(kind: str) -> None:
    plain = mobilenet.build(ModelConfig(), 4, 5, None)
    mixed = mobilenet.build(ModelConfig(resizer=kind), 4, 5, None)
    state = mixed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert set(state) - set(plain.state_dict()) == {
        name for name in state if name.startswith("resizer.")
    }


def fit_head(dataset: Dataset, model: mobilenet.Classifier) -> None:
    """Fits the linear head of a model to images of 224 px, in closed form."""
    train = dataset.split("train")
    features = pooled_features(model, train.gather(np.arange(len(train))))
    targets = functional.one_hot(torch.from_numpy(train.labels_N), 4).float() - 0.25
    ridge = features.T @ features + 50.0 * torch.eye(features.shape[1])
    with torch.no_grad():
        layer = model.head[-1]
        layer.weight.copy_(10 * torch.linalg.solve(ridge, features.T @ targets).T)
        layer.bias.zero_()


@torch.no_grad()
def pooled_features(model: mobilenet.Classifier, pixels: np.ndarray) -> torch.Tensor:
    normalise = export.Served(model).normalise
    parts = [
        model.features(normalise(torch.from_numpy(pixels[start : start + 64]))).mean((2, 3))
        for start in range(0, len(pixels), 64)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_step_0_equals_the_baseline_of_224_px(
    real_images: Path, real_weights: Path, tmp_path: Path, kind: str
) -> None:
    raw = tmp_path / "raw"
    for folder in sorted(real_images.iterdir()):
        (raw / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:24]:
            (raw / folder.name / file.name).symlink_to(file)
    planned = plan_dataset([raw], PrepareSettings(), map_sequentially)
    dataset = write_dataset(planned, tmp_path / "d", map_sequentially, bins=True)[0]
    config = ModelConfig(test_time_flip=False, resizer=kind)
    model = mobilenet.build(config, 4, 0, weights.load(str(real_weights)).state()).eval()
    fit_head(dataset, model)
    served = export.Served(model).eval()
    squashed, own = dataset.split("train"), dataset.at_bins().split("train")
    assert set(own.sides_N) == {448}
    probabilities = []
    with torch.no_grad():
        for split in (squashed, own):
            probabilities.append(
                served(torch.from_numpy(split.gather(np.arange(len(split))))).numpy()
            )
    differences = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    assert probabilities[0].max(axis=1).mean() > 0.5  # Confident enough for differences to show.
    assert differences.mean() < 0.02 and differences.max() < 0.15
    assert (probabilities[0].argmax(axis=1) == probabilities[1].argmax(axis=1)).mean() > 0.97


@pytest.mark.parametrize(
    ("kind", "flip"),
    [pytest.param("stack", False, marks=pytest.mark.slow), ("residual", True)],
)
def test_one_onnx_graph_predicts_for_all_sizes(tmp_path: Path, kind: str, flip: bool) -> None:
    config = ModelConfig(resizer=kind, test_time_flip=flip)
    model = mobilenet.build(config, 4, 0, None)
    make_lively(model)
    export.to_onnx(model.eval(), tmp_path / "m.onnx", 224, {"classes": "[]"})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert "3584" in session.get_modelmeta().custom_metadata_map["sides_px"]
    served = export.Served(model).eval()
    probabilities = []
    for side in (224, *STACKS):
        count = 1 if side > 900 else 3
        pixels = np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)
        with torch.no_grad():
            expected = served(torch.from_numpy(pixels)).numpy()
        actual, known, evidence = session.run(None, {"pixels": pixels})
        assert known.shape == (count,) and (known > 0.99).all()
        assert evidence.shape == (count, 4, 7, 7)
        assert actual.shape == (count, 4) and np.abs(actual - expected).max() < 5e-4, side
        probabilities.append(actual[0])
    assert np.std(probabilities, axis=0).max() > 1e-3  # Each size has its own resizer.
