"""The predictor: its answers against torch's, its model's metadata, its bounds on concurrency."""

import io
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from drone.data.bins import BIN_SIDES_PX
from drone.errors import ImageError, RunError
from drone.labels import CLASSES, NONE
from drone.model import export, mobilenet
from drone.serving import predictor as predicting
from drone.serving.predictor import Outputs, Predictor, alarm_scores, class_metadata
from drone.serving.preprocess import to_pixels
from drone.serving.roles import decide
from drone.serving.weighted_semaphore import WeightedSemaphore


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 90, 3), np.uint8)
    return saved(Image.fromarray(pixels))


def saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_predicts_as_torch_does(
    model: mobilenet.Classifier, exported: Path, count: int
) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
    with torch.no_grad():
        expected = export.Served(model)(torch.from_numpy(pixels)).numpy()
    probs = Predictor(exported).predict_pixels(pixels)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_the_mirrored_image_gets_the_same_probabilities(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    predictor = Predictor(exported)
    mirrored = predictor.predict_pixels(np.ascontiguousarray(pixels[:, :, ::-1]))
    np.testing.assert_allclose(predictor.predict_pixels(pixels), mirrored, atol=1e-5)


def test_a_prediction(exported: Path) -> None:
    predictor = Predictor(exported, threads=1)
    prediction = predictor.predict(png(1))
    probabilities = prediction.probabilities
    assert list(probabilities) == list(CLASSES)
    assert prediction.label == CLASSES[prediction.index]
    assert prediction.index == decide(np.array([list(probabilities.values())]), CLASSES)[0]
    assert prediction.drone == pytest.approx(1 - probabilities["Flying Birds"])
    with pytest.raises(ImageError):
        predictor.predict(b"no image")


def test_the_evidence_is_for_the_predicted_class(exported: Path) -> None:
    predictor = Predictor(exported, threads=1)
    for seed in range(4):
        prediction = predictor.predict(png(seed), evidence=True)
        assert prediction.evidence is not None
        assert prediction.evidence.class_name == prediction.label
        pixels = predictor.to_pixels(png(seed))[None]
        maps_NKHW = predictor.predict_outputs(pixels, evidence=True).evidence_NKHW
        assert maps_NKHW is not None
        map_HW = maps_NKHW[0, prediction.index]
        expected = np.maximum(map_HW, 0) / map_HW.max()
        np.testing.assert_allclose(prediction.evidence.map, expected, atol=1e-6)
        assert replace(prediction, evidence=None) == predictor.predict(png(seed))


def test_of_none_of_these_the_evidence_is_for_the_most_probable_class(
    exported: Path, tmp_path: Path
) -> None:
    target = tmp_path / "model.onnx"
    shutil.copy(exported, target)
    export.add_metadata(target, {"known_above": "1.0"})
    prediction = Predictor(target).predict(png(1), evidence=True)
    assert prediction.label == NONE and prediction.evidence is not None
    assert prediction.evidence.class_name == CLASSES[prediction.index]


def test_a_model_without_evidence_is_to_be_exported_again(exported: Path, tmp_path: Path) -> None:
    older = onnx.load(exported)
    del older.graph.output[2]
    onnx.save(older, tmp_path / "older.onnx")
    with pytest.raises(RunError, match="known scores and evidence as our models do. Export the"):
        Predictor(tmp_path / "older.onnx").start()


def test_what_a_model_says_about_itself(exported: Path) -> None:
    predictor = Predictor(exported, threads=1)
    info = predictor.info
    assert predictor.metadata["version"] == info.version == "7"
    assert (info.name, info.fingerprint, info.sides_px) == ("", "", ())
    assert (info.temperature, info.unsure_below) == (1.0, 0.0)
    assert info.classes == CLASSES and info.preprocessing.side_px == 64
    values = info.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["classes"] == list(CLASSES) and values["preprocessing"]["side_px"] == 64
    assert predictor.info is info  # Parsed once.


@pytest.mark.parametrize("max_concurrency", [None, 1, 2])
def test_threads_share_a_predictor(exported: Path, max_concurrency: int | None) -> None:
    images = [png(seed) for seed in range(12)]
    alone = [Predictor(exported).predict(image).probabilities for image in images]
    shared = Predictor(exported, threads=1, max_concurrency=max_concurrency)
    with ThreadPoolExecutor(6) as pool:
        together = [prediction.probabilities for prediction in pool.map(shared.predict, images)]
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_only_so_many_inference_calls_run_at_once(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(exported, threads=1, max_concurrency=2)
    predictor.start()
    lock, running, peaks = threading.Lock(), [0], []

    class Session:
        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            with lock:
                running[0] += 1
                peaks.append(running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1
            if not inputs["pixels"].any():
                raise RuntimeError("a failed call frees its slot")
            return [np.full((1, 4), 0.25, np.float32), np.ones(1, np.float32)]

    monkeypatch.setattr(predictor, "_session", Session())
    pixels = [np.full((1, 64, 64, 3), value, np.uint8) for value in (1, 1, 0, 1, 1, 0) * 3]

    def succeeds(pixels_NHWC: np.ndarray) -> bool:
        try:
            return bool(predictor.predict_pixels(pixels_NHWC).any())
        except RuntimeError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(succeeds, pixels)) == 12
    assert max(peaks) == 2


def test_only_so_many_pixels_are_decoded_at_a_time(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_MAX_DECODING_PIXELS", 1_000_000)
    predictor, decode = Predictor(exported), predicting.decode_input
    lock, held, seen = threading.Lock(), [], []

    def counted(image: Image.Image, *settings: object) -> Image.Image:
        pixels = image.width * image.height
        with lock:
            held.append(pixels)
            seen.append((len(held), sum(held)))
        time.sleep(0.01)
        try:
            return decode(image, *settings)
        finally:
            with lock:
                held.remove(pixels)

    monkeypatch.setattr(predicting, "decode_input", counted)
    blank = {side: saved(Image.new("1", (side, side))) for side in (300, 700, 900, 1500)}
    # An image that cannot be decoded releases its weight too.
    images = [*blank.values(), blank[900][:-30]] * 6

    def succeeds(image: bytes) -> bool:
        try:
            return bool(predictor.predict(image).label)
        except ImageError:
            return False

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(succeeds, images))
    assert results == [True, True, True, True, False] * 6
    assert max(count for count, _ in seen) > 1
    assert all(count == 1 or pixels <= 1_000_000 for count, pixels in seen)


def test_a_weighted_semaphore_is_first_come_first_served() -> None:
    semaphore, order = WeightedSemaphore(10), []

    def hold(weight: int) -> None:
        with semaphore.acquire(weight):
            order.append(weight)

    with semaphore.acquire(8):
        threads = []
        for weight in (99, 1, 2):  # The light ones would fit beside the holder.
            threads.append(threading.Thread(target=hold, args=(weight,)))
            threads[-1].start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order[0] == 99 and sorted(order) == [1, 2, 99]


def test_files_that_are_not_a_model(tmp_path: Path, exported: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"bad.onnx is not a model that can be loaded"):
        Predictor(bad).predict(png(0))
    model = onnx.load(exported)
    onnx.helper.set_model_props(model, class_metadata(CLASSES))
    onnx.save(model, bad)
    message = (
        r"bad.onnx has no 'preprocessing' in its metadata. "
        r"Export the model again: python ray_jobs/export.py --run RUN --out FOLDER"
    )
    with pytest.raises(RunError, match=message):
        Predictor(bad).start()


def test_a_multi_resolution_model_takes_each_image_at_its_nearest_side(
    mixed_model: Path, mixed_raw: Path
) -> None:
    predictor = Predictor(mixed_model)
    info = predictor.info
    assert info.to_dict()["sides_px"] == list(info.sides_px) == list(BIN_SIDES_PX)
    files = sorted(mixed_raw.rglob("*.png"))
    alone, sides = [], set()
    for file in files:
        pixels = to_pixels(file.read_bytes(), info.preprocessing, info.sides_px)
        sides.add(len(pixels))
        alone.append(predictor.predict_pixels(pixels[None])[0])
    assert sides == {224, 448, 672, 896} and np.std(alone, axis=0).max() > 0.01
    shared = Predictor(mixed_model, threads=1, max_concurrency=1)
    with ThreadPoolExecutor(16) as pool:
        predictions = list(pool.map(lambda file: shared.predict(file.read_bytes()), files))
    for expected_K, prediction in zip(alone, predictions, strict=True):
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected_K, atol=1e-5)
    with pytest.raises(ValueError, match="not 300"):
        predictor.predict_pixels(np.zeros((1, 300, 300, 3), np.uint8))


def with_metadata(exported: Path, target: Path, **entries: str) -> Predictor:
    shutil.copy(exported, target)
    export.add_metadata(target, entries)
    return Predictor(target, threads=1)


def test_alarms(exported: Path, tmp_path: Path) -> None:
    predictor = with_metadata(exported, tmp_path / "m.onnx", alarm_above="0.75", known_above="0.5")
    # The first two reach the threshold; so does the last one, but it is none of the classes.
    birds = np.float32([0.125, 0.25, 0.375, 0.125])
    probs_NK = np.stack([birds, 1 - birds, 0 * birds, 0 * birds], axis=1)
    outputs = Outputs(probs_NK, np.float32([0.9, 0.5, 0.9, 0.49]))
    predictions = predictor.to_predictions(outputs)
    assert [prediction.alarm for prediction in predictions] == [True, True, False, False]
    assert predictions[3].label == NONE
    # The kind is that of more than one half, whatever the threshold of the alarm.
    assert [prediction.kind for prediction in predictions[:3]] == ["drone"] * 3
    scores_N = alarm_scores(outputs, predictor.info)
    assert scores_N == pytest.approx([0.875, 0.75, 0.625, np.nan], nan_ok=True)
    assert Predictor(exported).to_predictions(outputs)[0].alarm is None


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"alarm_above": "1.5"}, "alarm_above is 1.5; it must be 0 to 1"),
        ({"alarm_above": "nan"}, "alarm_above is nan; it must be 0 to 1"),
        (
            {"alarm_above": "0.5", "roles": '["bird", "bird", "bird", "bird"]'},
            "alarm_above is set, but the classes do not tell drones",
        ),
    ],
)
def test_an_alarm_that_cannot_be(
    exported: Path, tmp_path: Path, entries: dict[str, str], problem: str
) -> None:
    with pytest.raises(RunError, match=problem):
        with_metadata(exported, tmp_path / "model.onnx", **entries).start()
