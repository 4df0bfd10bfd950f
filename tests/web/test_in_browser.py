"""Predictions in the browser, compared with those of drone.serving.predictor."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from drone.serving.roles import decide
from tests.conftest import MadeUp
from tests.web.conftest import Visit, choose, classify, drawings, image_file, submit
from tests.web.site import BUSY, MODEL_INFO, WEB, Reply, Site
from tests.web.test_page import deep
from tests.web.test_page import file as named

pytestmark = pytest.mark.slow

TOLERANCE = 0.02
"""Maximum difference of a probability; decoders of JPEG differ in last bits."""


def apply_temperature(probs: dict[str, float], temperature: float) -> dict[str, float]:
    powers = np.array(list(probs.values())) ** (1 / temperature)
    return dict(zip(probs, (powers / powers.sum()).tolist(), strict=True))


def max_difference(probs: dict[str, float], expected: dict[str, float]) -> float:
    return max(abs(probs[name] - expected[name]) for name in expected)


def test_a_model_of_mixed_resolutions_takes_images_at_their_own_sizes(
    visit: Visit, site: Site, mixed_raw: Path, mixed_model: Path
) -> None:
    predictor = Predictor(mixed_model)
    site.add_model(mixed_model.read_bytes(), {**MODEL_INFO, **predictor.info.to_dict()})
    site.config["api"] = None
    page = visit()
    for file in sorted((mixed_raw / CLASSES[1]).iterdir()):
        expected = predictor.predict(file.read_bytes()).probabilities
        assert max_difference(classify(page, file), expected) < TOLERANCE, file


def test_predictions_match_the_predictor(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), {**small_info, "alarm_above": 0.8})
    site.config["api"] = None
    predictor = Predictor(small_model)
    page = visit()
    # With a single backend there is no choice to show.
    expect(page.locator("#backends")).to_be_hidden()
    expect(page.locator("#model-info")).to_contain_text("Model small 3: Flying Birds")
    files = drawings(made_up)
    assert {file.suffix for file in files} == {".jpg", ".png"} and len(files) >= 24
    labels, differences, alarms = set(), [], set()
    for file in files:
        probs = classify(page, file)
        expected = apply_temperature(predictor.predict(file.read_bytes()).probabilities, 1.7)
        label = CLASSES[decide(np.array([list(expected.values())]), CLASSES)[0]]
        assert set(probs) == set(expected)
        differences.append(max_difference(probs, expected))
        expect(page.get_by_role("heading", level=2)).to_contain_text(label)
        drone = 1 - expected[CLASSES[0]]
        kind = "A drone" if drone > 0.5 else "A bird"
        expect(page.locator("#kind")).to_contain_text(kind)
        assert page.locator("#alarm").is_visible() == (drone >= 0.8)
        alarms.add(drone >= 0.8)
        assert page.locator("#unsure").is_visible() == (expected[label] < 0.45)
        labels.add(label)
    assert max(differences) <= TOLERANCE
    assert alarms == {True, False}
    assert len(labels) >= 3  # The test model tells images apart.
    assert not site.uploads and "model" not in site.requests


def test_an_unknown_image_is_none_of_these(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_info: dict[str, Any]
) -> None:
    # The model knows every image, but not that well.
    site.add_model(small_model.read_bytes(), {**small_info, "known_above": 1.0, "alarm_above": 0.0})
    site.config["api"] = None
    page = visit()
    classify(page, drawings(made_up)[0])
    expect(page.get_by_role("heading", level=2)).to_have_text("None of these")
    expect(page.locator("#alarm")).to_be_hidden()
    known = Predictor(small_model).predict(drawings(made_up)[0].read_bytes()).known
    assert 0.99 < known < 1
    expect(page.locator("#none")).to_contain_text("known score > 99.9 %")


def test_16_bits_are_predicted_where_the_browser_shows_them(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    site.config["api"] = None
    page = visit()
    full = named("full.png", deep(8))
    expected = apply_temperature(Predictor(small_model).predict(full["buffer"]).probabilities, 1.7)
    assert max_difference(classify(page, full), expected) < TOLERANCE
    choose(page, named("dark.png", deep(4)))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("a part of its 16 bits only")


def test_the_model_is_loaded_only_when_selected(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#predicted-by")).to_contain_text("on the service.")
    expect(page.get_by_role("radio", name="The service")).to_be_checked()
    assert not [path for path in site.requests if path.startswith("vendor/") or "onnx" in path]
    page.get_by_role("radio", name="This browser").check()
    submit(page)
    expect(page.locator("#predicted-by")).to_contain_text("in this browser.")
    runtime = [path for path in site.requests if path.startswith("vendor/")]
    assert sorted(runtime) == [
        "vendor/ort-wasm-simd-threaded.wasm",
        "vendor/ort.wasm.bundle.min.mjs",
    ]
    # The choice is saved, and the service gets no further request.
    before = site.requests.count("model")
    page.reload()
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    expect(page.locator("#model-info")).to_contain_text("Model small 3: ")
    choose(page, image_file(2))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert len(site.uploads) == 1 and site.requests.count("model") == before


def test_keyboard_only(visit: Visit, site: Site, small_model: Path, small_info: dict) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    page = visit()
    page.keyboard.press("Tab")
    expect(page.get_by_role("radio", name="The service")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose an image")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(image_file(1))
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="%")).to_be_focused()
    for name in ("Submit", "Remove"):
        page.keyboard.press("Shift+Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.get_by_role("button", name="Choose an image")).to_be_focused()


def test_the_browser_takes_over_from_a_failing_service(
    visit: Visit, site: Site, small_model: Path, small_info: dict
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    site.predict_replies = [BUSY] * 4
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No response after 4 attempts.")
    assert "model/model.onnx" not in site.requests
    page.get_by_role("button", name="Run in this browser").click()
    expect(page.locator("#predicted-by")).to_have_text("Predicted by small 3 in this browser.")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    assert len(site.uploads) == 4


def test_a_plain_folder_needs_no_config(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    """The page finds out that no service responds beside it and runs the model itself."""
    site.add_model(small_model.read_bytes(), small_info)
    site.has_service = False
    page = visit()
    expect(page.get_by_role("status")).to_contain_text("the model runs in this browser")
    expect(page.locator("#backends")).to_be_hidden()
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#predicted-by")).to_contain_text("in this browser.")
    # A cached older model must not run under a new model's info.
    assert {"model/model.json", "model/model.onnx"} <= site.revalidated


def test_retry_after_the_model_failed_to_load(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(b"no model", small_info)
    site.config["api"] = None
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("The model did not start in this browser")
    del site.files["model/model.onnx"]
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("/model/model.onnx cannot be loaded (404)")
    site.add_model(small_model.read_bytes(), small_info)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#result")).to_be_visible()


def test_cancel_while_the_model_loads(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    site.config["api"] = None
    hold_model = """
        const real = fetch;
        const held = new Promise((resolve) => { window.release = resolve; });
        window.fetch = async (url, rest) => {
            if (String(url).endsWith('.onnx')) await held;
            return real(url, rest);
        };
    """
    page = visit(script=hold_model)
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("status")).to_contain_text("Loading the model")
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("window.release()")
    expect(page.locator("#model-info")).not_to_contain_text("oad")
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    submit(page)
    expect(page.locator("#result")).to_be_visible()


def test_switching_the_backend_cancels_the_request(
    visit: Visit, site: Site, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    site.predict_replies = [Reply(503, "", {"Retry-After": "20"})]
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.get_by_role("status")).to_contain_text("in 20 s")
    page.get_by_role("radio", name="This browser").check()
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    submit(page)
    expect(page.locator("#predicted-by")).to_contain_text("in this browser.")


def test_both_backends_get_the_same_pixels(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_info: dict[str, Any]
) -> None:
    """The predictor gives for the upload what the browser predicts by itself."""
    site.add_model(small_model.read_bytes(), small_info)
    site.model_replies = [Reply(200, small_info)]
    page = visit()
    predictor = Predictor(small_model)
    for file in drawings(made_up)[::7]:
        page.get_by_role("radio", name="The service").check()
        classify(page, file)
        expected = apply_temperature(predictor.predict(site.uploads[-1][1]).probabilities, 1.7)
        page.get_by_role("radio", name="This browser").check()
        assert classify(page, file) == pytest.approx(expected, abs=1e-3)


@pytest.mark.real
def test_real_images(
    visit: Visit, site: Site, real_images: Path, record_property: Callable[[str, object], None]
) -> None:
    """A trained model on photographs: differences of JPEG decoders must not change predictions."""
    model = os.environ.get("DRONE_TEST_ONNX")
    if not model:
        pytest.skip("needs DRONE_TEST_ONNX, a trained and exported model")
    predictor = Predictor(Path(model))
    settings = asdict(predictor.info.preprocessing)
    info = {**MODEL_INFO, "classes": list(predictor.info.classes), "preprocessing": settings}
    site.add_model(Path(model).read_bytes(), {**info, "limits": {}})
    site.config["api"] = None
    page = visit()
    count = int(os.environ.get("DRONE_TEST_IMAGES", "40"))
    files = sorted(file for file in real_images.rglob("*") if file.is_file())
    differences = []
    for file in files[:: max(1, len(files) // count)][:count]:
        probs, expected = classify(page, file), predictor.predict(file.read_bytes())
        expect(page.get_by_role("heading", level=2)).to_contain_text(expected.label)
        differences.append((max_difference(probs, expected.probabilities), file.name))
    differences.sort(reverse=True)
    record_property("largest_differences", differences[:5])
    assert differences[0][0] <= TOLERANCE


def test_shipped_files() -> None:
    """The runtime is unmodified and comes with its notices; config.json suits most hosts."""
    assert json.loads((WEB / "config.json").read_text()) == {"api": "."}
    licence = (WEB / "vendor" / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "Microsoft" in licence
    notices = (WEB / "vendor" / "ThirdPartyNotices.txt").read_text()
    for library in ("protocolbuffers/protobuf", "abseil-cpp", "Eigen", "google/flatbuffers"):
        assert library in notices
    readme = (WEB / "vendor" / "README.md").read_text()
    runtime = [file for file in (WEB / "vendor").iterdir() if file.suffix in (".mjs", ".wasm")]
    assert len(runtime) == 2
    for file in runtime:
        assert f"`{file.name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in readme
