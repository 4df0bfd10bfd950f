"""A browser, the page in it, and a model that is small enough for a test."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from drone.labels import CLASSES
from drone.model import export, mobilenet
from drone.model.batchnorm import estimate_statistics
from drone.model.config import ModelConfig
from drone.serving.predictor import class_metadata
from drone.serving.preprocess import Preprocessing, to_pixels
from tests.browser import chromium
from tests.conftest import SMALL_PX, MadeUp
from tests.web.site import MODEL_INFO, Site, serve

Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site()) as served:
        yield served


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """Opens the page. Afterwards checks that it asked no other origin and raised no error."""
    urls: list[str] = []
    console_errors: list[str] = []
    exceptions: list[str] = []
    contexts = []
    allowed = [site.url, "blob:", "data:"]

    def on_console(line: ConsoleMessage) -> None:
        if line.type == "error":
            console_errors.append(line.text)

    def visit(
        *, script: str = "", allow: str = "", permissions: tuple[str, ...] = (), **options: Any
    ) -> Page:
        if allow:
            allowed.append(allow)
        context = browser.new_context(permissions=list(permissions), **options)
        contexts.append(context)
        context.on("request", lambda request: urls.append(request.url))
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", on_console)
        page.on("pageerror", lambda error: exceptions.append(str(error)))
        # From the start: listening only once a test waits for a file chooser is sometimes too late.
        page.on("filechooser", lambda chooser: None)
        if script:
            page.add_init_script(script)
        page.goto(site.url)
        # The page selects a backend once it has looked for a model.
        expect(page.locator("input[name=backend]:checked")).to_have_count(1)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not [url for url in urls if not url.startswith(tuple(allowed))]
    assert not exceptions
    # The browser itself logs a line for each error response.
    unexpected = [line for line in console_errors if not line.startswith("Failed to load resource")]
    assert unexpected == [] or site.violates_policy, unexpected
    assert len(console_errors) - len(unexpected) <= site.failures


def image_file(
    seed: int = 0, format: str = "PNG", size: tuple[int, int] = (90, 70)
) -> dict[str, Any]:
    """An image of noise in the form that playwright uploads."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    name = f"image-{seed}.{format.lower()}"
    return {"name": name, "mimeType": f"image/{format.lower()}", "buffer": buffer.getvalue()}


def choose(page: Page, file: dict[str, Any] | Path) -> None:
    """Chooses a file and waits until the page has opened it."""
    page.set_input_files("#file", file)
    expect(page.get_by_role("button", name="Submit")).to_be_enabled()


def submit(page: Page) -> None:
    page.get_by_role("button", name="Submit").click()


def classify(page: Page, file: dict[str, Any] | Path) -> dict[str, float]:
    """Returns the probabilities that the page shows for a file."""
    choose(page, file)
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    return shown_probabilities(page)


def shown_probabilities(page: Page) -> dict[str, float]:
    """Probabilities by class as precisely as the bars are drawn."""
    code = """
        () => Object.fromEntries([...document.querySelectorAll('#probabilities li')].map(
            (bar) => [bar.children[0].textContent,
                parseFloat(bar.querySelector('.fill').style.width) / 100]))
    """
    return dict(page.evaluate(code))


def wait_until(holds: Callable[[], object]) -> None:
    """Polls a condition; playwright's wait_for_function would need 'unsafe-eval' in the policy."""
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settle(page: Page) -> None:
    """Waits until the page has handled what reached it before: a request and two frames go by."""
    page.evaluate("""async () => {
        await (await fetch('config.json', { cache: 'no-store' })).text();
        for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
    }""")


@pytest.fixture(scope="session")
def small_model(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that is confident and tells images apart."""
    settings = Preprocessing(side_px=SMALL_PX)
    pixels = [to_pixels(file.read_bytes(), settings) for file in drawings(made_up)]
    model = mobilenet.build(ModelConfig(head_width=32), len(CLASSES), seed=0, backbone=None).eval()
    served = export.Served(model)
    images_NCHW = served.normalise(torch.from_numpy(np.stack(pixels)))
    estimate_statistics(model.features, [images_NCHW])
    with torch.no_grad():
        logits_NK = model(images_NCHW)
        linear = [m for m in model.head.modules() if isinstance(m, torch.nn.Linear)][-1]
        # Equal mean and spread over the drawings for each class: none of them always wins.
        scale = 2 / logits_NK.std(0)
        linear.weight.mul_(scale[:, None])
        linear.bias.copy_((linear.bias - logits_NK.mean(0)) * scale)
    target = tmp_path_factory.mktemp("small") / "model.onnx"
    metadata = {**class_metadata(CLASSES), "preprocessing": settings.to_json()}
    export.to_onnx(model, target, SMALL_PX, metadata)
    return target


def drawings(made_up: MadeUp) -> list[Path]:
    """Up to 8 intact JPEG and PNG drawings of each class, of moderate size.

    They are decoded whole for `small_model`, which random weights make sensitive to any difference.
    """
    drawings = []
    for folder in sorted(path for path in made_up.folder.iterdir() if path.is_dir()):
        intact = []
        for file in sorted(folder.iterdir()):
            broken = f"{folder.name}/{file.name}" in made_up.truth.broken
            if file.suffix not in (".jpg", ".png") or broken or file.stat().st_size < 2000:
                continue
            if min(Image.open(file).size) < 6 * SMALL_PX:
                intact.append(file)
        drawings += intact[:8]
    return drawings


@pytest.fixture(scope="session")
def small_info() -> dict[str, Any]:
    """The model.json of `small_model`."""
    preprocessing = {"side_px": SMALL_PX, "resampling": "bilinear", "min_side_px": 8}
    limits = {"max_bytes": 3_000_000, "max_pixels": 20_000_000}
    overrides = {"name": "small", "version": "3", "temperature": 1.7, "unsure_below": 0.45}
    return {**MODEL_INFO, **overrides, "preprocessing": preprocessing, "limits": limits}
