"""Damage beside the pixels costs no image, in any format."""

import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from drone.errors import ImageError
from drone.serving.metadata import without_metadata
from drone.serving.preprocess import Preprocessing, decode, open_header
from tests.serving.test_preprocess import chunk, encoded, image

SETTINGS = Preprocessing()
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NOISE = np.random.default_rng(0).bytes(3_000_000)
JPEG, PNG = encoded(image(), "JPEG"), encoded(image(), "PNG")


def exif(orientation: int = 6) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x0110] = orientation, "Maker", "Model 3"
    return tags


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, SETTINGS))


def segment(code: int, content: bytes) -> bytes:
    return b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content


def in_jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def bad_checksum(kind: bytes, content: bytes) -> bytes:
    return chunk(kind, content)[:-4] + b"\1\2\3\4"


def in_png(*chunks: bytes, at: int = 33) -> bytes:
    return PNG[:at] + b"".join(chunks) + PNG[at:]


BESIDE_JPEG = {
    "EXIF of noise": segment(0xE1, b"Exif\0\0" + bytes(range(200))),
    "EXIF cut short": segment(0xE1, exif().tobytes()[:14]),
    "profile without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "profile of wrong numbers": segment(0xE2, b"ICC_PROFILE\0\7\2" + PROFILE),
    "images of nowhere": segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + bytes(range(99))),
    "many images": segment(
        0xE2,
        b"MPF\0II*\0\x08\0\0\0\2\0"
        + struct.pack("<HHII", 0xB001, 4, 1, 9)
        + struct.pack("<HHII", 0xB002, 7, 16, 0)
        + bytes(4),
    ),
    "JFIF cut short": segment(0xE0, b"JFIF\0"),
    "Adobe cut short": segment(0xEE, b"Adobe"),
    "Photoshop cut short": segment(0xED, b"Photoshop 3.0\x008BIM"),
    "XMP of noise": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(range(255))),
    "a length that is too small": segment(0xE5, b"abcd") + b"\xff\x12\x34 leftover \xff\xff",
    "comments": segment(0xFE, b"\xff\xda" * 30) * 50,
}
BESIDE_PNG = {
    "large profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(NOISE)),
    "profile of noise": chunk(b"iCCP", b"no end"),
    "large text": chunk(b"zTXt", b"x\0\0" + zlib.compress(b"word " * 10**6)),
    "many texts": chunk(b"tEXt", b"x\0" + b"word " * 10**5) * 100,
    "text of an unknown compression": chunk(b"zTXt", b"x\0\7abc"),
    "text with a bad checksum": bad_checksum(b"tEXt", b"x\0y"),
    "resolution with a bad checksum": bad_checksum(b"pHYs", bytes(9)),
    "resolution cut short": chunk(b"pHYs", bytes(3)),
    "EXIF with a bad checksum": bad_checksum(b"eXIf", exif().tobytes()[6:]),
    "transparency with a bad checksum": bad_checksum(b"tRNS", bytes(6)),
    "transparency cut short": chunk(b"tRNS", b"\0"),
    "palette that is not used": bad_checksum(b"PLTE", bytes(9)),
    "animation out of order": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 60, 40, 0, 0, 1, 10, 0, 0)),
    "animation with a bad checksum": bad_checksum(b"acTL", struct.pack(">II", 2, 0)),
    "private": bad_checksum(b"prVt", bytes(99)),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE_JPEG)
def test_damage_beside_a_jpeg_is_no_loss(name: str) -> None:
    np.testing.assert_array_equal(pixels(in_jpeg(BESIDE_JPEG[name])), pixels(JPEG))


@pytest.mark.parametrize("name", BESIDE_PNG)
def test_damage_beside_a_png_is_no_loss(name: str) -> None:
    np.testing.assert_array_equal(pixels(in_png(BESIDE_PNG[name])), pixels(PNG))
    if not name.startswith(("palette", "animation", "transparency")):
        after = in_png(BESIDE_PNG[name], at=len(PNG) - 12)
        np.testing.assert_array_equal(pixels(after), pixels(PNG))


@pytest.mark.parametrize("wrong", [-9, 7, 40, 90, 300, 20_000])
def test_a_wrong_length_beside_a_jpeg_is_no_loss(wrong: int) -> None:
    preview = encoded(image().resize((16, 16)), "JPEG")
    content = exif(1).tobytes() + preview + bytes(40)
    length = struct.pack(">H", len(content) + 2 + wrong)
    data = JPEG[:2] + b"\xff\xe1" + length + content + JPEG[2:]
    np.testing.assert_array_equal(pixels(data), pixels(JPEG))


def test_what_follows_the_image_is_no_loss() -> None:
    for data in (PNG[:-12], PNG[:-12] + b"\0\0\0\x99tEXtcut", PNG + b"junk", PNG[:-12] + b"\0"):
        np.testing.assert_array_equal(pixels(data), pixels(PNG))
    for data in (JPEG + b"junk", JPEG + JPEG[:300], JPEG + b"\xff\xe1\xff\xff"):
        np.testing.assert_array_equal(pixels(data), pixels(JPEG))


