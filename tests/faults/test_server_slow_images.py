"""Small files that would keep a decoder busy: rejected in a moment, wherever images are decoded."""

import io
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps

from drone.collect.download import _check_image
from drone.collect.fetch import FetchedFile
from drone.collect.settings import FetchSettings
from drone.data.prepare.listing import RawFile
from drone.data.prepare.scan import scan_file
from drone.errors import ImageError
from drone.serving.preprocess import Preprocessing, decode, to_pixels
from tests.faults import slow_images
from tests.serving.lambda_events import CONTEXT, content, rest
from tests.serving.server import served

pytestmark = pytest.mark.slow

SCANS = slow_images.repeated_scans(1500, 400)
ZTXT = b"x\0\0" + zlib.compress(b"word " * 1000)
SLOW = {
    "400 scans": SCANS,
    "60 scans of 20 million pixels": slow_images.repeated_scans(4500, 60),
    "scans inside a TIFF": slow_images.scans_in_tiff(2000, 90),
    "JPEG of empty segments": slow_images.many_segments(75_000),
    "JPEG of fill bytes": slow_images.padded_marker(300_000),
    "JPEG of hidden segments": slow_images.hidden_segments(150),
    "PNG of chunks": slow_images.png_chunks(b"abCd", b"", 25_000),
    "PPM of comments": slow_images.plain_comments(400_000),
    "plain PPM": slow_images.plain_values(1100),
    "PPM with an odd maximum": slow_images.scaled_values(1200),
    "BMP of run lengths": slow_images.run_lengths(7000),
    "GIF of tiny blocks": slow_images.gif_blocks(2_000_000),
    "GIF of empty extensions": slow_images.gif_extensions(2_000_000),
    "GIF with a huge frame": slow_images.gif_frame(40_000),
    "TIFF with a huge tile": slow_images.huge_tile(8000),
    "TIFF of tiny tiles": slow_images.tiny_tiles(300),
    "TIFF of tiny strips": slow_images.tiny_strips(300_000),
}
ORDINARY = {
    "progressive": slow_images.repeated_scans(800, 10),
    "as many scans as an optimiser may write": slow_images.repeated_scans(800, 60),
    "JPEG with 100 segments": slow_images.many_segments(100),
    "PNG with 100 texts": slow_images.png_chunks(b"zTXt", ZTXT, 100),
    "PNG of colour profiles": slow_images.profiles(300),
    "plain PPM": slow_images.plain_values(64),
    "PPM with an odd maximum": slow_images.scaled_values(64),
    "BMP of run lengths": slow_images.run_lengths(300),
    "tiled TIFF": slow_images.huge_tile(256),
    "TIFF of strips": slow_images.tiny_strips(600),
    "GIF with a long comment": slow_images.gif_blocks(5000),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_file_is_rejected_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(ImageError) as raised:
        to_pixels(SLOW[name], Preprocessing())
    assert raised.value.reason == "undecodable"
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_file_is_decoded(name: str) -> None:
    assert to_pixels(ORDINARY[name], Preprocessing()).shape == (224, 224, 3)


def test_markers_that_are_not_scans_do_not_count() -> None:
    plain = slow_images.flat("JPEG", 64)
    comment = b"\xff\xfe" + (2 + 600).to_bytes(2, "big") + b"\xff\xda" * 300
    for data in (plain[:2] + comment + plain[2:], plain + b"\xff\xda" * 300):
        np.testing.assert_array_equal(
            np.asarray(decode(data, Preprocessing())), np.asarray(decode(plain, Preprocessing()))
        )


def test_the_message_names_the_cause() -> None:
    with pytest.raises(ImageError, match=r"long to decode: it has more than 100 scans of 2\.2 mi"):
        to_pixels(SCANS, Preprocessing())
    with pytest.raises(ImageError, match=r"this rare encoding is limited to 5 MiB .* as PNG\."):
        to_pixels(SLOW["plain PPM"], Preprocessing())


def scan(data: bytes, folder: Path) -> str:
    (folder / "image.jpg").write_bytes(data)
    file = RawFile(root=str(folder), path="image.jpg", class_name="Birds")
    return scan_file(file, Preprocessing()).problem


def collect(data: bytes, _: Path) -> str:
    file = FetchedFile(data=data, final_url="http://x.org/a.jpg", content_type="image/jpeg")
    return _check_image(file, FetchSettings()).reason


@pytest.mark.parametrize("way", [scan, collect])
def test_prepare_and_collect_reject_it_too(
    way: Callable[[bytes, Path], str], tmp_path: Path
) -> None:
    start = time.process_time()
    assert way(SCANS, tmp_path) == "undecodable"
    assert time.process_time() - start < 0.3


def test_the_server_answers_422_and_ends_when_told(linear: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--onnx", linear) as server:
        start = time.monotonic()
        for name in ("400 scans", "PNG of chunks", "PPM of comments"):
            status, _, body = server.request("POST", "/predict", SLOW[name])
            assert status == 422, body
            assert json.loads(body)["error"]["problem"] == "undecodable"
        assert time.monotonic() - start < 5


def test_the_function_answers_422(function: ModuleType) -> None:
    start = time.process_time()
    result = function.handler(rest("POST", "/predict", "image/jpeg", SCANS), CONTEXT)
    assert result["statusCode"] == 422
    assert "scans" in content(result)["error"]["message"]
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("orientation", range(10))
def test_turning_and_compositing_in_bands_give_what_pillow_gives(orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    image = Image.fromarray(rng.integers(0, 256, (700, 90, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = ImageOps.exif_transpose(Image.open(buffer))
    white = Image.new("RGBA", turned.size, "white")
    expected = np.asarray(Image.alpha_composite(white, turned).convert("RGB"))
    np.testing.assert_array_equal(decode(buffer.getvalue(), Preprocessing()), expected)
