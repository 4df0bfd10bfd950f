"""Classes of unequal sizes count equally if the user wants it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from drone.data.dataset import Dataset
from drone.errors import ConfigError
from drone.model import mobilenet
from drone.search import space
from drone.search.grammar import parse_changes
from drone.training import class_weights
from drone.training.config import OptimConfig, TrainConfig
from drone.training.context import LocalContext
from drone.training.data import TrainingData
from drone.training.inputs import Inputs
from drone.training.loop import fit
from tests.training.short_runs import short_config

CLASSES = ("a", "b", "c")
COUNTS = np.array([60, 30, 10])
NONE, BALANCED = OptimConfig(), OptimConfig(class_weights="balanced")


def test_weights_are_balanced() -> None:
    weights = class_weights.class_weights(BALANCED, COUNTS)
    assert weights * COUNTS == pytest.approx(100 / 3)
    assert (class_weights.class_weights(NONE, COUNTS) == 1).all()
    assert np.isfinite(class_weights.class_weights(BALANCED, np.array([5, 0]))).all()


def test_what_is_said() -> None:
    assert class_weights.describe(NONE, COUNTS, CLASSES) == "none"
    text = class_weights.describe(BALANCED, COUNTS, CLASSES)
    assert text == "balanced: a 0.556, b 1.11, c 3.33"
    advice = class_weights.advice(NONE, COUNTS, CLASSES)
    assert advice and "a has 60 training images and c 10" in advice
    assert "--class-weights balanced" in advice
    assert class_weights.advice(BALANCED, COUNTS, CLASSES) is None
    assert class_weights.advice(NONE, np.array([19, 10]), CLASSES[:2]) is None


def test_weights_of_a_file() -> None:
    optim = class_weights.with_values(BALANCED, {"c": 4, "a": 0.5}, CLASSES, "w.yaml")
    weights = class_weights.class_weights(optim, COUNTS)
    assert weights / weights[1] == pytest.approx([0.5, 1, 4])
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum())
    assert class_weights.describe(optim, COUNTS, CLASSES).startswith("given: a 0.5, b 1, c 4")
    assert class_weights.advice(optim, COUNTS, CLASSES) is None
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        class_weights.class_weights(optim, COUNTS[:2])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"A": 2}, "w.yaml: 'A' is no class of the data set"),
        ({"a": 0}, "w.yaml: a is 0; it must be a number above 0"),
        ({"a": "2"}, "a is '2'"),
        ({"a": True}, "a is True"),
        ({"a": float("nan")}, "a is nan"),
    ],
)
def test_weights_that_cannot_be(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_weights.with_values(NONE, weights, CLASSES, "w.yaml")


def test_a_search_can_vary_them() -> None:
    changes = parse_changes(["optim.class_weights=none,balanced"], space.DEFAULT)
    _, found = space.resolve_space(TrainConfig(), changes, "--vary")
    assert found["optim.class_weights"].contains("balanced")


def unequal(dataset: Dataset) -> TrainingData:
    """The data of a run in which the last class has a third of its training images."""
    data = TrainingData.of(dataset)
    rare = np.flatnonzero(data.train.labels_N == 3)
    rest = np.setdiff1d(np.arange(len(data.train)), rare[len(rare) // 3 :])
    return replace(data, train_N=data.train_N[rest])


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_the_loss_is_weighted(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    config = short_config(
        epochs=1,
        batch_size=1000,  # All images in one step, since an epoch leaves out an incomplete batch.
        augment={"strength": 0.0},
        model={"unfreeze_depth": 0, "dropout": 0.0},
        # Too low a rate to learn anything: all steps see the starting weights.
        optim={"class_weights": kind, "lr_head": 1e-12, "weight_decay": 0.0},
    )
    data = unequal(dataset)
    model = mobilenet.build(config.model, len(data.classes), config.seed, None)
    (epoch,) = fit(config, data, model, LocalContext(tmp_path))
    inputs = Inputs(config, data, model, torch.device("cpu"), None)
    with torch.no_grad():
        activations = inputs.activations.train(0, np.arange(len(data.train)))
        logits = model.train()(activations, at_cut=True)
    smoothing = config.optim.label_smoothing
    losses = functional.cross_entropy(
        logits, torch.from_numpy(data.train.labels_N), reduction="none", label_smoothing=smoothing
    )
    counts = data.train.counts_K
    weights = len(data.train) / (4 * counts) if kind == "balanced" else np.ones(4)
    expected = (losses.numpy() * weights[data.train.labels_N]).mean()
    assert epoch["metrics"]["train/loss"] == pytest.approx(expected, rel=1e-4)
    assert counts[3] < counts[0] / 2