def webp_chunks(data: bytes, *extra: tuple[bytes, bytes], flags: int = 0x2C) -> bytes:
    """A WebP whose header announces profile, EXIF and XMP, with chunks before and after."""
    vp8x = b"VP8X" + struct.pack("<II", 10, flags) + bytes([59, 0, 0, 39, 0, 0])
    parts = (
        vp8x
        + data[12:]
        + b"".join(kind + struct.pack("<I", len(content)) + content for kind, content in extra)
    )
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts


def test_damage_beside_a_webp_is_no_loss() -> None:
    plain = encoded(image(), "WEBP")
    for data in (
        webp_chunks(plain),
        webp_chunks(plain, (b"EXIF", b"\1\2\3\4")),
        webp_chunks(plain, (b"EXIF", b"abcd"))[:-6],
        webp_chunks(plain, (b"XMP ", b"abcd"), (b"junk", bytes(8))),
        plain[:4] + b"\xff\xff\xff\x7f" + plain[8:],
    ):
        np.testing.assert_array_equal(pixels(data), pixels(plain))


def gif_with(extension: bytes) -> tuple[bytes, bytes]:
    plain = encoded(image().quantize(16), "GIF")
    at = plain.index(b"\x2c", 13 + 48)
    return plain[:at] + extension + plain[at:], plain


@pytest.mark.parametrize(
    "extension",
    [
        b"\x21\xfe" + b"\xffx" * 128 * 40 + b"\0",
        b"\x21\xf9\1\1\0",
        b"\x21\xff\0",
        b"\x21\1\0",
        b"\x21\xff\x0bNETSCAPE2.0\0",
    ],
)
def test_extensions_of_a_gif_are_no_loss(extension: bytes) -> None:
    data, plain = gif_with(extension)
    np.testing.assert_array_equal(pixels(data), pixels(plain))


@pytest.mark.parametrize(
    "tag",
    [
        (700, 4, 1, b"\5\0\0\0"),
        (34675, 7, 10**6, b"\xff\xff\0\0"),
        (65000, 99, 3, b"abcd"),
        (34665, 4, 1, b"\xff\xff\xff\0"),
        (37724, 5, 1, b"\xff\xff\xff\0"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_private_tags_of_a_tiff_are_no_loss(tag: tuple[int, int, int, bytes], order: str) -> None:
    def tiff(*extra: tuple[int, int, int, bytes]) -> bytes:
        tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 512, 277: 1, 278: 16, 279: 256}
        entries = [struct.pack(f"{order}HHII", name, 4, 1, value) for name, value in tags.items()]
        entries += [struct.pack(f"{order}HHI4s", *values) for values in extra]
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
        return (head + b"".join(entries) + bytes(4)).ljust(512, b"\0") + bytes(range(256))

    np.testing.assert_array_equal(pixels(tiff(tag)), pixels(tiff()))
    assert len(np.unique(pixels(tiff()))) == 256


def test_damaged_exif_of_an_avif_is_no_loss() -> None:
    data = encoded(image(), "AVIF", exif=exif(1))
    assert data.count(b"Maker") == 1
    damaged = re.sub(rb"(MM\0\*|II\*\0)", b"XXXX", data)
    assert damaged != data
    np.testing.assert_array_equal(pixels(damaged), pixels(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_and_camera_stay(form: str) -> None:
    data = encoded(image(), form, exif=exif(), icc_profile=PROFILE)
    header = open_header(data, SETTINGS)
    assert dict(header.getexif()).items() >= dict(exif()).items()
    assert len(without_metadata(data)) <= len(data)
    if form != "TIFF":
        assert b"icc" not in str(header.info).encode()
    assert decode(data, SETTINGS).size == (40, 60)


def test_transparency_and_animations_stay() -> None:
    clear = image().convert("RGBA")
    clear.putalpha(0)
    for form in ("PNG", "WEBP"):
        assert (pixels(encoded(clear, form, exact=True)) == 255).all()
    frames = [image(), image().transpose(Image.Transpose.ROTATE_180)]
    for form in ("PNG", "WEBP", "GIF", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        again = Image.open(io.BytesIO(without_metadata(data)))
        assert again.n_frames == 2
        again.seek(1)
        original = Image.open(io.BytesIO(data))
        original.seek(1)
        assert again.convert("RGB").tobytes() == original.convert("RGB").tobytes()


MAKERS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: in_jpeg(*BESIDE_JPEG.values(), segment(0xE1, exif().tobytes())),
    "PNG": lambda: in_png(chunk(b"eXIf", exif().tobytes()[6:])),
    "WEBP": lambda: encoded(image(), "WEBP", exif=exif(), icc_profile=PROFILE),
    "GIF": lambda: gif_with(b"\x21\xf9\4\x08\0\0\0\0")[0],
    "TIFF": lambda: encoded(image(), "TIFF", exif=exif(), icc_profile=PROFILE),
    "AVIF": lambda: encoded(image(), "AVIF", exif=exif()),
}  # fmt: skip


@pytest.mark.parametrize("form", MAKERS)
def test_whatever_bytes_change_it_ends_in_pixels_or_an_image_error(form: str) -> None:
    data, rng = MAKERS[form](), np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):
            changed[int(rng.integers(min(len(changed), 1500)))] = int(rng.integers(256))
        try:
            decode(bytes(changed[: int(rng.integers(20, len(changed) + 1))]), SETTINGS)
        except ImageError:
            continue
