"""How images reach the page, what it shows, and its accessibility."""

import io
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter
from playwright.sync_api import Page, expect

from drone.labels import NONE
from drone.serving.preprocess import Preprocessing, to_pixels
from tests.conftest import SMALL_PX
from tests.web.conftest import (
    Visit,
    choose,
    image_file,
    shown_probabilities,
    submit,
    wait_until,
)
from tests.web.site import Reply, Site, error, prediction

PREPROCESSING = Preprocessing()


def uploaded(site: Site, at: int = -1) -> np.ndarray:
    """The pixels that the service received."""
    content_type, body = site.uploads[at]
    assert content_type == "application/octet-stream"
    image = Image.open(io.BytesIO(body))
    assert image.format == "PNG" and image.mode in ("RGB", "RGBA")
    return np.asarray(image.convert("RGB"))


def test_pick_submit_answer_remove(visit: Visit, site: Site) -> None:
    page = visit()
    assert page.title() == "Drone or bird?"
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    # The page has loaded the info of the service's model.
    expect(page.locator("#model-info")).to_contain_text(
        "Model drone-classifier 7: Flying Birds, Large"
    )
    expect(page.locator("#model-info")).to_contain_text("up to 2.9 MB and 4 million pixels")
    # Without a model beside the page there is no choice of backend.
    expect(page.locator("#backends")).to_be_hidden()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    file = image_file(1)
    chooser.value.set_files(file)
    expect(page.get_by_role("img", name="The image: image-1.png")).to_be_visible()
    assert page.evaluate("document.getElementById('image').naturalWidth") == 90
    expect(page.locator("figcaption")).to_have_text(re.compile(r"image-1.png \(90 × 70, \d+ kB"))

    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters: 85.0 %")).to_be_visible()
    expect(page.locator("#kind")).to_have_text("A drone (95.0 %)")
    expect(page.locator("#alarm")).to_be_hidden()
    expect(page.locator("#unsure")).to_be_hidden()
    expect(page.locator("#predicted-by")).to_have_text(
        "Predicted by drone-classifier 7 on the service."
    )
    assert page.locator("#probabilities li").all_inner_texts()[0].split("\n") == [
        "Large QuadCopters",
        "85.0 %",
    ]
    assert shown_probabilities(page) == pytest.approx(prediction()["probabilities"], abs=1e-4)
    expect(page.get_by_role("status")).to_have_text("Large QuadCopters.")
    # The upload is bit-identical to what Pillow makes of the file.
    assert np.array_equal(uploaded(site), to_pixels(file["buffer"], PREPROCESSING))

    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    expect(page.get_by_role("button", name="Choose an image")).to_be_focused()
    # The same file, chosen again.
    choose(page, file)
    expect(page.locator("#preview")).to_be_visible()
    site.predict_replies.append(Reply(body=prediction(0, 0.4)))
    submit(page)
    expect(page.locator("#unsure")).to_be_visible()
    expect(page.locator("#kind")).to_have_text("A drone (60.0 %)")
    assert len(site.uploads) == 2


def test_an_image_of_none_of_the_classes(visit: Visit, site: Site) -> None:
    page = visit()
    choose(page, image_file(1))
    none = prediction(0, 0.4, label=NONE, kind=None, known=0.031)
    site.predict_replies.append(Reply(body=none))
    submit(page)
    expect(page.get_by_role("heading", name="None of these", exact=True)).to_be_visible()
    expect(page.locator("#none")).to_contain_text("known score 3.1 %")
    # What the model says of the classes means little here, and neither does how sure it is.
    expect(page.locator("#unsure")).to_be_hidden()
    expect(page.locator("#kind")).to_be_hidden()
    assert shown_probabilities(page) == pytest.approx(none["probabilities"], abs=1e-4)
    site.predict_replies.append(Reply())
    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters: 85.0 %")).to_be_visible()
    expect(page.locator("#none")).to_be_hidden()


def test_the_same_file_twice_in_a_row(visit: Visit, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "again.png"
    file.write_bytes(image_file(1)["buffer"])
    page = visit()
    choose(page, file)
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    file.write_bytes(image_file(2, size=(50, 40))["buffer"])
    choose(page, file)
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("figcaption")).to_contain_text("50 × 40")
    # Choosing the same file fires an event only if the input was cleared.
    assert page.evaluate("document.getElementById('file').value") == ""


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_uploaded_upright(visit: Visit, site: Site, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:20, :50, 0] = pixels[30:, 70:, 1] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif, quality=95)
    page = visit()
    choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    expected = to_pixels(buffer.getvalue(), PREPROCESSING).astype(int)
    # JPEG decoders may differ by one or two levels.
    assert abs(uploaded(site) - expected).max() <= 2


