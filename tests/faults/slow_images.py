"""Small files that take a decoder long, although their size in pixels is allowed."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def repeated_scans(side_px: int, num_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated; each costs a pass over all coefficients."""
    data = _saved(Image.new("RGB", (side_px, side_px), "grey"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    normal = data.count(b"\xff\xda")
    return data[:-2] + scan * (num_scans - normal) + data[-2:]


def many_segments(count: int) -> bytes:
    """A JPEG with empty comments before its image."""
    data = _saved(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def padded_marker(count: int) -> bytes:
    """A JPEG with fill bytes before its first marker."""
    data = _saved(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


def png_chunks(kind: bytes, content: bytes, count: int) -> bytes:
    """A PNG with a chunk that is repeated."""
    data = _saved(Image.new("RGB", (64, 64)), "PNG")
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk * count + data[33:]


def profiles(count: int) -> bytes:
    """A PNG with many colour profiles, each of which inflates to just below Pillow's limit."""
    return png_chunks(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20 - 1), 9), count)


def long_data(megabytes: int) -> bytes:
    """A PNG whose data go on after its last row."""
    small = _saved(Image.new("RGB", (64, 64)), "PNG")
    packed = zlib.compress(bytes(megabytes * 10**6), 9)
    idat = struct.pack(">I", len(packed)) + b"IDAT" + packed
    return small[:33] + idat + struct.pack(">I", zlib.crc32(b"IDAT" + packed)) + small[-12:]


def plain_comments(count: int) -> bytes:
    """A plain PPM full of comments, which Pillow removes one by one."""
    return b"P3 64 64 255\n" + b"#\n" * count + b"0 " * (64 * 64 * 3)


def plain_values(side_px: int) -> bytes:
    """A plain PPM, whose values Pillow reads in a loop of Python."""
    return b"P3 %d %d 255\n" % (side_px, side_px) + b"0 " * (side_px * side_px * 3)


def scaled_values(side_px: int) -> bytes:
    """A PPM with an odd maximum, whose values Pillow scales in a loop of Python."""
    return b"P6 %d %d 254\n" % (side_px, side_px) + bytes(side_px * side_px * 3)


def run_lengths(side_px: int) -> bytes:
    """A BMP with 4-bit run lengths, which Pillow unpacks pixel by pixel."""
    runs = b"".join(
        b"\xff\x12" * (side_px // 255) + bytes([side_px % 255, 0x12]) + b"\0\0"
        for _ in range(side_px)
    )
    palette = bytes(64)
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 4, 2, len(runs), 0, 0, 16, 16)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def tiff(tags: dict[int, tuple[int, bytes]], after: bytes = b"") -> bytes:
    """A TIFF of the given tags, each with a type and values; `after` lies at byte 8."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4}
    body = b"II*\0" + struct.pack("<I", 8 + len(after)) + after
    entries, extra = [], b""
    values_at = len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        count = len(values) // sizes[kind]
        if len(values) <= 4:
            entries.append(struct.pack("<HHI", tag, kind, count) + values.ljust(4, b"\0"))
        else:
            entries.append(struct.pack("<HHII", tag, kind, count, values_at + len(extra)))
            extra += values
    return body + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4) + extra


def _short(*values: int) -> tuple[int, bytes]:
    return 3, struct.pack(f"<{len(values)}H", *values)


def _long(*values: int) -> tuple[int, bytes]:
    return 4, struct.pack(f"<{len(values)}I", *values)


def huge_tile(side_px: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one deflated tile of many more."""
    tile = zlib.compress(bytes(side_px * side_px * 3), 9)
    tags = {256: _long(64), 257: _long(64), 258: _short(8, 8, 8), 259: _short(8)}
    tags |= {262: _short(2), 277: _short(3), 322: _long(side_px), 323: _long(side_px)}
    return tiff(tags | {324: _long(8), 325: _long(len(tile))}, tile)


def tiny_tiles(side_px: int) -> bytes:
    """A TIFF of one-pixel tiles."""
    count = side_px * side_px
    tags = {256: _long(side_px), 257: _long(side_px), 258: _short(8), 259: _short(1)}
    tags |= {262: _short(1), 277: _short(1), 322: _long(1), 323: _long(1)}
    tags |= {
        324: (4, np.full(count, 8, "<u4").tobytes()),
        325: (4, np.ones(count, "<u4").tobytes()),
    }
    return tiff(tags, bytes(16))


def tiny_strips(height_px: int) -> bytes:
    """An uncompressed TIFF of one-row strips that all lie at one place."""
    tags = {256: _long(64), 257: _long(height_px), 258: _short(8), 259: _short(1)}
    tags |= {262: _short(1), 277: _short(1), 278: _long(1)}
    offsets = np.full(height_px, 8, "<u4").tobytes()
    return tiff(
        tags | {273: (4, offsets), 279: (4, np.full(height_px, 64, "<u4").tobytes())}, bytes(64)
    )


def scans_in_tiff(side_px: int, num_scans: int) -> bytes:
    """A TIFF that holds a progressive JPEG with repeated scans."""
    inner = repeated_scans(side_px, num_scans)
    tags = {256: _long(side_px), 257: _long(side_px), 258: _short(8, 8, 8), 259: _short(7)}
    tags |= {262: _short(6), 277: _short(3), 278: _long(side_px), 530: _short(2, 2)}
    return tiff(tags | {273: _long(8), 279: _long(len(inner))}, inner)


def gif_blocks(count: int) -> bytes:
    """A GIF with a comment of one-byte blocks."""
    data = _saved(Image.new("P", (64, 64)), "GIF")
    at = data.index(b"\x2c", 13)
    return data[:at] + b"\x21\xfe" + b"\1x" * count + b"\0" + data[at:]


def gif_extensions(count: int) -> bytes:
    """A GIF with extensions of no content."""
    data = _saved(Image.new("P", (64, 64)), "GIF")
    at = data.index(b"\x2c", 13)
    return data[:at] + b"\x21\xfe\0" * count + data[at:]


def gif_frame(side_px: int) -> bytes:
    """A GIF whose first frame is larger than it says, and to be replaced by the background."""
    data = _saved(Image.new("P", (64, 64)), "GIF")
    at = data.index(b"\x2c", 13)
    frame = struct.pack("<BHHHH", 0x2C, 0, 0, side_px, side_px)
    return data[:at] + b"\x21\xf9\4\x08\0\0\0\0" + frame + data[at + 9 :]


@functools.cache
def flat(kind: str, side_px: int, **options: object) -> bytes:
    return _saved(Image.new("RGB", (side_px, side_px), "grey"), kind, **options)


def hidden_segments(count: int) -> bytes:
    """A JPEG without a scan whose long segments hide tables and many empty segments."""
    inner = (b"\xff\xdb\0\x43" + bytes(65) + b"\xff\xfe\0\2" * 16_000)[:65_000]
    return b"\xff\xd8" + (b"\xff\xe5" + struct.pack(">H", len(inner) + 2) + inner) * count
