"""What a person's review changes in a model's accuracy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drone.adapters import mlflow_tracking as tracking
from drone.adapters.evaluation_run import _by_labels, _check_unseen
from drone.data.dataset import MANIFEST_FILE, Dataset, open_dataset
from drone.errors import RunError
from drone.evaluation.asking import quietly
from drone.evaluation.metrics import Answers, share


class Counting:
    """Answers by the colour of a picture, and knows how many it was asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def predict_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked += len(pixels_NHWC)
        brightness_N = pixels_NHWC.astype(np.float32).sum(axis=(1, 2, 3)) % 97
        return np.cos(np.outer(brightness_N, np.arange(1, 5)))


def reviewed(dataset: Dataset, folder: Path, dropped: int, relabelled: int) -> Dataset:
    """The data set after a person dropped and relabelled the first of its test pictures."""
    shutil.copytree(dataset.folder, folder)
    frame = dataset.manifest.copy()
    rows = dataset.rows("test").index
    frame.loc[rows[:dropped], "kept"] = False
    chosen = rows[dropped : dropped + relabelled]
    frame.loc[chosen, "class_name"] = np.roll(frame.loc[chosen, "given_class"], 1)
    frame.to_parquet(folder / MANIFEST_FILE, index=False)
    return open_dataset(folder)


@pytest.mark.parametrize(("dropped", "relabelled"), [(0, 0), (0, 9), (4, 0), (4, 9)])
def test_only_what_was_dropped_is_asked_about_again(
    dataset: Dataset, tmp_path: Path, dropped: int, relabelled: int
) -> None:
    after = reviewed(dataset, tmp_path / "set", dropped, relabelled)
    test, model = after.split("test"), Counting()
    probs_NK = model.predict_pixels(test.gather(np.arange(len(test))))
    answers = Answers(test.paths, test.labels_N, probs_NK, after.classes)
    model.asked = 0
    found = _by_labels(model, test, answers, after, quietly)
    assert model.asked == dropped
    given, touched_N = after.as_given("test")
    assert touched_N.any() == bool(dropped + relabelled)
    if not touched_N.any():
        assert found == {}
        return
    naive_NK = model.predict_pixels(given.gather(np.arange(len(given))))
    right_N = naive_NK.argmax(axis=1) == given.labels_N
    assert found["raw"] == share(right_N)
    assert found["cleaned"] == share(right_N[~touched_N])
    assert found["relabelled"] == share(answers.predicted_N == answers.labels_N)


def test_a_model_is_not_asked_about_what_it_learnt(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dataset.manifest.loc[dataset.manifest["kept"], ["md5", "split"]].copy()
    monkeypatch.setattr(tracking, "pictures_of", lambda _: seen)
    _check_unseen(dataset, "1", "mine", "do so")
    rows = dataset.rows("test").index
    seen.loc[rows[:3], "split"] = ["train", "train", "validation"]
    with pytest.raises(RunError, match="mine was trained or chosen on 3 of the test .*; do so"):
        _check_unseen(dataset, "1", "mine", "do so")