def test_a_large_jpeg_is_uploaded_as_the_service_would_decode_it(visit: Visit, site: Site) -> None:
    """The service decodes it at a reduced scale, the browser whole."""
    noise = Image.effect_noise((1400, 1400), 90).filter(ImageFilter.GaussianBlur(3))
    photograph = Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180)))
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=90)
    page = visit()
    choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    expected = to_pixels(buffer.getvalue(), PREPROCESSING).astype(int)
    assert abs(uploaded(site) - expected).mean() < 0.5


def encode(kind: str) -> bytes:
    """A file of one of the kinds in LOSSLESS and LOSSY."""
    rng = np.random.default_rng(4)
    noise = Image.fromarray(rng.integers(0, 256, (300, 260, 4), np.uint8), "RGBA")
    image = noise.convert("RGB")
    frames = [image.quantize(64), Image.new("RGB", image.size).quantize()]
    white = Image.new("RGB", image.size, "white")
    second = {"save_all": True, "append_images": [image, white], "duration": 50}
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "transparent": (noise, "PNG", {}),
        "palette": (frames[0], "PNG", {"transparency": 3}),
        "profile": (image, "PNG", {"icc_profile": swapped_profile()}),
        "grey": (image.convert("L"), "PNG", {}),
        "gif": (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        "webp": (image, "WEBP", {"lossless": True}),
        "blank first, gif": (white, "GIF", {**second, "append_images": [frames[0]]}),
        "blank first, png": (white, "PNG", second),
        "blank first, webp": (white, "WEBP", {**second, "lossless": True}),
        "blank": (white, "PNG", {}),
        "webp, lossy": (image, "WEBP", {}),
        "avif": (image, "AVIF", {}),
        "bmp": (image, "BMP", {}),
        "progressive": (image, "JPEG", {"progressive": True}),
        "cmyk": (image.convert("CMYK"), "JPEG", {}),
    }
    source, format, options = kinds[kind]
    buffer = io.BytesIO()
    source.save(buffer, format, **options)
    return buffer.getvalue()


LOSSLESS = ["transparent", "palette", "profile", "grey", "gif", "webp", "bmp", "blank"]
LOSSLESS += ["blank first, gif", "blank first, png", "blank first, webp"]
LOSSY = ["webp, lossy", "avif", "progressive", "cmyk"]


def test_image_formats(visit: Visit, site: Site) -> None:
    page = visit()
    for kind in LOSSLESS + LOSSY:
        data = encode(kind)
        # The content decides, not the name or type.
        choose(page, {"name": "a.txt", "mimeType": "text/plain", "buffer": data})
        submit(page)
        expect(page.locator("#result"), kind).to_be_visible()
        difference = abs(uploaded(site) - to_pixels(data, PREPROCESSING).astype(int)).max()
        # A canvas rounds alpha compositing differently; lossy decoders may differ.
        assert difference <= (2 if kind in LOSSY else 1 if kind == "transparent" else 0), kind


