from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import RunError
from drone.evaluation import parity
from drone.evaluation.limits import MAX_PROBABILITY_DIFFERENCE, Limits
from drone.model import export, mobilenet
from drone.model.config import ModelConfig
from drone.serving.predictor import Predictor, class_metadata


def test_an_export_agrees_with_its_model_and_not_with_another(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = ModelConfig(test_time_flip=False)
    model = mobilenet.build(config, len(dataset.classes), 0, None).eval()
    metadata = {
        **class_metadata(dataset.classes),
        "preprocessing": dataset.preprocessing.to_json(),
    }
    export.to_onnx(model, tmp_path / "m.onnx", dataset.preprocessing.side_px, metadata)
    predictor, split = Predictor(tmp_path / "m.onnx"), dataset.split("validation")
    positions = parity.sample_of_each_side(split, num_images=5)
    assert list(positions) == [0, 1, 2, 3, 4]
    sample = parity.measure(model, predictor, split, positions)
    assert sample.num_images == 5
    parity.check(parity.measure(model, predictor, split))
    with torch.no_grad():
        model.head[-1].bias += torch.arange(len(dataset.classes))
    changed = parity.measure(model, predictor, split)
    assert changed.num_images == len(split) and changed.max_difference > 0.1
    with pytest.raises(RunError, match=rf"parity check on {len(split)} images.*train the model"):
        parity.check(changed)


def test_what_is_checked() -> None:
    good = parity.Parity(num_images=9, max_difference=1e-6, top1_agreement=1.0)
    parity.check(good)
    with pytest.raises(RunError, match=r"by up to 2\.0e-03 \(limit 1e-03\)"):
        parity.check(replace(good, max_difference=2e-3), require_top1=False)
    flipped = replace(good, top1_agreement=8 / 9)
    with pytest.raises(RunError, match=r"the top-1 class agrees for 88\.89%"):
        parity.check(flipped)
    parity.check(flipped, require_top1=False)
    assert Limits().max_onnx_difference == MAX_PROBABILITY_DIFFERENCE


def test_the_sample_takes_some_of_each_side(dataset: Dataset) -> None:
    class Split:
        sides_N = np.repeat([224, 3584, 448], [30, 3, 20])

    # One image of 3584 px fills a batch.
    assert list(parity.sample_of_each_side(Split())) == [*range(16), *range(33, 49), 30]
