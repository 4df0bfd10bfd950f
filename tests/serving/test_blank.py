"""Images that show nothing, and animations that begin with such a frame."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drone.data.prepare.listing import RawFile
from drone.data.prepare.scan import ScanRecord, scan_file
from drone.serving.blank import is_blank
from drone.serving.preprocess import Preprocessing, decode, to_pixels
from tests.serving.test_preprocess import encoded, image

SETTINGS = Preprocessing()
WHITE = Image.new("RGB", (60, 40), "white")
FORMS = ["GIF", "PNG", "WEBP", "TIFF", "AVIF"]


def scan(data: bytes, folder: Path) -> ScanRecord:
    (folder / "image").write_bytes(data)
    return scan_file(RawFile(root=str(folder), path="image", class_name="x"), SETTINGS)


def noisy(colour: tuple[int, int, int], spread: float) -> Image.Image:
    rng = np.random.default_rng(0)
    values = np.array(colour) + rng.normal(0, spread, (300, 400, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGB", (300, 200), "black"), "PNG"),
        encoded(Image.new("L", (300, 200), 90), "JPEG"),
        encoded(Image.new("RGBA", (300, 200), (9, 9, 9, 0)), "PNG"),
        encoded(noisy((120, 180, 230), 2), "JPEG", quality=60),
        encoded(noisy((255, 255, 255), 4), "JPEG", quality=30),
        encoded(Image.fromarray(np.full((40, 40), 200, np.uint16)), "PNG"),
    ],
)
def test_one_colour_is_blank_and_still_gets_pixels(data: bytes, tmp_path: Path) -> None:
    record = scan(data, tmp_path)
    assert (record.problem, record.phash) == ("blank", "") and "one colour" in record.detail
    assert to_pixels(data, SETTINGS).shape == (224, 224, 3)


def test_little_is_not_nothing(tmp_path: Path) -> None:
    sky = noisy((120, 180, 230), 1)
    ImageDraw.Draw(sky).ellipse((200, 150, 208, 154), (60, 60, 70))
    # As bright as each other: only their colours differ.
    equal = Image.new("RGB", (300, 200), (255, 0, 0))
    equal.paste((0, 130, 0), (0, 0, 150, 200))
    for shown in (sky, equal, Image.linear_gradient("L")):
        for form in ("PNG", "JPEG"):
            assert scan(encoded(shown, form), tmp_path).problem == ""


@pytest.mark.parametrize("form", FORMS)
def test_the_first_frame_that_is_not_blank_counts(form: str, tmp_path: Path) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    frames = [WHITE, image(), image().transpose(Image.Transpose.ROTATE_180)]
    for blank in range(3):
        shown = [WHITE] * blank + frames[1:]
        # Frames that are equal would be merged.
        shown = [frame.copy() for frame in shown]
        for number, frame in enumerate(shown[:blank]):
            frame.putpixel((number, 0), (250, 250, 250))
        data = encoded(
            shown[0], form, save_all=True, append_images=shown[1:], duration=50, **options
        )
        found = np.asarray(decode(data, SETTINGS)).astype(int)
        is_lossless = form in ("PNG", "TIFF", "WEBP")
        assert np.abs(found - np.asarray(image())).mean() < (1 if is_lossless else 12)
        record = scan(data, tmp_path)
        assert (record.problem, record.width, record.height) == ("", 60, 40)


@pytest.mark.parametrize("form", FORMS)
def test_an_animation_of_blank_frames_is_blank(form: str, tmp_path: Path) -> None:
    grey = Image.new("RGB", (60, 40), (250, 250, 250))
    data = encoded(WHITE, form, save_all=True, append_images=[grey, WHITE], duration=50)
    assert scan(data, tmp_path).problem == "blank"
    # Beyond the bound.
    frames = [Image.new("RGB", (60, 40), (255 - n % 2, 255, 255)) for n in range(20)]
    data = encoded(frames[0], form, save_all=True, append_images=[*frames[1:], image()])
    assert (decode(data, SETTINGS).getpixel((5, 5))) > (200, 200, 200)


def test_a_later_page_has_its_own_size_within_limits(tmp_path: Path) -> None:
    def pages(*sizes: tuple[int, int]) -> bytes:
        shown = [WHITE, *(image(*size) for size in sizes)]
        return encoded(shown[0], "TIFF", save_all=True, append_images=shown[1:])

    record = scan(pages((300, 200)), tmp_path)
    assert (record.problem, record.width, record.height) == ("", 300, 200)
    assert scan(pages((3000, 2000)), tmp_path).problem == "blank"


def test_damage_behind_a_blank_frame_is_no_loss() -> None:
    data = encoded(WHITE, "GIF", save_all=True, append_images=[image(), WHITE])
    first = decode(encoded(WHITE, "GIF"), SETTINGS)
    for end in range(len(encoded(WHITE, "GIF")) + 10, len(data), 7):
        assert decode(data[:end], SETTINGS).size == first.size


@pytest.mark.real
def test_no_real_image_is_blank(real_images: Path) -> None:
    files = sorted(real_images.glob("*/*"))[::8]
    assert len(files) == 101
    for file in files:
        grey = Image.open(io.BytesIO(file.read_bytes())).convert("L")
        assert not is_blank(grey), file
