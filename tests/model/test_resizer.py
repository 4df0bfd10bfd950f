"""Resizing networks: at their start they change nothing."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as functional

from drone.data.dataset import Dataset
from drone.data.prepare import PrepareSettings, map_here, plan
from drone.data.writing import apply
from drone.model import export, mobilenet, weights
from drone.model.config import ModelConfig
from drone.model.resizer import STACKS, Resizer, sides_px
from tests.lively import make_lively

KINDS = ("stack", "residual")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", sides_px())
def test_it_begins_as_the_average(kind: str, side: int) -> None:
    resizer = Resizer(ModelConfig(resizer=kind))
    images = torch.randn(1, 3, side, side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = resizer(images)
    expected = functional.interpolate(images, (224, 224), mode="area")
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"300 px.*224, 448"):
        Resizer(ModelConfig(resizer="stack"))(torch.zeros(1, 3, 300, 300))


def test_the_original_began_at_random() -> None:
    config = ModelConfig(resizer="stack", resizer_start="random")
    images = torch.rand(1, 3, 448, 448)
    assert (Resizer(config)(images) - functional.avg_pool2d(images, 2)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_begins_as_without_one(kind: str) -> None:
    plain = mobilenet.build(ModelConfig(), 4, 5, None)
    mixed = mobilenet.build(ModelConfig(resizer=kind), 4, 5, None)
    state = mixed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert set(state) - set(plain.state_dict()) == {
        name for name in state if name.startswith("resizer.")
    }


def trained_head(dataset: Dataset, model: mobilenet.Classifier) -> None:
    """Fits the linear head of a model to pictures of 224 px, in closed form."""
    train = dataset.split("train")
    features = pooled(model, train.gather(np.arange(len(train))))
    targets = functional.one_hot(torch.from_numpy(train.labels_N), 4).float() - 0.25
    ridge = features.T @ features + 50.0 * torch.eye(features.shape[1])
    with torch.no_grad():
        layer = model.head[-1]
        layer.weight.copy_(10 * torch.linalg.solve(ridge, features.T @ targets).T)
        layer.bias.zero_()


@torch.no_grad()
def pooled(model: mobilenet.Classifier, pixels: np.ndarray) -> torch.Tensor:
    before = export.Served(model).before
    parts = [
        model.features(before(torch.from_numpy(pixels[start : start + 64]))).mean((2, 3))
        for start in range(0, len(pixels), 64)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_step_0_equals_the_baseline_of_224_px(
    real_pictures: Path, real_weights: Path, tmp_path: Path, kind: str
) -> None:
    raw = tmp_path / "raw"
    for folder in sorted(real_pictures.iterdir()):
        (raw / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:24]:
            (raw / folder.name / file.name).symlink_to(file)
    planned = plan([raw], PrepareSettings(), map_here)
    dataset = apply(planned, tmp_path / "d", map_here, bins=True)[0]
    config = ModelConfig(flip_test=False, resizer=kind)
    model = mobilenet.build(config, 4, 0, weights.load(str(real_weights)).state()).eval()
    trained_head(dataset, model)
    served = export.Served(model).eval()
    squashed, own = dataset.split("train"), dataset.at_bins().split("train")
    assert set(own.sides_N) == {448}
    answers = []
    with torch.no_grad():
        for split in (squashed, own):
            answers.append(served(torch.from_numpy(split.gather(np.arange(len(split))))).numpy())
    differences = np.abs(answers[0] - answers[1]).max(axis=1)
    assert answers[0].max(axis=1).mean() > 0.5  # It has learnt something to differ in.
    assert differences.mean() < 0.02 and differences.max() < 0.15
    assert (answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean() > 0.97


@pytest.mark.parametrize(("kind", "flip"), [("stack", False), ("residual", True)])
def test_one_onnx_graph_answers_for_all_sizes(tmp_path: Path, kind: str, flip: bool) -> None:
    config = ModelConfig(resizer=kind, flip_test=flip)
    model = mobilenet.build(config, 4, 0, None)
    make_lively(model)
    export.to_onnx(model.eval(), tmp_path / "m.onnx", 224, {"classes": "[]"})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert "3584" in session.get_modelmeta().custom_metadata_map["sides_px"]
    served = export.Served(model).eval()
    answers = []
    for side in (224, *STACKS):
        count = 1 if side > 900 else 3
        pixels = np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)
        with torch.no_grad():
            expected = served(torch.from_numpy(pixels)).numpy()
        (found,) = session.run(None, {"pixels": pixels})
        assert found.shape == (count, 4) and np.abs(found - expected).max() < 5e-4, side
        answers.append(found[0])
    assert np.std(answers, axis=0).max() > 1e-3  # Each size has a resizer of its own.