def swapped_profile() -> bytes:
    """A colour profile that swaps red and green where it is applied."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_drop(visit: Visit, site: Site, tmp_path: Path) -> None:
    page = visit()
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"dropped-{seed}.png")
        files[-1].write_bytes(image_file(seed)["buffer"])
    drop(page, files[:1])
    expect(page.locator("#image-name")).to_have_text("dropped-1.png")
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    drop(page, files[::-1])
    expect(page.locator("#image-name")).to_have_text("dropped-2.png")
    expect(page.get_by_role("status")).to_have_text("Only the first of 2 files is used.")
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    # Dropping something other than a file keeps the image.
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{bubbles: true, dataTransfer: new DataTransfer()}))"
    )
    expect(page.get_by_role("status")).to_contain_text("No image file was dropped or pasted")
    expect(page.locator("#image-name")).to_have_text("dropped-2.png")


def drop(page: Page, files: list[Path]) -> None:
    """Drops files from outside the browser, away from the drop zone."""
    session = page.context.new_cdp_session(page)
    names = [str(file) for file in files]
    data = {"items": [], "files": names, "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 300, "y": 500, "data": data}
        session.send("Input.dispatchDragEvent", event)
        if kind == "dragOver":
            expect(page.locator("#drop-zone")).to_have_class("drag-over")
    expect(page.locator("#drop-zone")).not_to_have_class("drag-over")


def test_paste(visit: Visit, site: Site) -> None:
    page = visit(permissions=("clipboard-read", "clipboard-write"))
    page.evaluate("""async () => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 30});
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
    }""")
    page.keyboard.press("Control+v")
    expect(page.locator("figcaption")).to_contain_text("40 × 30")
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    page.evaluate("navigator.clipboard.writeText('text')")
    page.keyboard.press("Control+v")
    expect(page.get_by_role("status")).to_contain_text("No image file was dropped or pasted")
    expect(page.locator("#preview")).to_be_visible()


def wait_for_video(page: Page) -> None:
    wait_until(lambda: page.evaluate("document.getElementById('video').videoWidth"))


def test_camera(visit: Visit, site: Site) -> None:
    page = visit(permissions=("camera",))
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.get_by_role("button", name="Capture", exact=True)).to_be_focused()
    wait_for_video(page)
    page.keyboard.press("Escape")
    expect(page.locator("#camera")).to_be_hidden()
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_focused()
    assert page.evaluate("document.getElementById('video').srcObject") is None

    page.keyboard.press("Enter")
    wait_for_video(page)
    track = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    page.get_by_role("button", name="Capture", exact=True).click()
    expect(page.locator("#image-name")).to_have_text("camera.png")
    expect(page.locator("#camera")).to_be_hidden()
    assert track.evaluate("(track) => track.readyState") == "ended"
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert uploaded(site).std() > 10


def test_camera_permission_denied(visit: Visit) -> None:
    deny = (
        "navigator.mediaDevices.getUserMedia = () => "
        "Promise.reject(new DOMException('', 'NotAllowedError'));"
    )
    page = visit(script=deny)
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("may not use the camera")
    expect(page.locator("#camera")).to_be_hidden()


def test_a_phone_offers_its_own_camera(visit: Visit) -> None:
    page = visit(has_touch=True, is_mobile=True, viewport={"width": 360, "height": 740})
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(image_file(5))
    expect(page.locator("#image-name")).to_have_text("image-5.png")


def test_accessibility_tree(visit: Visit) -> None:
    page = visit()
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    tree = page.locator("body").aria_snapshot()
    for line in (
        'heading "Drone or bird?" [level=1]',
        'region "Image"',
        'img "The image: image-1.png"',
        'button "Remove"',
        "status: Large QuadCopters.",
        'region "Large QuadCopters: 85.0 %"',
        'list "Probabilities"',
        "listitem: Large QuadCopters 85.0 %",
    ):
        assert line in tree, tree
    assert page.locator("html").get_attribute("lang") == "en"
    for selector, role in (("#status", "status"), ("#error", "alert")):
        assert page.locator(selector).get_attribute("role") == role


def test_names_are_not_interpreted_as_html(visit: Visit, site: Site) -> None:
    name = "<img src=x onerror=document.title='injected'>.png"
    injected = prediction(label=name, confidence=0.9, probabilities={name: 0.9, "b": 0.1})
    injected["model"]["version"] = name
    site.predict_replies += [Reply(body=injected), Reply(422, error(422, name))]
    page = visit()
    choose(page, {**image_file(1), "name": name})
    expect(page.locator("#image-name")).to_have_text(name)
    submit(page)
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#predicted-by")).to_contain_text(name)
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text(name)
    assert page.title() == "Drone or bird?" and page.locator("img").count() == 1
    assert "x" not in site.requests


def file(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (file("a.png", b"<html>no image</html>"), "Not an image of a supported format (JPEG, PNG,"),
        (file("a.png", b""), "The file is empty."),
        (file("a.png", png(90, 90)[:60]), "The image is damaged or truncated."),
        (
            file("a.png", b"\x89PNG\r\n\x1a\n" + bytes(3_000_001)),
            "The file has 3000009 bytes; the limit is 3000000 bytes.",
        ),
        (
            file("a.png", png(2001, 2000)),
            "The image has 2001 x 2000 pixels; the limit is 4 million.",
        ),
        (file("a.png", png(300, 7)), "The image has 300 x 7 pixels; the minimum is 8 x 8."),
        (
            file("a.heic", b"\0\0\0\x18ftypheic" + bytes(50)),
            "cannot read HEIC images; save it as JPEG or PNG",
        ),
        (file("a.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9'/>"), "read SVG files"),
        (file("a.jpg", b"%PDF-1.7 " + bytes(50)), "cannot read PDF files"),
        (file("a.jpg", b"\xff\x0a" + bytes(50)), "cannot read JPEG XL images"),
        (file("a.jpg", b"\0\0\0\x18ftypisom" + bytes(50)), "cannot read video files"),
    ],
)
def test_invalid_files_are_not_sent(visit: Visit, site: Site, invalid: dict, message: str) -> None:
    page = visit()
    expect(page.locator("#model-info")).to_contain_text("Model")
    page.set_input_files("#file", invalid)
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    assert not site.uploads
    # The next file is accepted.
    choose(page, image_file(1))
    expect(page.get_by_role("alert")).to_be_empty()


def test_limits_before_the_model_info_is_loaded(visit: Visit, site: Site, tmp_path: Path) -> None:
    site.model_replies = [Reply(500, error(500, "No model yet."))]
    page = visit()
    expect(page.locator("#model-info")).to_contain_text("does not respond yet")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20 * 2**20))
    page.set_input_files("#file", tmp_path / "a.png")
    message = "The file has 20971528 bytes; the limit is 20971520 bytes."
    expect(page.get_by_role("alert")).to_contain_text(message)
    choose(page, file("b.png", png(2001, 2000)))
    # The first attempt loads the limits and applies them before it sends the image.
    submit(page)
    too_large = "The image has 2001 x 2000 pixels; the limit is 4 million."
    expect(page.get_by_role("alert")).to_contain_text(too_large)
    assert not site.uploads


def test_formats_that_only_the_service_reads(visit: Visit, site: Site) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40)).save(buffer, "PPM")
    page = visit()
    choose(page, file("a.ppm", buffer.getvalue()))
    expect(page.locator("#no-preview")).to_be_visible()
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert site.uploads == [("application/octet-stream", buffer.getvalue())]


def deep(shift: int) -> bytes:
    grey = np.asarray(Image.linear_gradient("L")).astype(np.uint16) << shift
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def test_16_bits_are_for_the_service(visit: Visit, site: Site) -> None:
    page = visit()
    choose(page, file("a.png", deep(4)))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert site.uploads == [("application/octet-stream", deep(4))]


CONTRAST = """(selector) => {
    const light = (colour) => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return colour;
        }
    };
    return [...document.querySelectorAll(selector)].map((element) => {
        const two = [light(getComputedStyle(element).color), light(behind(element))];
        return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(visit: Visit, site: Site, scheme: str) -> None:
    site.predict_replies = [Reply(body=prediction(1, 0.4)), Reply(400, error(400, "No."))]
    page = visit(color_scheme=scheme)
    choose(page, image_file(1))
    submit(page)
    expect(page.locator("#unsure")).to_be_visible()
    texts = "h1, h2, p:not(:empty), button, .soft, small, li span"
    # WCAG's level AA for text.
    assert min(page.evaluate(CONTRAST, texts)) >= 4.5
    red, _, _ = (
        int(part)
        for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).background"))[
            :3
        ]
    )
    assert (red > 200) == (scheme == "light")
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No.")
    assert min(page.evaluate(CONTRAST, "#error p, #error-actions button")) >= 4.5


