"""How a picture gets onto the page, and how the page treats people and machines."""

import io
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Page, expect

from drone.serving.preprocess import Preprocessing, to_pixels
from tests.conftest import SMALL_PX
from tests.web.conftest import Visit, bars, give, picture, submit, until
from tests.web.site import Reply, Site, answer, error

SIDE = Preprocessing()


def uploaded(site: Site, at: int = -1) -> np.ndarray:
    """The pixels that the service got."""
    kind, body = site.uploads[at]
    assert kind == "application/octet-stream"
    image = Image.open(io.BytesIO(body))
    assert image.format == "PNG" and image.mode in ("RGB", "RGBA")
    return np.asarray(image.convert("RGB"))


def test_pick_submit_answer_remove(visit: Visit, site: Site) -> None:
    page = visit()
    assert page.title() == "Drone or bird?"
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    # The service was woken, and said which model it has and what it takes.
    expect(page.locator("#facts")).to_contain_text("Model drone-classifier 7: Flying Birds, Large")
    expect(page.locator("#facts")).to_contain_text("up to 2.9 MB and 4 million pixels")
    # No model lies beside the page, so there is nothing to choose.
    expect(page.locator("#ways")).to_be_hidden()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    given = picture(1)
    chooser.value.set_files(given)
    expect(page.get_by_role("img", name="The picture: picture-1.png")).to_be_visible()
    assert page.evaluate("document.getElementById('shown').naturalWidth") == 90
    expect(page.locator("figcaption")).to_have_text(re.compile(r"picture-1.png \(90 × 70, \d+ kB"))

    submit(page)
    expect(page.get_by_role("heading", name="Large QuadCopters: 85.0 %")).to_be_visible()
    expect(page.locator("#kind")).to_have_text("A drone (95.0 %)")
    expect(page.locator("#unsure")).to_be_hidden()
    expect(page.locator("#source")).to_have_text(
        "Model drone-classifier 7, answered by the service."
    )
    assert page.locator("#bars li").all_inner_texts()[0].split("\n") == [
        "Large QuadCopters",
        "85.0 %",
    ]
    assert bars(page) == pytest.approx(answer()["probabilities"], abs=1e-4)
    expect(page.get_by_role("status")).to_have_text("Large QuadCopters.")
    # What went up is what Pillow would have made of the file, to the bit.
    assert np.array_equal(uploaded(site), to_pixels(given["buffer"], SIDE))

    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.locator("#result")).to_be_hidden()
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    expect(page.get_by_role("button", name="Choose a picture")).to_be_focused()
    # The same file, picked again.
    give(page, given)
    expect(page.locator("#preview")).to_be_visible()
    site.replies.append(Reply(body=answer(0, 0.4)))
    submit(page)
    expect(page.locator("#unsure")).to_be_visible()
    expect(page.locator("#kind")).to_have_text("A drone (60.0 %)")
    assert len(site.uploads) == 2


