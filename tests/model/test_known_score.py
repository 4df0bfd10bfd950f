"""The known score within the network and within the exported model."""

import numpy as np
import pytest
import torch

from drone.labels import CLASSES, NONE
from drone.model import export
from drone.model.known_score import KnownScore, accepting_all
from drone.serving.predictor import Predictor, class_metadata
from drone.serving.preprocess import Preprocessing
from tests.serving.conftest import model as model

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_similarity_to_the_nearest_class_and_to_no_negative() -> None:
    means_KF, negatives_F = torch.eye(3)[:2], torch.tensor([0.0, -0.5, 0.0])
    known = KnownScore(means_KF, negatives_F, scale=2.0, offset=0.25)
    features_NF = torch.tensor([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]])
    assert known.sums(features_NF).tolist() == pytest.approx([1.0, 0.5, 0.0])
    expected = torch.sigmoid(torch.tensor([1.5, 0.5, -0.5])).tolist()
    assert known(features_NF).tolist() == pytest.approx(expected)


def test_a_model_that_nothing_is_known_of_accepts_all() -> None:
    assert (accepting_all(8)(torch.randn(100, 8)) > 0.99).all()


@pytest.fixture(scope="module")
def fitted(model: export.Classifier) -> KnownScore:
    """A score that knows one half of the images."""
    generator = torch.Generator().manual_seed(0)
    means_KF = torch.nn.functional.normalize(torch.rand(4, 1280, generator=generator), dim=1)
    negatives_F = 0.01 * torch.randn(1280, generator=generator)
    known = KnownScore(means_KF, negatives_F, scale=1.0, offset=0.0)
    with torch.no_grad():
        sums_N = known.sums(export.Served(model).features(torch.from_numpy(PIXELS)))
    return KnownScore(means_KF, negatives_F, 1 / float(sums_N.std()), float(sums_N.median()))


@pytest.fixture(scope="module")
def predictor(
    model: export.Classifier, fitted: KnownScore, tmp_path_factory: pytest.TempPathFactory
) -> Predictor:
    target = tmp_path_factory.mktemp("known") / "model.onnx"
    metadata = {
        **class_metadata(CLASSES),
        "preprocessing": Preprocessing(side_px=64).to_json(),
        "known_above": "0.5",
    }
    export.to_onnx(model, target, 64, metadata, fitted)
    return Predictor(target)


def test_the_exported_model_gives_the_same_score(
    model: export.Classifier, fitted: KnownScore, predictor: Predictor
) -> None:
    with torch.no_grad():
        expected = fitted(export.Served(model).features(torch.from_numpy(PIXELS)))
    outputs = predictor.predict_outputs(PIXELS)
    np.testing.assert_allclose(outputs.known_N, expected.numpy(), atol=1e-4)


def test_the_label_of_an_unknown_image_is_none_of_these(predictor: Predictor) -> None:
    outputs = predictor.predict_outputs(PIXELS)
    predictions = predictor.to_predictions(outputs)
    labels = {prediction.label == NONE for prediction in predictions}
    assert labels == {True, False}
    for prediction, known in zip(predictions, outputs.known_N, strict=True):
        assert prediction.known == pytest.approx(float(known))
        assert (prediction.label == NONE) == (known < 0.5) == (prediction.kind is None)
        # The probabilities stay those of the classes.
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.confidence == prediction.probabilities[CLASSES[prediction.index]]
