"""Odd and hostile images, and the outcome of each.

test_preprocess runs the full matrix. The HTTP, Lambda and package tests send the representatives:
what they add to preprocessing depends on the reason, not on the image.
"""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw


def _drawing(width: int = 120, height: int = 90) -> Image.Image:
    image = Image.new("RGB", (width, height), "skyblue")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), "black")
    return image


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_drawing(), "JPEG", exif=exif)


def _with_alpha() -> bytes:
    image = _drawing()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return _saved(image, "PNG")


def _deep() -> bytes:
    grey = np.asarray(_drawing().convert("L")).astype(np.uint16) * 257
    return _saved(Image.fromarray(grey), "PNG")


def _animated(kind: str) -> bytes:
    frames = [_drawing(), Image.new("RGB", (120, 90), "red")]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _bad_header() -> bytes:
    data = bytearray(_saved(_drawing(), "PNG"))
    data[30] ^= 0xFF
    return bytes(data)


def _bad_middle() -> bytes:
    data = _saved(Image.effect_noise((90, 80), 90), "PNG")
    return data[:500] + bytes(500) + data[1000:]


def _bomb_of_a_header() -> bytes:
    """A PNG of a few bytes whose header claims 50,000 x 50,000 pixels."""
    small = _saved(_drawing(), "PNG")
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def _tiff(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A grey TIFF of 16 x 16 pixels with one tag of the given type, count and value."""
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 256, 277: 1, 278: 16, 279: 256}
    entries = {name: struct.pack("<HHII", name, 4, 1, number) for name, number in tags.items()}
    entries[tag] = struct.pack("<HHI4s", tag, kind, count, value)
    listed = b"".join(entries[name] for name in sorted(entries))
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4)
    return header.ljust(256, b"\0") + bytes(range(256))


@functools.cache
def cases() -> dict[str, tuple[bytes, str | None]]:
    """Returns bytes and the expected `ImageError.reason` by name; None for a valid image."""
    jpeg, png = _saved(_drawing(), "JPEG"), _saved(_drawing(), "PNG")
    return {
        "JPEG": (jpeg, None),
        "PNG": (png, None),
        "WebP": (_saved(_drawing(), "WEBP"), None),
        "GIF": (_saved(_drawing(), "GIF"), None),
        "BMP": (_saved(_drawing(), "BMP"), None),
        "TIFF": (_saved(_drawing(), "TIFF"), None),
        "AVIF": (_saved(_drawing(), "AVIF"), None),
        "CMYK": (_saved(_drawing().convert("CMYK"), "JPEG"), None),
        "16 bit": (_deep(), None),
        "palette": (_saved(_drawing().quantize(8), "PNG"), None),
        "palette with alpha": (_saved(_drawing().quantize(8), "PNG", transparency=0), None),
        "alpha": (_with_alpha(), None),
        "grey with alpha": (_saved(_drawing().convert("LA"), "PNG"), None),
        "EXIF": (_rotated(), None),
        "animated": (_animated("GIF"), None),
        "animated WebP": (_animated("WEBP"), None),
        "1 bit": (_saved(_drawing().convert("1"), "PNG"), None),
        "truncated": (jpeg[: len(jpeg) // 2], "undecodable"),
        "truncated PNG": (png[: len(png) // 2], "undecodable"),
        "header alone": (png[:20], "undecodable"),
        "damaged header": (_bad_header(), "undecodable"),
        "damaged middle": (_bad_middle(), "undecodable"),
        "1 x 1": (_saved(Image.new("RGB", (1, 1)), "PNG"), "too-small"),
        "1 x 60000": (_saved(Image.new("L", (1, 60000)), "PNG"), "too-small"),
        "zero bytes": (b"", "empty"),
        "one byte": (b"\0", "non-media"),
        "zeros": (bytes(5000), "non-media"),
        "bomb": (_saved(Image.new("1", (20_000, 20_000)), "PNG"), "too-large"),
        "bomb of a header": (_bomb_of_a_header(), "too-large"),
        "20000 px wide": (_saved(Image.new("L", (20_000, 100)), "PNG"), None),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "unsupported"),
        "JPEG XL": (b"\xff\x0a" + bytes(99), "unsupported"),
        "HTML named .jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "non-media"),
        "PDF": (b"%PDF-1.7\n" + bytes(99), "unsupported"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported"),
        "zip": (b"PK\x03\x04" + bytes(200), "non-media"),
        "noise": (np.random.default_rng(0).bytes(5000), "non-media"),
        "TIFF by hand": (_tiff(305, 2, 4, b"abc"), None),
        "TIFF with XMP of a number": (_tiff(700, 4, 1, b"\5\0\0\0"), None),
        "TIFF with XMP of two numbers": (_tiff(700, 3, 2, b"\5\0\6\0"), None),
        "TIFF with strips at a text": (_tiff(273, 2, 4, b"abc"), "undecodable"),
        "TIFF with strips at a float": (_tiff(273, 11, 1, struct.pack("<f", 256.5)), "undecodable"),
        "TIFF with strips at a fraction": (_tiff(273, 5, 1, struct.pack("<I", 100)), "undecodable"),
        "float TIFF": (_saved(Image.new("F", (50, 50)), "TIFF"), "unsupported"),
    }


def representatives() -> dict[str, tuple[bytes, int]]:
    """Returns bytes and the expected HTTP status by name: one image for each status."""
    statuses = {
        "JPEG": 200,
        "zero bytes": 400,
        "bomb": 413,
        "HTML named .jpg": 415,
        "truncated": 422,
    }
    return {name: (cases()[name][0], status) for name, status in statuses.items()}
