"""The blocks of a GIF file."""

from collections.abc import Iterator
from typing import NamedTuple

_HEADER_BYTES = 13
_FRAME, _EXTENSION = 0x2C, 0x21


class GifBlock(NamedTuple):
    """A frame or an extension of a GIF file."""

    is_frame: bool
    label: int
    """Label of an extension."""

    start: int
    end: int

    right: int
    """Right end of a frame in pixels."""

    bottom: int
    """Lower end of a frame in pixels."""

    num_bytes: int
    """Bytes of its content, which lie in parts of at most 255 bytes."""

    num_parts: int
    is_complete: bool


def gif_blocks(data: bytes) -> Iterator[GifBlock]:
    """Yields the blocks of a GIF file, up to one that is cut short or of no known kind."""
    position = _HEADER_BYTES + _palette_bytes(data[10])
    while position + 2 < len(data) and data[position] in (_FRAME, _EXTENSION):
        is_frame = data[position] == _FRAME
        if is_frame:
            head = data[position + 1 : position + 10].ljust(9, b"\0")
            left, top, width, height = (
                int.from_bytes(head[at : at + 2], "little") for at in (0, 2, 4, 6)
            )
            parts_at = position + 11 + _palette_bytes(head[8])
            right, bottom, label = left + width, top + height, 0
        else:
            parts_at, right, bottom, label = position + 2, 0, 0, data[position + 1]
        end, num_parts = _parts_end(data, parts_at)
        num_bytes = end - parts_at - num_parts - 1
        is_complete = end <= len(data)
        yield GifBlock(
            is_frame, label, position, end, right, bottom, num_bytes, num_parts, is_complete
        )
        position = end


def _palette_bytes(flags: int) -> int:
    """Returns the length of the palette that a flags byte announces."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _parts_end(data: bytes, position: int) -> tuple[int, int]:
    """Returns the position after the parts that begin at a position, and their number.

    The position is beyond the data if they are cut short.
    """
    num_parts, length = 0, len(data)
    while position < length and (size := data[position]):
        position += size + 1
        num_parts += 1
    return position + 1, num_parts