def test_the_same_file_twice_in_a_row(visit: Visit, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "again.png"
    file.write_bytes(picture(1)["buffer"])
    page = visit()
    give(page, file)
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    file.write_bytes(picture(2, size=(50, 40))["buffer"])
    give(page, file)
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("figcaption")).to_contain_text("50 × 40")
    # What a person picks again is a change only if the field has forgotten it.
    assert page.evaluate("document.getElementById('file').value") == ""


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_uploaded_upright(visit: Visit, site: Site, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:20, :50, 0] = pixels[30:, 70:, 1] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif, quality=95)
    page = visit()
    give(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    expected = to_pixels(buffer.getvalue(), SIDE).astype(int)
    # Decoders of JPEG may differ by a step or two.
    assert abs(uploaded(site) - expected).max() <= 2


def encoded(kind: str) -> bytes:
    """A picture of some kind."""
    rng = np.random.default_rng(4)
    noise = Image.fromarray(rng.integers(0, 256, (300, 260, 4), np.uint8), "RGBA")
    image = noise.convert("RGB")
    frames = [image.quantize(64), Image.new("RGB", image.size).quantize()]
    grey = Image.fromarray(rng.integers(0, 65536, (99, 120)).astype(np.uint16))
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "transparent": (noise, "PNG", {}),
        "palette": (frames[0], "PNG", {"transparency": 3}),
        "profile": (image, "PNG", {"icc_profile": swapped_profile()}),
        "grey": (image.convert("L"), "PNG", {}),
        "16 bits": (grey, "PNG", {}),
        "gif": (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        "webp": (image, "WEBP", {"lossless": True}),
        "webp, lossy": (image, "WEBP", {}),
        "avif": (image, "AVIF", {}),
        "bmp": (image, "BMP", {}),
        "progressive": (image, "JPEG", {"progressive": True}),
        "cmyk": (image.convert("CMYK"), "JPEG", {}),
    }
    shown, name, options = kinds[kind]
    buffer = io.BytesIO()
    shown.save(buffer, name, **options)
    return buffer.getvalue()


KINDS = ["transparent", "palette", "profile", "grey", "16 bits", "gif", "webp", "bmp"]
LOSSY = ["webp, lossy", "avif", "progressive", "cmyk"]


@pytest.mark.parametrize("kind", KINDS + LOSSY)
def test_kinds_of_pictures(visit: Visit, site: Site, kind: str) -> None:
    data = encoded(kind)
    page = visit()
    # The name says nothing: content decides.
    give(page, {"name": "a.txt", "mimeType": "text/plain", "buffer": data})
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    difference = abs(uploaded(site) - to_pixels(data, SIDE).astype(int)).max()
    # Laying alpha over white is rounded otherwise by a canvas; decoders of lossy files may differ.
    assert difference <= (2 if kind in LOSSY else 1 if kind == "transparent" else 0)


def swapped_profile() -> bytes:
    """A colour profile that changes every colour where it is applied: red for green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_drop(visit: Visit, site: Site, tmp_path: Path) -> None:
    page = visit()
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"dropped-{seed}.png")
        files[-1].write_bytes(picture(seed)["buffer"])
    drop(page, files[:1])
    expect(page.locator("#name")).to_have_text("dropped-1.png")
    expect(page.get_by_role("button", name="Submit")).to_be_focused()
    drop(page, files[::-1])
    expect(page.locator("#name")).to_have_text("dropped-2.png")
    expect(page.get_by_role("status")).to_have_text("Only the first of 2 files is taken.")
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    # What holds no file leaves the picture as it is.
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{bubbles: true, dataTransfer: new DataTransfer()}))"
    )
    expect(page.get_by_role("status")).to_contain_text("holds no picture file")
    expect(page.locator("#name")).to_have_text("dropped-2.png")


def drop(page: Page, files: list[Path]) -> None:
    """Files from outside, dropped near the foot of the page."""
    session = page.context.new_cdp_session(page)
    names = [str(file) for file in files]
    data = {"items": [], "files": names, "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 300, "y": 500, "data": data}
        session.send("Input.dispatchDragEvent", event)
        if kind == "dragOver":
            expect(page.locator("#drop")).to_have_class("over")
    expect(page.locator("#drop")).not_to_have_class("over")


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
    page.evaluate("navigator.clipboard.writeText('words')")
    page.keyboard.press("Control+v")
    expect(page.get_by_role("status")).to_contain_text("holds no picture file")
    expect(page.locator("#preview")).to_be_visible()


def until_it_sees(page: Page) -> None:
    until(lambda: page.evaluate("document.getElementById('video').videoWidth"))


def test_camera(visit: Visit, site: Site) -> None:
    page = visit(permissions=("camera",))
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.get_by_role("button", name="Take", exact=True)).to_be_focused()
    until_it_sees(page)
    page.keyboard.press("Escape")
    expect(page.locator("#camera")).to_be_hidden()
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_focused()
    assert page.evaluate("document.getElementById('video').srcObject") is None

    page.keyboard.press("Enter")
    until_it_sees(page)
    track = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    page.get_by_role("button", name="Take", exact=True).click()
    expect(page.locator("#name")).to_have_text("camera.png")
    expect(page.locator("#camera")).to_be_hidden()
    assert track.evaluate("(track) => track.readyState") == "ended"
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert uploaded(site).std() > 10


def test_a_camera_that_may_not_be_used(visit: Visit) -> None:
    refuse = (
        "navigator.mediaDevices.getUserMedia = () => "
        "Promise.reject(new DOMException('', 'NotAllowedError'));"
    )
    page = visit(script=refuse)
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("may not use the camera")
    expect(page.locator("#camera")).to_be_hidden()


def test_a_phone_offers_its_own_camera(visit: Visit) -> None:
    page = visit(has_touch=True, is_mobile=True, viewport={"width": 360, "height": 740})
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(picture(5))
    expect(page.locator("#name")).to_have_text("picture-5.png")


def test_words_for_a_screen_reader(visit: Visit) -> None:
    page = visit()
    give(page, picture(1))
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    tree = page.locator("body").aria_snapshot()
    for line in (
        'heading "Drone or bird?" [level=1]',
        'region "Picture"',
        'img "The picture: picture-1.png"',
        'button "Remove"',
        "status: Large QuadCopters.",
        'region "Large QuadCopters: 85.0 %"',
        'list "Probabilities"',
        "listitem: Large QuadCopters 85.0 %",
    ):
        assert line in tree, tree
    assert page.locator("html").get_attribute("lang") == "en"
    for which, role in (("#status", "status"), ("#trouble", "alert")):
        assert page.locator(which).get_attribute("role") == role


def test_a_name_is_only_text(visit: Visit, site: Site) -> None:
    name = "<img src=x onerror=document.title='hurt'>.png"
    hurt = answer(label=name, confidence=0.9, probabilities={name: 0.9, "b": 0.1})
    hurt["model"]["version"] = name
    site.replies += [Reply(body=hurt), Reply(422, error(422, name))]
    page = visit()
    give(page, {**picture(1), "name": name})
    expect(page.locator("#name")).to_have_text(name)
    submit(page)
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#source")).to_contain_text(name)
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text(name)
    assert page.title() == "Drone or bird?" and page.locator("img").count() == 1
    assert "x" not in site.asked


def file(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (file("a.png", b"<html>no picture</html>"), "not a picture of a known kind (JPEG, PNG,"),
        (file("a.png", b""), "The file is empty."),
        (file("a.png", png(90, 90)[:60]), "damaged or cut short"),
        (file("a.png", b"\x89PNG\r\n\x1a\n" + bytes(3_000_001)), "2.9 MB; at most 2.9 MB"),
        (file("a.png", png(2001, 2000)), "2001 x 2000 pixels; at most 4 million"),
        (file("a.png", png(300, 7)), "300 x 7 pixels; each side needs at least 8"),
        (file("a.heic", b"\0\0\0\x18ftypheic" + bytes(50)), "save it as JPEG or PNG"),
    ],
)
def test_what_is_no_picture_is_not_sent(
    visit: Visit, site: Site, given: dict, message: str
) -> None:
    page = visit()
    expect(page.locator("#facts")).to_contain_text("Model")
    page.set_input_files("#file", given)
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    assert not site.uploads
    # The next one is welcome.
    give(page, picture(1))
    expect(page.get_by_role("alert")).to_be_empty()


def test_without_limits_of_a_model(visit: Visit, site: Site, tmp_path: Path) -> None:
    site.facts = [Reply(500, error(500, "No model yet."))]
    page = visit()
    expect(page.locator("#facts")).to_contain_text("does not answer yet")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20 * 2**20))
    page.set_input_files("#file", tmp_path / "a.png")
    expect(page.get_by_role("alert")).to_contain_text("20 MB; at most 20 MB")
    give(page, file("b.png", png(2001, 2000)))
    # The limits come with the first answer, and still in time.
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("2001 x 2000 pixels; at most 4 million")
    assert not site.uploads


def test_what_only_the_service_can_read(visit: Visit, site: Site) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40)).save(buffer, "PPM")
    page = visit()
    give(page, file("a.ppm", buffer.getvalue()))
    expect(page.locator("#unseen")).to_be_visible()
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert site.uploads == [("application/octet-stream", buffer.getvalue())]


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
    site.replies = [Reply(body=answer(1, 0.4)), Reply(400, error(400, "No."))]
    page = visit(color_scheme=scheme)
    give(page, picture(1))
    submit(page)
    expect(page.locator("#unsure")).to_be_visible()
    words = "h1, h2, p:not(:empty), button, .soft, small, li span"
    # WCAG's level AA for text.
    assert min(page.evaluate(CONTRAST, words)) >= 4.5
    red, _, _ = (
        int(part)
        for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).background"))[
            :3
        ]
    )
    assert (red > 200) == (scheme == "light")
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("No.")
    assert min(page.evaluate(CONTRAST, "#trouble p, #ways-out button")) >= 4.5


def test_a_narrow_phone(visit: Visit, site: Site, small_facts: dict) -> None:
    site.with_model(b"", small_facts)
    page = visit(viewport={"width": 360, "height": 640}, permissions=("camera",))

    def fits() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth") <= 360)

    assert fits()
    give(page, {**picture(1, size=(2000, 300)), "name": "w" * 190 + ".png"})
    assert fits()
    submit(page)
    expect(page.locator("#result")).to_be_visible()
    assert fits()
    site.replies = [Reply(422, error(422, "x" * 300))]
    submit(page)
    expect(page.get_by_role("alert")).to_contain_text("xxx")
    assert fits()
    page.get_by_role("button", name="Camera", exact=True).click()
    until_it_sees(page)
    assert fits()


SIZES = [(500, 333), (260, 300), (64, 64), (33, 700), (1, 9), (1023, 1), (90, 116), (90, 117)]


@pytest.mark.parametrize("size", SIZES)
def test_the_resize_is_pillows_to_the_bit(visit: Visit, size: tuple[int, int]) -> None:
    width, height = size
    rgba = np.random.default_rng(7).integers(0, 256, (height, width, 4), np.uint8)
    code = """async ([base64, width, height, side]) => {
        const bytes = Uint8ClampedArray.from(atob(base64), (letter) => letter.charCodeAt(0));
        const { squeezer } = await import('./pixels.js');
        const square = squeezer(width, height, side);
        const half = Math.floor(height / 2);
        square.add(bytes.slice(0, half * width * 4), 0, half);
        square.add(bytes.slice(half * width * 4), half, height - half);
        return [...square.finish()];
    }"""
    page = visit()
    found = page.evaluate(code, [b64encode(rgba).decode(), width, height, SMALL_PX])
    image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    expected = np.asarray(image.resize((SMALL_PX, SMALL_PX), Image.Resampling.BILINEAR))
    assert np.array_equal(np.array(found, np.uint8), expected.ravel())
