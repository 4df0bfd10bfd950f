"""The threshold of an exported model's alarm: where it comes from, and what refuses it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drone.data.dataset import Dataset
from drone.errors import ConfigError
from drone.evaluation.known_fit import fit_known_score
from drone.labels import ClassSet
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.presets import get_preset
from drone.serving.predictor import Predictor, class_metadata
from drone.training.config import CalibrationConfig
from drone.workflows import alarms
from drone.workflows.export import _quantize
from drone.workflows.requests import ExportRequest
from tests.conftest import RunJob
from tests.faults.tracked_model import TrackedModel, call, stored, tracked, write_linear_of

__all__ = ["call", "stored", "tracked"]  # Fixtures.

REQUEST = ExportRequest(run="run", out=Path("out"), alarm_recall=0.9)


def metadata_of(dataset: Dataset) -> dict[str, str]:
    preprocessing = dataset.preprocessing.to_json()
    return {**class_metadata(dataset.classes), "preprocessing": preprocessing}


@pytest.fixture
def model(dataset: Dataset, tmp_path: Path) -> Path:
    """A model that has no alarm yet."""
    write_linear_of(tmp_path / "model.onnx", dataset)
    return tmp_path / "model.onnx"


@pytest.fixture
def network(dataset: Dataset, tmp_path: Path) -> Path:
    """A network of random weights to which some validation images are none of the classes."""
    network = mobilenet.build(ModelConfig(test_time_flip=False), len(dataset.classes), 0, None)
    train = dataset.split("train")
    pixels = torch.from_numpy(train.gather(np.arange(min(len(train), 64))))
    # With the initial statistics every image would have the same features.
    estimate_statistics(network.features, [export.Served(network).normalise(pixels)])
    network.eval()
    target, side_px = tmp_path / "network.onnx", dataset.preprocessing.side_px
    known = fit_known_score(network, dataset)
    export.to_onnx(network, target, side_px, metadata_of(dataset), known)
    return target


def share_of_drones(model: Path, dataset: Dataset, split: str) -> float:
    """The drones of a split that raise an alarm, each predicted by itself."""
    images, predictor = dataset.split(split), Predictor(model)
    bird = dataset.classes.indices("bird")[0]
    return float(
        np.mean(
            [
                predictor.predict_one(images.gather(np.array([position]))[0]).alarm
                for position in np.flatnonzero(images.labels_N != bird)
            ]
        )
    )


@pytest.mark.parametrize("recall", [0.5, 0.9, 1.0])
def test_the_threshold_comes_from_validation_images(
    model: Path, dataset: Dataset, recall: float
) -> None:
    alarms.add_threshold(model, dataset, recall)
    num_drones = (dataset.split("validation").labels_N != 0).sum()
    found = share_of_drones(model, dataset, "validation")
    assert recall <= found < recall + 1 / num_drones + 1e-9
    on_test = alarms.test_alarms(Predictor(model), dataset)
    assert on_test is not None
    assert on_test.threshold == Predictor(model).info.alarm_above
    assert on_test.drones.value == share_of_drones(model, dataset, "test")


def test_a_recall_that_none_of_these_makes_impossible(network: Path, dataset: Dataset) -> None:
    validation = dataset.split("validation")
    outputs = Predictor(network).predict_outputs(validation.gather(np.arange(len(validation))))
    assert ((outputs.known_N < 0.5) & (validation.labels_N > 0)).any()
    with pytest.raises(ConfigError, match=r"--alarm-recall 1 cannot be reached: only \d\d"):
        alarms.add_threshold(network, dataset, 1.0)
    assert Predictor(network).info.alarm_above is None
    alarms.add_threshold(network, dataset, 0.5)
    assert Predictor(network).info.alarm_above is not None


def test_as_many_drones_raise_an_alarm_in_8_bits(
    network: Path, dataset: Dataset, tmp_path: Path
) -> None:
    alarms.add_threshold(network, dataset, 0.6)
    small = tmp_path / "model.int8.onnx"
    _quantize(network, small, dataset)
    # Other probabilities, so another threshold.
    assert Predictor(small).info.alarm_above != Predictor(network).info.alarm_above
    whole, quantized = (share_of_drones(file, dataset, "validation") for file in (network, small))
    assert whole <= quantized <= whole + 0.1


def test_a_model_without_birds_has_no_alarm(model: Path) -> None:
    info = replace(Predictor(model).info, classes=ClassSet.of(("a", "b")))
    with pytest.raises(ConfigError, match=r"An alarm needs classes that are drones .* are a, b"):
        alarms.check_request(REQUEST, get_preset("smoke"), info)
    alarms.check_request(replace(REQUEST, alarm_recall=None), get_preset("smoke"), info)


def test_a_model_that_was_trained_on_validation_images_needs_a_threshold(model: Path) -> None:
    config = replace(
        get_preset("smoke"),
        train_on="train+validation",
        calibration=CalibrationConfig(temperature=1.0, unsure_below=0.5),
    )
    info = Predictor(model).info
    with pytest.raises(ConfigError, match="set it by --alarm-above"):
        alarms.check_request(REQUEST, config, info)
    given = replace(REQUEST, alarm_recall=None, alarm_above=0.7)
    alarms.check_request(given, config, info)


def test_an_export_with_an_alarm(call: RunJob, tracked: TrackedModel) -> None:
    args = ["export", "--run", "linear", "--out", "out", "--unchecked", "--json"]
    plain = call(*args)
    assert plain.code == 0 and plain.result["alarm_above"] is None is plain.result["alarms"]
    done = call(*args, "--alarm-recall", "0.9")
    assert done.code == 0, done.err
    assert done.result["alarm_above"] == done.result["alarms"]["threshold"] < 1
    assert f"Alarm from a drone probability of {done.result['alarm_above']:g}" in done.err
    report = json.loads((tracked.folder / "out" / "export.json").read_text())
    assert report["alarms"] == done.result["alarms"]
    # The model in the store stays without one.
    assert Predictor(tracked.onnx).info.alarm_above is None
    given = call(*args, "--alarm-above", "0.25")
    assert given.result["alarm_above"] == given.result["alarms"]["threshold"] == 0.25
    both = call(*args, "--alarm-above", "0.25", "--alarm-recall", "0.9")
    assert both.code == 2 and "exclude each other" in both.err + both.out
