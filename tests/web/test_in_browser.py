"""The browser's own answers, held to those of drone.serving.predictor."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from tests.conftest import MadeUp
from tests.web.conftest import Visit, bars, drawings, give, picture, submit
from tests.web.site import BUSY, FACTS, WEB, Reply, Site

CLOSE = 0.02


def ask(page: Page, file: Path) -> dict[str, float]:
    """The browser's answer to a file."""
    give(page, file)
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    return bars(page)


def calibrated(probs: dict[str, float], temperature: float) -> dict[str, float]:
    raised = np.array(list(probs.values())) ** (1 / temperature)
    return dict(zip(probs, (raised / raised.sum()).tolist(), strict=True))


def test_a_model_of_mixed_resolutions_takes_pictures_at_their_own_sizes(
    visit: Visit, site: Site, mixed_raw: Path, mixed_model: Path
) -> None:
    predictor = Predictor(mixed_model)
    site.with_model(mixed_model.read_bytes(), {**FACTS, **predictor.facts})
    site.config["api"] = None
    page = visit()
    for file in sorted((mixed_raw / CLASSES[1]).iterdir()):
        found, expected = ask(page, file), predictor.predict(file.read_bytes()).probabilities
        assert max(abs(found[name] - expected[name]) for name in CLASSES) < CLOSE, file


def test_its_answers_are_the_predictors(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_facts: dict[str, Any]
) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    site.config["api"] = None
    predictor = Predictor(small_model)
    page = visit()
    # With one way there is nothing to choose.
    expect(page.locator("#ways")).to_be_hidden()
    expect(page.locator("#facts")).to_contain_text("Model small 3: Flying Birds")
    files = drawings(made_up)
    assert {file.suffix for file in files} == {".jpg", ".png"} and len(files) >= 24
    labels, far = set(), 0.0
    for file in files:
        found = ask(page, file)
        expected = calibrated(predictor.predict(file.read_bytes()).probabilities, 1.7)
        label = max(expected, key=lambda name: expected[name])
        assert set(found) == set(expected)
        assert max(found, key=lambda name: found[name]) == label, file
        far = max(far, max(abs(found[name] - expected[name]) for name in CLASSES))
        expect(page.get_by_role("heading", level=2)).to_contain_text(label)
        drone = 1 - expected[CLASSES[0]]
        kind = "A drone" if drone > 0.5 else "A bird"
        expect(page.locator("#kind")).to_contain_text(kind)
        assert page.locator("#unsure").is_visible() == (expected[label] < 0.45)
        labels.add(label)
    assert far <= CLOSE
    assert len(labels) >= 3  # The model does tell pictures apart.
    assert not site.uploads and "model" not in site.asked


def test_the_model_is_loaded_only_when_it_is_wanted(
    visit: Visit, site: Site, small_model: Path, small_facts: dict[str, Any]
) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.locator("#source")).to_contain_text("answered by the service")
    expect(page.get_by_role("radio", name="The service")).to_be_checked()
    assert not [path for path in site.asked if path.startswith("vendor/") or "onnx" in path]
    page.get_by_role("radio", name="This browser").check()
    submit(page)
    expect(page.locator("#source")).to_contain_text("answered by this browser")
    engine = [path for path in site.asked if path.startswith("vendor/")]
    assert sorted(engine) == [
        "vendor/ort-wasm-simd-threaded.wasm",
        "vendor/ort.wasm.bundle.min.mjs",
    ]
    # It is remembered, and the service is left in peace.
    before = site.asked.count("model")
    page.reload()
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    expect(page.locator("#facts")).to_contain_text("Model small 3: ")
    give(page, picture(2))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert len(site.uploads) == 1 and site.asked.count("model") == before


def test_keys_alone(visit: Visit, site: Site, small_model: Path, small_facts: dict) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    page = visit()
    page.keyboard.press("Tab")
    expect(page.get_by_role("radio", name="The service")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose a picture")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(picture(1))
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="%")).to_be_focused()
    for name in ("Submit", "Remove"):
        page.keyboard.press("Shift+Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.get_by_role("button", name="Choose a picture")).to_be_focused()


def test_the_browser_answers_instead(
    visit: Visit, site: Site, small_model: Path, small_facts: dict
) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    site.replies = [BUSY] * 4
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No answer in 4 tries.")
    assert "model/model.onnx" not in site.asked
    page.get_by_role("button", name="Answer in this browser").click()
    expect(page.locator("#source")).to_have_text("Model small 3, answered by this browser.")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("radio", name="This browser")).to_be_checked()
    assert len(site.uploads) == 4


