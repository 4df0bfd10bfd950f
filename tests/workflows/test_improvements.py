"""What a search says of more images and cleaner labels."""

import io
from dataclasses import replace

import pytest
import torch
from torchvision.models import mobilenet_v2

from drone.data.dataset import Dataset
from drone.model.weights import Weights
from drone.workflows import improvements
from drone.workflows.display import SILENT


@pytest.fixture
def weights() -> Weights:
    """Weights that count as pretrained, whatever they are worth."""
    content = io.BytesIO()
    torch.manual_seed(0)
    torch.save(mobilenet_v2().state_dict(), content)
    return Weights("backbone.pth", content.getvalue())


def test_it_speaks_of_every_class(dataset: Dataset, weights: Weights) -> None:
    found = improvements.estimate(dataset, weights, SILENT)
    assert found.curve is not None
    text = "\n".join(found.sentences)
    assert all(name in text for name in dataset.classes)


def test_it_says_nothing_of_random_features_or_too_many_images(
    dataset: Dataset, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_weights = Weights("none", b"")
    assert improvements.estimate(dataset, random_weights, SILENT).sentences == ()
    monkeypatch.setattr(improvements, "_MAX_IMAGES", 3)
    assert improvements.estimate(dataset, weights, SILENT).curve is None


def test_too_few_images_are_no_error(dataset: Dataset, weights: Weights) -> None:
    few = replace(dataset)
    manifest = dataset.manifest
    first = manifest[manifest["kept"]].groupby("class_name").head(2).index
    few.__dict__["manifest"] = manifest.assign(kept=manifest.index.isin(first))
    found = improvements.estimate(few, weights, SILENT)
    assert found.curve is None and "at least 5 different images" in found.sentences[0]
