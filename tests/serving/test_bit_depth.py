"""16-bit files are seen whatever part of their range they use."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from drone.data.prepare.listing import RawFile
from drone.data.prepare.scan import scan_file
from drone.serving.bit_depth import to_8_bits
from drone.serving.preprocess import Preprocessing, decode
from tests.serving.test_preprocess import encoded, image, png

SETTINGS = Preprocessing()
GREY = np.asarray(image().convert("L"))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, SETTINGS))


def grey(values: np.ndarray, form: str = "PNG") -> np.ndarray:
    return pixels(encoded(Image.fromarray(values.astype(np.uint16)), form))[..., 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_each_depth_of_a_camera_gives_the_image_of_8_bits(form: str, bits: int) -> None:
    deep = GREY.astype(np.uint16) << (bits - 8)
    np.testing.assert_array_equal(grey(deep, form), GREY)


@pytest.mark.parametrize("low", [2000, 7400, 29_000])
def test_a_band_is_stretched(low: int) -> None:
    ramp = np.linspace(low, low + 500, 3000).reshape(50, 60)
    found = grey(ramp)
    assert found.min() == 0 and found.max() == 255 and abs(found.mean() - 127) < 2


def test_dead_pixels_do_not_hide_a_band() -> None:
    ramp = np.linspace(7400, 7900, 60_000).reshape(200, 300)
    ramp[0, :3], ramp[9, 9] = 65_535, 0
    assert np.percentile(grey(ramp), [5, 95]).round().tolist() == [12, 242]


def test_the_full_range_is_left_as_it_is() -> None:
    for top in (20_000, 65_535):
        ramp = np.linspace(0, top, 4096).astype(np.uint16).reshape(64, 64)
        np.testing.assert_array_equal(grey(ramp), ramp >> 8)
    bright = np.linspace(40_000, 65_535, 4096).astype(np.uint16).reshape(64, 64)
    np.testing.assert_array_equal(grey(bright), bright >> 8)


def test_one_value_and_noise_stay_one_colour() -> None:
    assert np.ptp(grey(np.full((40, 40), 200))) == 0
    assert np.ptp(grey(np.random.default_rng(0).integers(100, 110, (40, 40)))) == 0


@pytest.mark.parametrize(("bits", "is_dark"), [(12, False), (12, True), (16, False)])
def test_a_pgm_says_its_depth(bits: int, is_dark: bool) -> None:
    deep = (GREY.astype(int) << (bits - 8)) // (2 if is_dark else 1)
    for kind in (b"P5", b"P2"):
        text = b" ".join(b"%d" % value for value in deep.ravel())
        body = deep.astype(">u2").tobytes() if kind == b"P5" else text
        found = pixels(b"%s 60 40 %d\n" % (kind, (1 << bits) - 1) + body)[..., 0].astype(int)
        assert abs(found - deep / (1 << bits - 8)).max() <= 1


def test_a_tiff_of_12_bits() -> None:
    deep = GREY.astype(np.uint16) << 4
    pairs = deep.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    tags = {256: 60, 257: 40, 258: 12, 259: 1, 262: 1, 273: 256, 277: 1, 278: 40, 279: 3600}
    entries = b"".join(struct.pack("<HHII", name, 4, 1, value) for name, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    data = head.ljust(256, b"\0") + packed.astype(np.uint8).tobytes()
    np.testing.assert_array_equal(pixels(data)[..., 0], GREY)


def colour_png(values: np.ndarray, colour: int = 2) -> bytes:
    height, width, channels = values.shape
    rows = np.zeros((height, 1 + 2 * channels * width), np.uint8)
    rows[:, 1:] = values.astype(">u2").view(np.uint8).reshape(height, -1)
    return png(width, height, 16, colour, rows.tobytes())


def colour_tiff(values: np.ndarray, order: str, compression: int) -> bytes:
    height, width, _ = values.shape
    body = values.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if compression == 8 else body
    tags = {256: width, 257: height, 258: 200, 259: compression, 262: 2, 273: 256, 277: 3}
    tags |= {278: height, 279: len(body)}
    entries = b"".join(
        struct.pack(f"{order}HHII", name, 4, 3 if name == 258 else 1, value)
        for name, value in tags.items()
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + struct.pack(f"{order}III", 16, 16, 16).ljust(56, b"\0") + body


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_16_bits(bits: int) -> None:
    colour = np.asarray(image())
    deep = colour.astype(np.uint16) << (bits - 8)
    np.testing.assert_array_equal(pixels(colour_png(deep)), colour)
    alpha = np.full((40, 60, 1), 65_535, np.uint16)
    np.testing.assert_array_equal(pixels(colour_png(np.concatenate([deep, alpha], 2), 6)), colour)
    for order in "<>":
        for compression in (1, 8):
            np.testing.assert_array_equal(pixels(colour_tiff(deep, order, compression)), colour)


def test_what_is_not_16_bits() -> None:
    assert to_8_bits(np.arange(256, dtype=np.int32)).tolist() == list(range(256))
    assert to_8_bits(np.linspace(-500, 500, 101).astype(np.int32))[50] == 127
    assert to_8_bits(np.linspace(0, 2**30, 101).astype(np.int32))[50] == 127


def test_the_scan_sees_what_is_packed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) << 4).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    record = scan_file(RawFile(root=str(tmp_path), path="a.png", class_name="x"), SETTINGS)
    assert record.mode == "I;16" and record.brightness == pytest.approx(GREY.mean() / 255, abs=0.01)
