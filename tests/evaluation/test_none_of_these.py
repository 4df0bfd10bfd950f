"""The known score: how it is fitted, and how an evaluation describes it."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from drone.data.augment_config import AugmentConfig
from drone.data.dataset import Dataset
from drone.data.images import Negatives
from drone.evaluation import known_fit
from drone.evaluation.known_fit import fit_known_score
from drone.evaluation.metrics import wilson
from drone.evaluation.none_of_these import score_known
from drone.model import mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.model.export import Served


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> mobilenet.Classifier:
    """A model of random weights whose features differ from image to image."""
    model = mobilenet.build(ModelConfig(test_time_flip=False), len(dataset.classes), 0, None).eval()
    train = dataset.split("train")
    pixels = torch.from_numpy(train.gather(np.arange(min(len(train), 64))))
    estimate_statistics(model.features, [Served(model).normalise(pixels)])
    return model


def known(model: mobilenet.Classifier, dataset: Dataset, pixels_NHWC: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        features_NF = Served(model).eval().features(torch.from_numpy(pixels_NHWC))
        return fit_known_score(model, dataset)(features_NF).numpy()


def test_most_validation_images_are_known(model: mobilenet.Classifier, dataset: Dataset) -> None:
    validation = dataset.split("validation")
    known_N = known(model, dataset, validation.gather(np.arange(len(validation))))
    assert (known_N >= 0.5).mean() == pytest.approx(0.95, abs=1 / len(validation))
    assert np.median(known_N) == pytest.approx(0.9, abs=0.05)


def test_objects_far_away_are_known_to_a_model_that_was_trained_on_them(
    model: mobilenet.Classifier, dataset: Dataset
) -> None:
    augment = AugmentConfig(distance_p=0.5, distance_min=20 / 224, distance_max=60 / 224)
    validation = dataset.split("validation")
    positions = np.arange(len(validation))
    score, plain = (fit_known_score(model, dataset, how) for how in (augment, None))
    for widths in ((1.0, 1.0), (1.2, 2.5)):
        views = known_fit._far_away(augment, widths, validation, positions)
        with torch.no_grad():
            features_NF = Served(model).eval().features(torch.from_numpy(views))
            # Of each kind of views, and not only of all together.
            assert (score(features_NF) < 0.5).float().mean() <= 0.05 + 1 / len(validation)
            # Similarity to a mean of their own.
            nearest, nearest_plain = (fit.sums(features_NF).mean() for fit in (score, plain))
            assert nearest > nearest_plain + 0.01


def test_a_wider_view_has_the_image_in_its_middle() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    wide = known_fit._widened(image, 2.0)
    assert wide.shape == image.shape
    assert np.array_equal(wide[16:48, 16:48], image[::2, ::2])
    assert np.array_equal(wide[16:48, 15], wide[16:48, 16])
    assert np.array_equal(known_fit._widened(image, 1.0), image)


def test_noise_is_less_known_than_images(model: mobilenet.Classifier, dataset: Dataset) -> None:
    side = dataset.preprocessing.side_px
    noise = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    assert (known(model, dataset, noise) < 0.5).all()


def test_negatives_lower_the_score_of_their_like(
    model: mobilenet.Classifier, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As negatives serve mirrored images of one class: near to the classes, but not trained on.
    test = dataset.split("test")
    chosen_M = np.flatnonzero(test.labels_N == 1)
    pixels_MHWC = test.gather(chosen_M)
    plain_M = known(model, dataset, pixels_MHWC)
    negatives = Negatives(
        name="train",
        paths=tuple(test.paths[position] for position in chosen_M),
        keys_N=test.keys_N[chosen_M],
        rows_N=test.rows_N[chosen_M],
        store=test.store,
        kinds_N=np.array(["kind"] * len(chosen_M)),
    )
    monkeypatch.setattr(Dataset, "negatives", lambda *_: negatives)
    assert known(model, dataset, pixels_MHWC).mean() < plain_M.mean() - 0.3


def test_scores_by_kind() -> None:
    known_N = np.linspace(0.5, 1, 101, dtype=np.float32)
    scores = score_known(known_N, 0.6, np.float32([0.1, 0.55, 0.75, 2.0]), ["a", "a", "b", "b"])
    assert scores.accepted.value == pytest.approx(81 / 101, abs=0.01)
    every, a, b = scores.kinds
    assert [kind.kind for kind in scores.kinds] == ["all", "a", "b"]
    assert every.auroc.value == pytest.approx((a.auroc.value + b.auroc.value) / 2)
    assert a.auroc.value == pytest.approx((1 + 0.9) / 2, abs=0.01)
    # 95 % of the images of classes reach 0.525.
    assert a.false_positives.value == 0.5 and a.accepted.value == 0
    assert b.false_positives.value == b.accepted.value == 1
    assert a.auroc.low < a.auroc.value < a.auroc.high <= 1
    assert "50.0% of 4 negatives" in scores.sentence


def test_without_negatives_only_the_images_of_classes_count() -> None:
    scores = score_known(np.float32([0.4, 0.9]), 0.5, np.float32([]), [])
    assert scores.accepted.value == 0.5 and scores.kinds == ()
    assert "no negatives" in scores.sentence


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 7), (5235, 5828)])
def test_the_interval_of_a_proportion(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high))
