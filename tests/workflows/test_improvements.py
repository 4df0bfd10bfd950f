"""What a search says of more images and cleaner labels."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
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


def test_it_says_why_it_estimates_nothing(
    dataset: Dataset, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = improvements.estimate(dataset, Weights("none", b""), SILENT)
    assert nothing.curve is None and "the weights are random" in nothing.sentences[0]
    monkeypatch.setattr(improvements, "_MAX_IMAGES", 3)
    too_many = improvements.estimate(dataset, weights, SILENT)
    assert too_many.curve is None and "python ray_jobs/review.py" in too_many.sentences[0]


def test_it_does_not_read_test(
    dataset: Dataset, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    pixels = Dataset.pixels

    def remember(self: Dataset, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        read.update(rows_N.tolist())
        return pixels(self, rows_N)

    monkeypatch.setattr(Dataset, "pixels", remember)
    improvements.estimate(dataset, weights, SILENT)
    assert read == set(dataset.development().rows_N.tolist())
    assert not read & set(dataset.split("test").rows_N.tolist())


def test_too_few_images_are_no_error(dataset: Dataset, weights: Weights) -> None:
    few = replace(dataset)
    manifest = dataset.manifest
    first = manifest[manifest["kept"]].groupby("class_name").head(2).index
    few.__dict__["manifest"] = manifest.assign(kept=manifest.index.isin(first))
    found = improvements.estimate(few, weights, SILENT)
    assert found.curve is None and "at least 5 different images" in found.sentences[0]
