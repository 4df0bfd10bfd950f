import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drone.data.bins import BIN_SIDES_PX
from drone.errors import ImageError, RunError
from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.serving import predictor as predicting
from drone.serving import preprocess
from drone.serving.batching import BatchingPredictor
from drone.serving.budget import Budget
from drone.serving.predictor import Predictor
from drone.serving.preprocess import to_pixels
from tests.conftest import ROOT


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 90, 3), np.uint8)
    return saved(Image.fromarray(pixels))


def saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_answers_as_torch_does(
    model: mobilenet.Classifier, exported: Path, count: int
) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = export.Served(model)(torch.from_numpy(pixels)).numpy()
    found = Predictor(exported).predict_pixels(pixels)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_the_mirror_image_gets_the_same_answer(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    predictor = Predictor(exported)
    mirrored = predictor.predict_pixels(np.ascontiguousarray(pixels[:, :, ::-1]))
    np.testing.assert_allclose(predictor.predict_pixels(pixels), mirrored, atol=1e-5)


def test_a_prediction(exported: Path) -> None:
    predictor = Predictor(exported, threads=1)
    found = predictor.predict(png(1))
    assert list(found.probabilities) == list(CLASSES)
    assert (
        found.label
        == CLASSES[found.index]
        == max(found.probabilities, key=found.probabilities.__getitem__)
    )
    assert found.drone == pytest.approx(1 - found.probabilities["Flying Birds"])
    assert predictor.metadata["version"] == "7"
    assert predictor.facts["sides_px"] == []
    with pytest.raises(ImageError):
        predictor.predict(b"no picture")


def test_threads_share_a_predictor(exported: Path) -> None:
    pictures = [png(seed) for seed in range(12)]
    alone = [Predictor(exported).predict(picture).probabilities for picture in pictures]
    shared = Predictor(exported)
    with ThreadPoolExecutor(6) as pool:
        together = [found.probabilities for found in pool.map(shared.predict, pictures)]
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_only_so_many_pixels_are_decoded_at_a_time(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "PIXELS_AT_A_TIME", 1_000_000)
    predictor, decode = Predictor(exported), preprocess.load
    lock, held, seen = threading.Lock(), [], []

    def counted(header: Image.Image) -> Image.Image:
        pixels = header.width * header.height
        with lock:
            held.append(pixels)
            seen.append((len(held), sum(held)))
        time.sleep(0.01)
        try:
            return decode(header)
        finally:
            with lock:
                held.remove(pixels)

    monkeypatch.setattr(preprocess, "load", counted)
    blank = {side: saved(Image.new("1", (side, side))) for side in (300, 700, 900, 1500)}
    # One that cannot be decoded gives its share back too.
    pictures = [*blank.values(), blank[900][:-30]] * 6

    def answered(picture: bytes) -> bool:
        try:
            return bool(predictor.predict(picture).label)
        except ImageError:
            return False

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answered, pictures))
    assert answers == [True, True, True, True, False] * 6
    assert max(count for count, _ in seen) > 1
    assert all(count == 1 or pixels <= 1_000_000 for count, pixels in seen)


def test_who_asks_first_for_a_share_gets_it_first() -> None:
    budget, order = Budget(10), []

    def take(size: int) -> None:
        with budget.share(size):
            order.append(size)

    with budget.share(8):
        threads = []
        for size in (99, 1, 2):  # The small ones would fit beside the one that is there.
            threads.append(threading.Thread(target=take, args=(size,)))
            threads[-1].start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order[0] == 99 and sorted(order) == [1, 2, 99]


def test_files_that_are_no_model(tmp_path: Path, exported: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"bad.onnx is not a model that can be loaded"):
        Predictor(bad).predict(png(0))


def test_serving_needs_no_training_library() -> None:
    code = (
        "import sys, drone.serving.predictor; "
        "print([name for name in ('torch', 'mlflow', 'ray', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_questions_at_the_same_time_are_answered_as_one_by_one(exported: Path) -> None:
    alone, together = Predictor(exported), BatchingPredictor(exported, engines=2, most=4)
    pictures = [png(seed) for seed in range(40)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(together.predict, pictures))
    for picture, answer in zip(pictures, answers, strict=True):
        expected = alone.predict(picture)
        assert answer.label == expected.label
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    # A question that the network cannot answer fails alone in its batch or with it, never hangs.
    with pytest.raises(Exception, match="(?i)dim|shape"):
        together.predict_pixels(np.zeros((1, 9, 9, 3), np.uint8)[:, :0])
    assert together.predict(pictures[0]).label == answers[0].label


def test_a_model_of_mixed_resolutions_takes_a_picture_at_its_own_size(
    mixed_model: Path, mixed_raw: Path
) -> None:
    predictor = Predictor(mixed_model)
    assert predictor.facts["sides_px"] == list(predictor.sides_px) == list(BIN_SIDES_PX)
    files = sorted(mixed_raw.rglob("*.png"))
    alone, sides = [], set()
    for file in files:
        pixels = to_pixels(file.read_bytes(), predictor.preprocessing, predictor.sides_px)
        sides.add(len(pixels))
        alone.append(predictor.predict_pixels(pixels[None])[0])
    assert sides == {224, 448, 672, 896} and np.std(alone, axis=0).max() > 0.01
    together = BatchingPredictor(mixed_model, engines=1, most=4)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: together.predict(file.read_bytes()), files))
    for expected_K, answer in zip(alone, answers, strict=True):
        np.testing.assert_allclose(list(answer.probabilities.values()), expected_K, atol=1e-5)
    with pytest.raises(ValueError, match="not 300"):
        predictor.predict_pixels(np.zeros((1, 300, 300, 3), np.uint8))
