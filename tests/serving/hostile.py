"""Odd and hostile pictures, and what becomes of each wherever it is sent."""

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
    """A PNG of a few bytes whose header promises 50,000 x 50,000 pixels."""
    small = _saved(_drawing(), "PNG")
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def _tiff(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A grey TIFF of 16 x 16 pixels in which a tag is of a type, count and value of one's own."""
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 256, 277: 1, 278: 16, 279: 256}
    entries = {name: struct.pack("<HHII", name, 4, 1, number) for name, number in tags.items()}
    entries[tag] = struct.pack("<HHI4s", tag, kind, count, value)
    listed = b"".join(entries[name] for name in sorted(entries))
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4)
    return header.ljust(256, b"\0") + bytes(range(256))


def cases() -> dict[str, tuple[bytes, int]]:
    """By name the bytes, and the HTTP status to expect."""
    jpeg, png = _saved(_drawing(), "JPEG"), _saved(_drawing(), "PNG")
    return {
        "JPEG": (jpeg, 200),
        "PNG": (png, 200),
        "WebP": (_saved(_drawing(), "WEBP"), 200),
        "GIF": (_saved(_drawing(), "GIF"), 200),
        "BMP": (_saved(_drawing(), "BMP"), 200),
        "TIFF": (_saved(_drawing(), "TIFF"), 200),
        "AVIF": (_saved(_drawing(), "AVIF"), 200),
        "CMYK": (_saved(_drawing().convert("CMYK"), "JPEG"), 200),
        "16 bit": (_deep(), 200),
        "palette": (_saved(_drawing().quantize(8), "PNG"), 200),
        "palette with alpha": (_saved(_drawing().quantize(8), "PNG", transparency=0), 200),
        "alpha": (_with_alpha(), 200),
        "grey with alpha": (_saved(_drawing().convert("LA"), "PNG"), 200),
        "EXIF": (_rotated(), 200),
        "animated": (_animated("GIF"), 200),
        "animated WebP": (_animated("WEBP"), 200),
        "1 bit": (_saved(_drawing().convert("1"), "PNG"), 200),
        "truncated": (jpeg[: len(jpeg) // 2], 422),
        "truncated PNG": (png[: len(png) // 2], 422),
        "header alone": (png[:20], 422),
        "damaged header": (_bad_header(), 422),
        "damaged middle": (_bad_middle(), 422),
        "1 x 1": (_saved(Image.new("RGB", (1, 1)), "PNG"), 422),
        "1 x 60000": (_saved(Image.new("L", (1, 60000)), "PNG"), 422),
        "zero bytes": (b"", 400),
        "one byte": (b"\0", 415),
        "zeros": (bytes(5000), 415),
        "bomb": (_saved(Image.new("1", (20_000, 20_000)), "PNG"), 413),
        "bomb of a header": (_bomb_of_a_header(), 413),
        "20000 px wide": (_saved(Image.new("L", (20_000, 100)), "PNG"), 200),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415),
        "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(99), 415),
        "HTML named .jpg": (b"<!DOCTYPE html><html><body>404</body></html>", 415),
        "PDF": (b"%PDF-1.7\n" + bytes(99), 415),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
        "zip": (b"PK\x03\x04" + bytes(200), 415),
        "noise": (np.random.default_rng(0).bytes(5000), 415),
        "TIFF by hand": (_tiff(305, 2, 4, b"abc"), 200),
        "TIFF with XMP of a number": (_tiff(700, 4, 1, b"\5\0\0\0"), 422),
        "TIFF with XMP of two numbers": (_tiff(700, 3, 2, b"\5\0\6\0"), 422),
        "TIFF with strips at a text": (_tiff(273, 2, 4, b"abc"), 422),
        "TIFF with strips at a float": (_tiff(273, 11, 1, struct.pack("<f", 256.5)), 422),
        "TIFF with strips at a fraction": (_tiff(273, 5, 1, struct.pack("<I", 100)), 422),
        "float TIFF": (_saved(Image.new("F", (50, 50)), "TIFF"), 415),
    }
