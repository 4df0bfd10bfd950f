"""A browser, the page in it, and a model small enough for a test."""

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.preprocess import Preprocessing, to_pixels
from tests.browser import chromium
from tests.conftest import SMALL_PX, MadeUp
from tests.web.site import FACTS, Site, serving

Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as served:
        yield served


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """Opens the page; at the end it must have asked nobody else, and have had no fault."""
    asked: list[str] = []
    said: list[str] = []
    faults: list[str] = []
    contexts = []
    elsewhere: list[str] = []

    def visit(
        *, script: str = "", allowed: str = "", permissions: tuple[str, ...] = (), **options: Any
    ) -> Page:
        if allowed:
            elsewhere.append(allowed)
        context = browser.new_context(permissions=list(permissions), **options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        # From now on, not only once a test waits for one: that would come too late now and then.
        page.on("filechooser", lambda chooser: None)
        if script:
            page.add_init_script(script)
        page.goto(site.url)
        # The way is chosen once the page has looked for a model.
        expect(page.locator("input[name=way]:checked")).to_have_count(1)
        return page

    yield visit
    for context in contexts:
        context.close()
    own = (site.url, "blob:", "data:", *elsewhere)
    assert not [url for url in asked if not url.startswith(own)]
    assert not faults
    # The browser itself writes a line for each answer that is an error.
    unexpected = [line for line in said if not line.startswith("Failed to load resource")]
    assert unexpected == [] or site.forbidden, unexpected
    assert len(said) - len(unexpected) <= site.failures


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (90, 70)) -> dict[str, Any]:
    """A file to give to the page, in the form that playwright takes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    name = f"picture-{seed}.{kind.lower()}"
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": buffer.getvalue()}


def give(page: Page, file: dict[str, Any] | Path) -> None:
    """Picks a file and waits until the page has it."""
    page.set_input_files("#file", file)
    expect(page.get_by_role("button", name="Submit")).to_be_enabled()


def submit(page: Page) -> None:
    page.get_by_role("button", name="Submit").click()


def until(holds: Callable[[], object]) -> None:
    """Waits; playwright's own way would need 'unsafe-eval' in the page's policy."""
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def bars(page: Page) -> dict[str, float]:
    """The probabilities that are shown, as exactly as they are drawn."""
    code = """
        () => Object.fromEntries([...document.querySelectorAll('#bars li')].map(
            (line) => [line.children[0].textContent,
                parseFloat(line.querySelector('.fill').style.width) / 100]))
    """
    return dict(page.evaluate(code))


@pytest.fixture(scope="session")
def small_model(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, but sure of itself and of another class for other pictures."""
    settings = Preprocessing(side_px=SMALL_PX)
    drawn = [to_pixels(file.read_bytes(), settings) for file in drawings(made_up)]
    model = mobilenet.build(ModelConfig(head_width=32), len(CLASSES), seed=0, backbone=None).eval()
    served = export.Served(model)
    images_NCHW = served.before(torch.from_numpy(np.stack(drawn)))
    estimate_statistics(model.features, [images_NCHW])
    with torch.no_grad():
        logits_NK = model(images_NCHW)
        last = [module for module in model.head.modules() if isinstance(module, torch.nn.Linear)]
        # Each class gets the same mean and spread over the drawings.
        scale = 2 / logits_NK.std(0)
        last[-1].weight.mul_(scale[:, None])
        last[-1].bias.copy_((last[-1].bias - logits_NK.mean(0)) * scale)
    target = tmp_path_factory.mktemp("small") / "model.onnx"
    facts = {"classes": json.dumps(CLASSES), "preprocessing": settings.to_json()}
    export.to_onnx(model, target, SMALL_PX, facts)
    return target


def drawings(made_up: MadeUp) -> list[Path]:
    """Clean JPEG and PNG drawings of all classes, of moderate size."""
    found = []
    for folder in sorted(path for path in made_up.folder.iterdir() if path.is_dir()):
        fit = []
        for file in sorted(folder.iterdir()):
            dirty = f"{folder.name}/{file.name}" in made_up.truth.broken
            if file.suffix in (".jpg", ".png") and not dirty and 2000 < file.stat().st_size < 3e5:
                fit.append(file)
        found += fit[:8]
    return found


@pytest.fixture(scope="session")
def small_facts() -> dict[str, Any]:
    """What lies beside `small_model`."""
    preprocessing = {"side_px": SMALL_PX, "resampling": "bilinear", "min_side_px": 8}
    limits = {"max_bytes": 3_000_000, "max_pixels": 20_000_000}
    more = {"name": "small", "version": "3", "temperature": 1.7, "unsure_below": 0.45}
    return {**FACTS, **more, "preprocessing": preprocessing, "limits": limits}
