"""How a review changes a model's accuracy, and which test images a model may not be scored on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drone.data.dataset import MANIFEST_FILE, Dataset, open_dataset
from drone.errors import RunError
from drone.evaluation.batch_inference import no_progress
from drone.evaluation.metrics import Predictions, proportion
from drone.labels import CLASSES
from drone.serving.roles import decide
from drone.tracking import artifacts
from drone.workflows.evaluated_images import _accuracy_by_labels, _check_unseen
from tests.data.preparing import rewrite


class CountingPredictor:
    """Predicts by the brightness of an image, and counts the images it has predicted."""

    def __init__(self) -> None:
        self.num_predicted = 0

    def predict_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.num_predicted += len(pixels_NHWC)
        brightness_N = pixels_NHWC.astype(np.float32).sum(axis=(1, 2, 3)) % 97
        return np.cos(np.outer(brightness_N, np.arange(1, 5)))


def review(dataset: Dataset, folder: Path, dropped: int, relabelled: int) -> Dataset:
    """The data set after a review that dropped and relabelled the first test images."""
    shutil.copytree(dataset.folder, folder)
    manifest = dataset.manifest.copy()
    rows = dataset.rows("test").index
    manifest.loc[rows[:dropped], "kept"] = False
    chosen = rows[dropped : dropped + relabelled]
    manifest.loc[chosen, "class_name"] = np.roll(manifest.loc[chosen, "given_class"], 1)
    manifest.to_parquet(folder / MANIFEST_FILE, index=False)
    rewrite(folder)
    return open_dataset(folder)


@pytest.mark.parametrize(("dropped", "relabelled"), [(0, 0), (0, 9), (4, 0), (4, 9)])
def test_only_dropped_images_are_predicted_again(
    dataset: Dataset, tmp_path: Path, dropped: int, relabelled: int
) -> None:
    reviewed = review(dataset, tmp_path / "set", dropped, relabelled)
    test, model = reviewed.split("test"), CountingPredictor()
    probs_NK = model.predict_pixels(test.gather(np.arange(len(test))))
    known_N = np.ones(len(test), np.float32)
    predictions = Predictions(test.paths, test.labels_N, probs_NK, reviewed.classes, known_N)
    model.num_predicted = 0
    accuracies = _accuracy_by_labels(model, test, predictions, reviewed, no_progress)
    assert model.num_predicted == dropped
    original, changed_N = reviewed.split_before_review("test")
    assert changed_N.any() == bool(dropped + relabelled)
    if not changed_N.any():
        assert accuracies == {}
        return
    naive_NK = model.predict_pixels(original.gather(np.arange(len(original))))
    right_N = decide(naive_NK, CLASSES) == original.labels_N
    assert accuracies["raw"] == proportion(right_N)
    assert accuracies["cleaned"] == proportion(right_N[~changed_N])
    assert accuracies["relabelled"] == proportion(predictions.predicted_N == predictions.labels_N)


def test_a_model_is_not_scored_on_images_it_was_trained_on(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = dataset.manifest.loc[dataset.manifest["kept"], ["content", "split"]].copy()
    monkeypatch.setattr(artifacts, "images_of", lambda _: images)
    _check_unseen(dataset, "1", "my-run", "do so")
    rows = dataset.rows("test").index
    images.loc[rows[:3], "split"] = ["train", "train", "validation"]
    with pytest.raises(
        RunError, match=r"Cannot evaluate my-run on .* selected on 3 of the 18 test .*; do so"
    ):
        _check_unseen(dataset, "1", "my-run", "do so")
