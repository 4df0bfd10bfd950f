"""Predictions of many files from Python."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drone.labels import CLASSES
from drone.serving.many import map_ahead
from drone.serving.predictor import Predictor
from drone.synth.drawing import draw


def test_each_file_gets_the_answer_that_it_gets_alone(exported: Path, tmp_path: Path) -> None:
    predictor = Predictor(exported, threads=1)
    images = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(images):
        name = CLASSES[number % len(CLASSES)]
        draw(name, 90 + number, 80, np.random.default_rng(number)).save(path)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "note.jpg").write_text("not an image")
    files = [*images[:6], tmp_path / "empty.jpg", tmp_path / "absent.jpg", *images[6:]]
    results = list(predictor.predict_many([*files, str(tmp_path / "note.jpg")], threads=3))
    assert [result.path for result in results] == [*files, tmp_path / "note.jpg"]
    by_path = {result.path: result for result in results}
    for path in images:
        assert by_path[path].prediction == predictor.predict(path.read_bytes())
    reasons = {result.path.name: result.reason for result in results if result.reason}
    assert reasons == {
        "empty.jpg": "empty",
        "absent.jpg": "unreadable",
        "note.jpg": "non-media",
    }
    assert "No such file" in by_path[tmp_path / "absent.jpg"].detail


def test_endless_items_are_taken_as_fast_as_results_are() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number * 2, numbers(), threads=2)
    assert list(itertools.islice(results, 50)) == list(range(0, 100, 2))
    assert len(taken) < 70
    before = threading.active_count()
    results.close()
    assert threading.active_count() < before


def test_an_error_of_the_function_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 // number, [1, 0, 2]))
