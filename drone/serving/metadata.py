"""Removes from an image file all that its pixels do not depend on.

Colour profiles, texts, previews and the like are ignored in training and serving. Without them,
damage there costs no image, and no decoder spends time or memory on them. What cannot be followed
is passed on as it is, for Pillow to judge.
"""

import contextlib
import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import ExifTags, Image

from drone.serving.gif_blocks import gif_blocks
from drone.serving.jpeg_segments import END, FRAMES, SCAN, Segment, segments
from drone.serving.tiff_directories import Directory, directories

DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    MemoryError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # Raised by the AVIF reader.
    # Raised for a TIFF or EXIF tag whose type is not the one that Pillow expects.
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What Pillow raises for damaged images and damaged EXIF."""

_EXIF_TEXTS = (ExifTags.Base.Make, ExifTags.Base.Model)

_TIFF_TAGS = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 271, 272, 273, 274, 277, 278, 279, 284, 292, 293),
    *(317, 320, 322, 323, 324, 325, 332, 334, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
"""Tags that decoding needs, orientation and camera: TIFF 6.0 and its supplements."""

_GRAPHIC_CONTROL = 0xF9
"""Label of the extension of a GIF that has a frame's transparency."""

_MAX_TABLES, _MAX_SEGMENTS = 50, 100_000
"""Places where the image of a JPEG is looked for that a damaged length hides, and segments there;
segments in which its end is looked for."""

_MAX_PAGE_PIXELS = 2**20
"""Pixels of a TIFF's further pages, where the first has fewer. The first decides on the limits."""


def without_metadata(data: bytes) -> bytes:
    """Returns an image file without its metadata, but with its EXIF orientation and camera.

    Args:
        data: Content of the file; any other than PNG, JPEG, WebP, GIF, TIFF and AVIF is returned
            as it is.
    """
    for signature, remove in _REMOVERS:
        if re.match(signature, data, re.DOTALL):
            return remove(data)
    return data


def coded_image(data: bytes) -> bytes:
    """Returns a JPEG file without any metadata, neither orientation nor resolution."""
    _, head, scans_at = _split_jpeg(data)
    for segment in itertools.islice(segments(data, scans_at), _MAX_SEGMENTS):
        if segment.code == END:  # A second image may follow, or what a camera adds.
            return head + data[scans_at : segment.end]
    return head + data[scans_at:]


def _brief_exif(content: bytes) -> bytes:
    """Returns EXIF with orientation and camera alone; empty if it has neither, or is damaged."""
    brief = Image.Exif()
    with contextlib.suppress(*DECODE_ERRORS):
        full = Image.Exif()
        full.load(content)
        orientation = full.get(ExifTags.Base.Orientation, 0)
        if orientation in range(1, 9):
            brief[ExifTags.Base.Orientation] = int(orientation)
        for tag in _EXIF_TEXTS:
            text = full.get(tag)
            if isinstance(text, str):
                brief[tag] = text[:80]
    return brief.tobytes() if len(brief) else b""


def _from_jpeg(data: bytes) -> bytes:
    exif, head, scans_at = _split_jpeg(data)
    if exif:
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        head = head[:2] + segment + head[2:]
    return head + data[scans_at:]


def _split_jpeg(data: bytes) -> tuple[bytes, bytes, int]:
    """Returns the brief EXIF of a JPEG, its other segments that count, and where its scans begin.

    Without a scan there is nothing but the scans, which begin at 0.
    """
    exif, kept = b"", [b"\xff\xd8"]
    for segment in _header_segments(data):
        content = data[segment.start + 4 : segment.end]
        if segment.code == SCAN:
            return _brief_exif(exif) if exif else b"", b"".join(kept), segment.start
        if segment.code == 0xE1 and content.startswith(b"Exif\0\0"):
            exif += content[6:] if exif else content
        elif segment.code == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14:
            # It decides on the colour space; resolution and thumbnail do not matter.
            kept.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
        elif segment.code == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            kept.append(b"\xff\xee\0\x0e" + content[:12])
        elif 0xC0 <= segment.code < 0xE0:
            kept.append(data[segment.start : segment.end])
        # Any other code is application data, a comment, or what a wrong length has left of them.
    return b"", b"", 0


