"""From bytes to pixels. The full matrix of odd and hostile images is tested here."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from drone.errors import ConfigError, ImageError
from drone.serving.preprocess import (
    Preprocessing,
    decode,
    decode_input,
    open_header,
    resize,
    to_pixels,
)
from tests.serving import hostile

SETTINGS = Preprocessing()


def image(width: int = 60, height: int = 40) -> Image.Image:
    """Red on the left, blue on the right, darker towards the bottom."""
    shade = np.linspace(255, 100, height, dtype=np.uint8)[:, None].repeat(width, axis=1)
    left = np.arange(width) < width // 2
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, left, 0] = shade[:, left]
    pixels[:, ~left, 2] = shade[:, ~left]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG made by hand, so that its header can contradict its data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "AVIF", "JPEG"])
def test_every_format_gives_the_same_image(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    found = to_pixels(encoded(image(), form, **options), SETTINGS).astype(int)
    expected = to_pixels(encoded(image(), "PNG"), SETTINGS).astype(int)
    assert found.shape == (224, 224, 3)
    assert np.abs(found - expected).mean() < (8 if form in ("JPEG", "AVIF", "GIF") else 0.01)


def test_exif_rotation_is_undone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = image().transpose(Image.Transpose.ROTATE_90)
    found = decode(encoded(stored, "PNG", exif=exif), SETTINGS)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image()))


def test_damaged_exif_is_no_loss() -> None:
    data = encoded(image(), "JPEG")
    broken = b"Exif\x00\x00II*\x00\xff\xff\xff\x7f"
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    found = decode(data[:2] + segment + data[2:], SETTINGS)
    assert found.size == (60, 40)


def test_alpha_lies_over_white() -> None:
    clear = image().convert("RGBA")
    clear.putalpha(0)
    assert (to_pixels(encoded(clear, "PNG"), SETTINGS) == 255).all()
    palette = image().quantize(4)
    transparent = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (to_pixels(transparent, SETTINGS)[0, 0] > 240).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "YCbCr"])
def test_every_mode_is_read(mode: str) -> None:
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    found = decode(encoded(image().convert(mode), form), SETTINGS)
    assert found.mode == "RGB"
    assert np.asarray(found).std() > 15


def test_16_bit_grey_is_not_white() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, axis=0)
    found = np.asarray(decode(encoded(Image.fromarray(ramp), "PNG"), SETTINGS))
    np.testing.assert_array_equal(found[0, :, 0], (ramp[0] >> 8).astype(np.uint8))
    dark = Image.fromarray(np.full((64, 64), 200, np.uint16))  # Below 256 of 65,536: near black.
    assert np.asarray(decode(encoded(dark, "PNG"), SETTINGS)).max() == 0


def test_only_the_first_frame_counts() -> None:
    frames = [image(), Image.new("RGB", (60, 40), "lime")]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50)
        assert np.asarray(decode(data, SETTINGS))[..., 1].mean() < 60


HUGE_ZTXT = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"A" * 200_000_000, 9))
CASES = {
    **hostile.cases(),
    "text": (b"hello world" * 50, "non-media"),
    "truncated WebP": (encoded(image(), "WEBP")[:60], "undecodable"),
    "GIF without a frame": (encoded(image(), "GIF")[:20], "undecodable"),
    "just above the limit": (png(9_000, 9_000, 1, 0, bytes(1126 * 9_000)), "too-large"),
    "bomb in a text chunk": (png(9, 9, 8, 2, bytes(28 * 9), HUGE_ZTXT), None),
}


@pytest.mark.parametrize("name", CASES)
def test_every_image_gives_pixels_or_the_reason_why_not(name: str) -> None:
    data, reason = CASES[name]
    if reason is None:
        pixels = to_pixels(data, SETTINGS)
        assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8
        return
    with pytest.raises(ImageError) as raised:
        to_pixels(data, SETTINGS)
    assert raised.value.reason == reason
    assert raised.value.reason in ImageError.REASONS
    assert str(raised.value).endswith(".")


def test_an_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("too-small", "One pixel.")))
    assert (error.reason, str(error)) == ("too-small", "One pixel.")


def test_a_file_that_is_too_long_is_not_decoded() -> None:
    with pytest.raises(ImageError, match=r"has 0.1 MiB; the limit is 0.000953674 MiB"):
        to_pixels(bytes(100_000), Preprocessing(max_bytes=1000))


def _photograph(side_px: int) -> Image.Image:
    """An image with detail of every size, smooth enough for JPEG."""
    noise = Image.effect_noise((side_px, side_px), 90).filter(ImageFilter.GaussianBlur(3))
    ramp = Image.linear_gradient("L").resize(noise.size)
    return Image.merge("RGB", (noise, ramp, Image.blend(noise, ramp, 0.5)))


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_which_changes_next_to_nothing() -> None:
    photograph = encoded(_photograph(1400), "JPEG")
    settings = Preprocessing(side_px=224)
    assert decode_input(open_header(photograph, settings), settings).size == (700, 700)
    whole = resize(decode(photograph, settings), settings).astype(int)
    assert np.abs(to_pixels(photograph, settings) - whole).mean() < 1


@pytest.mark.parametrize(
    ("resampling", "sides_px", "side_px"),
    [("bilinear", (224, 448), 1400), ("nearest", (), 1400), ("bicubic", (), 1200)],
)
def test_an_image_is_decoded_whole_where_its_own_pixels_count(
    resampling: str, sides_px: tuple[int, ...], side_px: int
) -> None:
    photograph = encoded(_photograph(side_px), "JPEG")
    settings = Preprocessing(side_px=224, resampling=resampling)
    image = decode_input(open_header(photograph, settings), settings, sides_px)
    assert image.size == (side_px, side_px)


def test_settings_survive_json_and_name_what_is_wrong() -> None:
    settings = Preprocessing(side_px=96, resampling="bicubic")
    assert Preprocessing.from_json(settings.to_json()) == settings
    with pytest.raises(ConfigError, match="side_px is 0"):
        Preprocessing(side_px=0)
    with pytest.raises(ConfigError, match="resampling is 'best'; allowed are bilinear"):
        Preprocessing(resampling="best")
