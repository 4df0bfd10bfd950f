"""The segments of a JPEG file."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# A marker of a segment: within a scan, 0xff is followed by zero or by a restart marker.
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")

SCAN, END = 0xDA, 0xD9
FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of a frame that is neither lossless nor hierarchical."""

_WITHOUT_CONTENT = (*range(0x01, 0xC0), 0xD8, END)
"""Start and end of the image, and codes that no segment has."""


class Segment(NamedTuple):
    """A segment of a JPEG file."""

    code: int
    """Last byte of its marker."""

    start: int
    """Position of the marker, after fill bytes."""

    end: int
    """Position after its content as its length says; a scan's data begin there."""

    num_skipped: int
    """Bytes between the previous segment and the marker."""


def segments(data: bytes, position: int = 2) -> Iterator[Segment]:
    """Yields the segments of a JPEG file from a position on."""
    while marker := _MARKER.search(data, position):
        code, start, end = data[marker.end() - 1], marker.end() - 2, marker.end()
        if code not in _WITHOUT_CONTENT:
            end += int.from_bytes(data[end : end + 2], "big")
        yield Segment(code, start, end, start - position)
        position = end
