"""Files of known formats that are not read say what they are, and what to do."""

import io
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drone.collect.download import _check_image
from drone.collect.fetch import FetchedFile
from drone.collect.settings import FetchSettings
from drone.data.prepare.listing import RawFile
from drone.data.prepare.scan import scan_file
from drone.errors import ImageError
from drone.serving import preprocess
from drone.serving.preprocess import Preprocessing, decode, decode_reduced, open_header
from tests.serving.test_preprocess import encoded, image


def container(brand: bytes, *compatible: bytes) -> bytes:
    brands = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(brands) + 8) + b"ftyp" + brands + bytes(99)


def tiff(**tags: int) -> bytes:
    """A small TIFF with further tags, as cameras write them."""
    numbers = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 256, 277: 1, 278: 16, 279: 256}
    numbers |= {int(name[1:]): value for name, value in tags.items()}
    listed = b"".join(struct.pack("<HHII", n, 4, 1, v) for n, v in sorted(numbers.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(numbers)) + listed + bytes(4)
    sub = struct.pack("<HHHII", 1, 262, 3, 1, 32803) + bytes(4)
    return head.ljust(256, b"\0") + bytes(range(256)) + sub


SVG = b"\xef\xbb\xbf <?xml version='1.0'?>\n<!-- a --><!DOCTYPE svg [<!ENTITY a 'b'>]>\n<svg>"
JPEG = encoded(image(), "JPEG")
HEIC = container(b"heic", b"mif1", b"heic")
FILES = {
    "JPEG XL": (b"\xff\x0a" + bytes(50), "djxl"),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "djxl"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "magick"),
    "JPEG 2000 codestream": (encoded(image(), "JPEG2000")[:400], "magick"),
    "Photoshop": (b"8BPS\0\1" + bytes(50), "magick"),
    "SVG": (SVG, "rsvg"),
    "PDF": (b"%PDF-1.7\n", "pdftoppm"),
    "PostScript": (b"%!PS-Adobe-3.0\n", "gs "),
    "camera raw of Canon": (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "dcraw"),
    "camera raw of Canon, new": (container(b"crx "), "dcraw"),
    "camera raw of Fuji": (b"FUJIFILMCCD-RAW 0201" + bytes(50), "dcraw"),
    "camera raw, DNG": (tiff(t50706=1), "dcraw"),
    "camera raw of Nikon": (tiff(t330=512), "dcraw"),
    "12-bit JPEG": (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "magick"),
    "lossless JPEG": (JPEG.replace(b"\xff\xc0", b"\xff\xc3"), "magick"),
    "video, MP4": (container(b"isom", b"mp41"), "ffmpeg"),
    "video, QuickTime": (container(b"qt  "), "ffmpeg"),
    "video, WebM": (b"\x1a\x45\xdf\xa3" + bytes(50), "ffmpeg"),
    "video, AVI": (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "ffmpeg"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_format_and_a_way_to_convert_it_are_named(name: str) -> None:
    data, command = FILES[name]
    with pytest.raises(ImageError) as raised:
        decode(data, Preprocessing())
    assert raised.value.reason == "unsupported"
    shown = re.split(",| in | of | codestream", name)[0]
    shown = f"{shown[0].upper()}{shown[1:]} files are not supported"
    assert str(raised.value).startswith(shown)
    assert f"`{command}" in str(raised.value) and str(raised.value).endswith(".")


def test_text_is_no_image() -> None:
    for text in (b"<html><svg></svg>", b"The wide world", b"an <svg>", b"<!-- " * 50_000):
        start = time.process_time()
        with pytest.raises(ImageError) as raised:
            decode(text, Preprocessing())
        assert raised.value.reason == "non-media"
        assert time.process_time() - start < 0.2


def test_ordinary_tiffs_are_no_raw_files() -> None:
    assert decode(tiff(), Preprocessing()).size == (16, 16)
    assert decode(tiff(t330=9), Preprocessing()).size == (16, 16)


def test_a_tiff_of_a_rare_kind_is_whole_but_not_supported() -> None:
    for tags in ({"t258": 10}, {"t259": 34887}, {"t258": 16, "t339": 3}):
        with pytest.raises(ImageError, match=r"TIFF files of this kind \(.*magick") as raised:
            decode(tiff(**tags), Preprocessing())
        assert raised.value.reason == "unsupported"


def test_floating_point_values_name_a_way_out() -> None:
    with pytest.raises(ImageError, match=r"mode F are not supported.*-depth 8") as raised:
        decode(encoded(Image.new("F", (50, 50)), "TIFF"), Preprocessing())
    assert raised.value.reason == "unsupported"


def test_prepare_and_collect_name_it_too(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES["JPEG XL"][0])
    record = scan_file(RawFile(root=str(tmp_path), path="a.jpg", class_name="x"), Preprocessing())
    fetched = FetchedFile(data=FILES["JPEG XL"][0], final_url="", content_type="")
    outcome = _check_image(fetched, FetchSettings())
    for reason, detail in (record.problem, record.detail), (outcome.reason, outcome.detail):
        assert reason == "unsupported" and "JPEG XL" in detail and "djxl" in detail


def test_heic_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_heif_plugin", lambda: None)
    for data in (HEIC, container(b"mif1", b"heic"), container(b"heix")):
        with pytest.raises(ImageError, match=r"HEIC .*pip install pillow-heif") as raised:
            decode(data, Preprocessing())
        assert raised.value.reason == "unsupported"


def test_heic_with_the_package() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = image(300, 200).transpose(Image.Transpose.ROTATE_90)
    pillow_heif.from_pillow(stored).save(buffer, exif=exif.tobytes(), quality=95)
    data = buffer.getvalue()
    found = np.asarray(decode(data, Preprocessing())).astype(int)
    assert found.shape == (200, 300, 3)
    assert np.abs(found - np.asarray(image(300, 200))).mean() < 8
    assert min(decode_reduced(open_header(data, Preprocessing()), 64).size) >= 64
    with pytest.raises(ImageError, match="has 300 x 200 pixels|has 200 x 300 pixels") as raised:
        decode(data, Preprocessing(max_pixels=50_000))
    assert raised.value.reason == "too-large"
    for bad in (data[:200], HEIC):
        with pytest.raises(ImageError) as raised:
            decode(bad, Preprocessing())
        assert raised.value.reason == "undecodable"