def test_a_plain_folder_needs_no_setting(
    visit: Visit, site: Site, small_model: Path, small_facts: dict[str, Any]
) -> None:
    """No service answers beside the page: the page finds out, and does without."""
    site.with_model(small_model.read_bytes(), small_facts)
    site.service = False
    page = visit()
    expect(page.get_by_role("status")).to_contain_text("this browser answers")
    expect(page.locator("#ways")).to_be_hidden()
    give(page, picture(1))
    submit(page)
    expect(page.locator("#source")).to_contain_text("answered by this browser")
    # A new model's facts beside an old model that the browser has kept would be a lie.
    assert {"model/model.json", "model/model.onnx"} <= site.asked_anew


def test_a_model_that_does_not_come_can_be_tried_again(
    visit: Visit, site: Site, small_model: Path, small_facts: dict[str, Any]
) -> None:
    site.with_model(b"no model", small_facts)
    site.config["api"] = None
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("The model did not start in this browser")
    del site.files["model/model.onnx"]
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("/model/model.onnx cannot be loaded (404)")
    site.with_model(small_model.read_bytes(), small_facts)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#result")).to_be_visible()


def test_cancel_while_the_model_loads(
    visit: Visit, site: Site, small_model: Path, small_facts: dict[str, Any]
) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    site.config["api"] = None
    slow = """
        const real = fetch;
        const held = new Promise((resolve) => { window.release = resolve; });
        window.fetch = async (url, rest) => {
            if (String(url).endsWith('.onnx')) await held;
            return real(url, rest);
        };
    """
    page = visit(script=slow)
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("status")).to_contain_text("Loading the model")
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("window.release()")
    expect(page.locator("#facts")).not_to_contain_text("oad")
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    submit(page)
    expect(page.locator("#result")).to_be_visible()


def test_changing_the_way_ends_the_question(
    visit: Visit, site: Site, small_model: Path, small_facts: dict[str, Any]
) -> None:
    site.with_model(small_model.read_bytes(), small_facts)
    site.replies = [Reply(503, "", {"Retry-After": "20"})]
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.get_by_role("status")).to_contain_text("in 20 s")
    page.get_by_role("radio", name="This browser").check()
    expect(page.get_by_role("status")).to_contain_text("Cancelled.")
    submit(page)
    expect(page.locator("#source")).to_contain_text("answered by this browser")


def test_both_ways_give_the_same_pixels(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_facts: dict[str, Any]
) -> None:
    """The service's answer to what the page uploads is the browser's own answer."""
    site.with_model(small_model.read_bytes(), small_facts)
    site.facts = [Reply(200, small_facts)]
    page = visit()
    predictor = Predictor(small_model)
    for file in drawings(made_up)[::7]:
        page.get_by_role("radio", name="The service").check()
        ask(page, file)
        expected = calibrated(predictor.predict(site.uploads[-1][1]).probabilities, 1.7)
        page.get_by_role("radio", name="This browser").check()
        assert ask(page, file) == pytest.approx(expected, abs=1e-3)


@pytest.mark.real
def test_real_pictures(
    visit: Visit, site: Site, real_pictures: Path, record_property: Callable[[str, object], None]
) -> None:
    """With a trained model, on photographs: decoders of JPEG must not move the answers."""
    model = os.environ.get("DRONE_TEST_ONNX")
    if not model:
        pytest.skip("DRONE_TEST_ONNX names no trained model")
    predictor = Predictor(Path(model))
    settings = asdict(predictor.preprocessing)
    facts = {**FACTS, "classes": list(predictor.classes), "preprocessing": settings}
    site.with_model(Path(model).read_bytes(), {**facts, "limits": {}})
    site.config["api"] = None
    page = visit()
    count = int(os.environ.get("DRONE_TEST_PICTURES", "40"))
    files = sorted(file for file in real_pictures.rglob("*") if file.is_file())
    far = []
    for file in files[:: max(1, len(files) // count)][:count]:
        found, expected = ask(page, file), predictor.predict(file.read_bytes())
        assert max(found, key=lambda name: found[name]) == expected.label, file
        named = expected.probabilities
        far.append((max(abs(found[name] - named[name]) for name in named), file.name))
    far.sort(reverse=True)
    record_property("farthest", far[:5])
    assert far[0][0] <= CLOSE


def test_what_is_shipped() -> None:
    """The engine as its makers published it, its licence, and settings that suit most hosts."""
    assert json.loads((WEB / "config.json").read_text()) == {"api": "."}
    licence = (WEB / "vendor" / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "Microsoft" in licence
    told = (WEB / "vendor" / "README.md").read_text()
    engine = [file for file in (WEB / "vendor").iterdir() if file.suffix in (".mjs", ".wasm")]
    assert len(engine) == 2
    for file in engine:
        assert f"`{file.name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in told