def _header_segments(data: bytes) -> list[Segment]:
    """Returns the segments of a JPEG up to its first scan.

    If a length is wrong, the image begins at the tables that a frame and a scan follow without a
    gap, and of several at those of the largest frame.
    """
    header = _up_to_scan(data, 2)
    pixels = _frame_pixels(header, data)
    if pixels and not any(segment.num_skipped for segment in header):
        return header
    # The bound keeps a file of many tables cheap.
    starts = itertools.islice(re.finditer(rb"\xff\xdb\0[\x43\x84]", data), _MAX_TABLES)
    headers = [_up_to_scan(data, match.start(), _MAX_TABLES) for match in starts]
    whole = [found for found in headers if not any(part.num_skipped for part in found)]
    # A preview in EXIF is an image as well, but a smaller one.
    best = max(whole, key=lambda found: _frame_pixels(found, data), default=header)
    if _frame_pixels(best, data) < max(1, pixels):
        return header
    before = [part for part in header if part.code >= 0xE0 and part.start < best[0].start]
    return before + best


def _up_to_scan(data: bytes, position: int, max_segments: int | None = None) -> list[Segment]:
    found = []
    for segment in itertools.islice(segments(data, position), max_segments):
        found.append(segment)
        if segment.code == SCAN:
            break
    return found


def _frame_pixels(header: list[Segment], data: bytes) -> int:
    """Returns the pixels of the frame of a header; 0 if tables, frame or scan are missing."""
    codes = [segment.code for segment in header]
    frames = [segment for segment in header if segment.code in FRAMES]
    if not frames or 0xDB not in codes or SCAN not in codes:
        return 0
    height, width = struct.unpack_from(">HH", data.ljust(frames[0].start + 9), frames[0].start + 5)
    return max(1, int(height * width))