def test_a_narrow_phone(visit: Visit, site: Site, small_info: dict) -> None:
    site.add_model(b"", small_info)
    page = visit(viewport={"width": 360, "height": 640}, permissions=("camera",))

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth") <= 360)

    assert fits()
    choose(page, {**image_file(1, size=(2000, 300)), "name": "w" * 190 + ".png"})
    assert fits()
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert fits()
    site.predict_replies = [Reply(422, error(422, "x" * 300))]
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("xxx")
    assert fits()
    page.get_by_role("button", name="Camera", exact=True).click()
    wait_for_video(page)
    assert fits()


SIZES = [(500, 333), (260, 300), (64, 64), (33, 700), (1, 9), (1023, 1), (90, 116), (90, 117)]


def test_the_resize_is_bit_identical_to_pillow(visit: Visit) -> None:
    code = """async ([base64, width, height, sidePx]) => {
        const bytes = Uint8ClampedArray.from(atob(base64), (char) => char.charCodeAt(0));
        const { stripResizer } = await import('./resize.js');
        const resizer = stripResizer(width, height, sidePx);
        const half = Math.floor(height / 2);
        resizer.add(bytes.slice(0, half * width * 4), 0, half);
        resizer.add(bytes.slice(half * width * 4), half, height - half);
        return [...resizer.finish()];
    }"""
    page = visit()
    for width, height in SIZES:
        rgba = np.random.default_rng(7).integers(0, 256, (height, width, 4), np.uint8)
        resized = page.evaluate(code, [b64encode(rgba).decode(), width, height, SMALL_PX])
        image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
        expected = np.asarray(image.resize((SMALL_PX, SMALL_PX), Image.Resampling.BILINEAR))
        assert np.array_equal(np.array(resized, np.uint8), expected.ravel()), (width, height)


def test_an_alarm(visit: Visit, site: Site) -> None:
    page = visit()
    for alarm in (True, False):
        site.predict_replies.append(Reply(200, prediction(alarm=alarm)))
        choose(page, image_file(1))
        submit(page)
        expect(page.get_by_role("heading", level=2)).to_contain_text("Large QuadCopters")
        expect(page.locator("#alarm")).to_be_visible(visible=alarm)
        if alarm:
            expect(page.locator("#alarm")).to_have_text("Alarm: drone with a probability of 95.0 %")
