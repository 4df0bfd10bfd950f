"""What an answer rests on, laid over the image: from the service and from the browser's model."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from drone.labels import CLASSES
from drone.serving.predictor import Predictor
from tests.conftest import ROOT, MadeUp
from tests.web.conftest import Visit, choose, classify, drawings, image_file, submit
from tests.web.site import WEB, Reply, Site, prediction

pytestmark = pytest.mark.slow

SWITCH = "Show evidence map"

CORNER = [[float((row, column) == (0, 6)) for column in range(7)] for row in range(7)]
"""All evidence in the upper right corner."""


def with_evidence(rows: list[list[float]]) -> Reply:
    return Reply(body=prediction(evidence={"class": CLASSES[1], "map": rows}))


def drawn(page: Page) -> np.ndarray:
    """Pixels of the overlay, (56, 56, 4)."""
    code = """
        () => [...document.getElementById('heat-map').shadowRoot.querySelector('canvas')
            .getContext('2d').getImageData(0, 0, 56, 56).data]
    """
    return np.array(page.evaluate(code)).reshape(56, 56, 4)


def test_the_page_and_the_reports_draw_maps_by_the_same_code() -> None:
    assert (WEB / "heat-map.js").read_bytes() == (ROOT / "drone/data/heat-map.js").read_bytes()


@pytest.mark.parametrize("size", [(900, 300), (100, 700), (60, 40)])
def test_the_overlay_covers_the_image_whatever_its_shape(
    visit: Visit, site: Site, size: tuple[int, int]
) -> None:
    site.predict_replies = [with_evidence(CORNER)]
    page = visit()
    classify(page, image_file(1, size=size))
    overlay, image = page.locator("#heat-map"), page.locator("#image")
    expect(page.get_by_label(SWITCH)).not_to_be_checked()
    expect(overlay).to_be_hidden()
    page.get_by_label(SWITCH).check()
    expect(overlay).to_be_visible()
    expected = image.bounding_box()
    assert expected is not None
    assert expected["width"] / expected["height"] == pytest.approx(size[0] / size[1], rel=0.05)
    assert overlay.bounding_box() == pytest.approx(expected, abs=1)
    expect(page.locator("#evidence-text")).to_have_text(
        f"The brighter a part of the image, the more it speaks for {CLASSES[1]}."
    )
    pixels = drawn(page)
    # Bright in the corner, interpolated around it, and transparent everywhere else.
    np.testing.assert_array_equal(pixels[0, -1], [252, 255, 164, 191])
    assert 0 < pixels[8, -8, 3] < 191
    assert not pixels[16:, :, 3].any() and not pixels[:, :-16, 3].any()
    page.get_by_label(SWITCH).uncheck()
    expect(overlay).to_be_hidden()
    expect(page.locator("#evidence-text")).to_have_text("")


def test_the_switch_stays_for_the_next_image(visit: Visit, site: Site) -> None:
    site.predict_replies = [
        with_evidence(CORNER),
        with_evidence([[0.0] * 7] * 7),
        Reply(body=prediction()),
    ]
    page = visit()
    classify(page, image_file(1))
    page.get_by_label(SWITCH).check()
    choose(page, image_file(2))
    assert not drawn(page).any()  # Nothing of an image that is gone.
    submit(page)
    expect(page.locator("#evidence-text")).to_have_text(
        f"No part of the image speaks for {CLASSES[1]}."
    )
    assert not drawn(page).any()
    # A service that sends none leaves nothing to switch.
    classify(page, image_file(3))
    expect(page.get_by_label(SWITCH)).to_be_hidden()


def test_the_model_in_the_browser_has_the_predictors_evidence(
    visit: Visit, site: Site, made_up: MadeUp, small_model: Path, small_info: dict[str, Any]
) -> None:
    site.add_model(small_model.read_bytes(), small_info)
    site.config["api"] = None
    predictor, page = Predictor(small_model), visit()
    files = [file for file in drawings(made_up) if file.suffix == ".png"]
    assert len(files) >= 2
    for number, file in enumerate(files):
        classify(page, file)
        if number == 0:
            page.get_by_label(SWITCH).check()
        expected = predictor.predict(file.read_bytes(), evidence=True).evidence
        assert expected is not None
        encoded = page.locator("#heat-map").get_attribute("values") or ""
        values = np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(2, 2)
        np.testing.assert_allclose(values / 255, expected.map, atol=0.02)
        expect(page.locator("#evidence-text")).to_contain_text(expected.class_name)