def _from_png(data: bytes) -> bytes:
    colour_type, exif = data[25:26], b""
    kept: list[tuple[bytes, bytes]] = []
    animation: list[tuple[bytes, bytes]] = []
    is_animation_intact = True
    for kind, chunk in _png_chunks(data):
        # The first letter of an ancillary kind is lower case. A palette counts where it is used.
        if kind[:1].isupper():
            if kind != b"PLTE" or colour_type == b"\3":
                kept.append((kind, chunk))
            continue
        content, is_intact = chunk[8:-4], zlib.crc32(chunk[4:-4]) == _number(chunk[-4:])
        if kind in (b"acTL", b"fcTL", b"fdAT"):
            is_animation_intact &= is_intact
            animation.append((kind, content))
            kept.append((kind, chunk))
        elif kind == b"eXIf":
            exif = (is_intact and _brief_exif(b"Exif\0\0" + content)) or exif
        elif kind == b"tRNS":
            is_usable = is_intact and len(content) >= {b"\0": 2, b"\2": 6}.get(colour_type, 1)
            kept += [(kind, chunk)] if is_usable else []
    if not is_animation_intact or not _is_in_order(animation, data[16:24]):
        kept = [item for item in kept if item[0] not in (b"acTL", b"fcTL", b"fdAT")]
    parts = [chunk for _, chunk in kept]
    if exif:
        # Behind the header, which comes first.
        parts.insert(1, _png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return data[:8] + b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and bytes of each chunk up to the end of the image; the last may be cut short."""
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + _number(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        yield kind, data[position:end]
        if kind == b"IEND":
            return
        position = end


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _is_in_order(animation: list[tuple[bytes, bytes]], size: bytes) -> bool:
    """Whether an animation's chunks are what Pillow accepts; it would reject the image otherwise.

    Args:
        animation: Kinds and contents of the chunks of the animation.
        size: Width and height in the header of the file.
    """
    numbered = [(kind, content) for kind, content in animation if kind != b"acTL"]
    if len(animation) - len(numbered) != 1 or len(animation[0][1]) < 8:
        return False
    width, height = struct.unpack(">II", size)
    for number, (kind, content) in enumerate(numbered):
        if _number(content[:4]) != number or len(content) < (26 if kind == b"fcTL" else 4):
            return False
        if kind == b"fcTL":
            wide, high, left, top = struct.unpack_from(">IIII", content, 4)
            if not (0 < wide <= width - left and 0 < high <= height - top):
                return False
    return True


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _from_webp(data: bytes) -> bytes:
    exif, kept = b"", []
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        end = position + 8 + size + size % 2
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(data[position:end])
        elif kind == b"EXIF":
            exif = _brief_exif(data[position + 8 : position + 8 + size])
        position = end
    if kept and kept[0].startswith(b"VP8X") and len(kept[0]) >= 18:
        # Bits of the flags: profile 32, alpha 16, EXIF 8, XMP 4, animation 2.
        flags = kept[0][8] & 0b10010 | (8 if exif else 0)
        kept[0] = kept[0][:8] + bytes([flags]) + kept[0][9:]
        if exif:
            kept.append(struct.pack("<4sI", b"EXIF", len(exif)) + exif + bytes(len(exif) % 2))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _from_gif(data: bytes) -> bytes:
    """Removes all extensions but those on frames, and frames that Pillow would enlarge."""
    width, height = struct.unpack_from("<HH", data, 6)
    kept: list[bytes] = []
    num_frames = 0
    first_at = len(data)
    for block in gif_blocks(data):
        first_at = min(first_at, block.start)
        if block.is_frame:
            is_whole = block.is_complete and block.right <= width and block.bottom <= height
            # The first frame is for Pillow to judge; its size is checked before it is decoded.
            if num_frames and not is_whole:
                break
            num_frames += 1
            kept.append(data[block.start : block.end])
        elif block.label == _GRAPHIC_CONTROL and block.num_bytes >= 4:
            kept.append(data[block.start : block.end])
    return data[:first_at] + b"".join(kept) + b";"


def _from_tiff(data: bytes) -> bytes:
    """Removes tags from the directories, in place, and pages beyond the limits."""
    changed = bytearray(data)
    previous: Directory | None = None
    max_pixels = last_at = 0
    for directory in directories(data):
        pixels = _pixels(directory, data)
        if previous and pixels > max(max_pixels, _MAX_PAGE_PIXELS):
            break
        max_pixels = max_pixels or pixels
        layout = directory.layout
        entries = [entry for entry in directory.entries if entry[0] in _TIFF_TAGS]
        position = directory.start
        layout.head.pack_into(changed, position, len(entries))
        position += layout.head.size
        for entry in entries:
            layout.entry.pack_into(changed, position, *entry)
            position += layout.entry.size
        following = data[directory.next_at : directory.next_at + layout.offset.size]
        changed[position : position + len(following)] = following
        last_at, previous = position, directory
    if previous and last_at + previous.layout.offset.size <= len(changed):
        # The last page that is kept, or one that leads back to an earlier page.
        previous.layout.offset.pack_into(changed, last_at, 0)
    return bytes(changed)


def _pixels(directory: Directory, data: bytes) -> int:
    width, height = (directory.values(tag, data)[:1] or (0,) for tag in (256, 257))
    return width[0] * height[0]


def _from_avif(data: bytes) -> bytes:
    """Makes EXIF an item of no known type; the orientation of an AVIF is a property of its own."""
    return re.sub(rb"(infe[\2\3].{3}(?:.{4}|.{6}))Exif", rb"\1free", data, flags=re.DOTALL)


_REMOVERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (rb"\xff\xd8\xff", _from_jpeg),
    (rb"\x89PNG\r\n\x1a\n.{25}", _from_png),
    (rb"RIFF....WEBP", _from_webp),
    (rb"GIF8.{9}", _from_gif),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", _from_tiff),
    (rb"....ftyp", _from_avif),
)
