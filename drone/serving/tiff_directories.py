"""The directories of a TIFF file: one for each page, with tags that describe it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PAGES = 16
"""Pages of a TIFF that are considered."""

_SUB_DIRECTORIES = 330
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True)
class Layout:
    """How a TIFF file writes numbers and directories."""

    order: str
    """"<" or ">"."""

    is_big: bool
    """Whether it is a BigTIFF, which has longer fields."""

    @property
    def head(self) -> struct.Struct:
        """The number of entries."""
        return struct.Struct(self.order + ("Q" if self.is_big else "H"))

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count, and the value or its offset."""
        return struct.Struct(self.order + ("HHQ8s" if self.is_big else "HHI4s"))

    @property
    def offset(self) -> struct.Struct:
        """Offset in the file."""
        return struct.Struct(self.order + ("Q" if self.is_big else "I"))

    @property
    def first_at(self) -> int:
        """Position of the first directory's offset."""
        return 8 if self.is_big else 4


@dataclass(frozen=True)
class Directory:
    """One directory of a TIFF file."""

    layout: Layout
    start: int
    entries: tuple[tuple[int, int, int, bytes], ...]
    """Tag, type, count, and the value or its offset."""

    next_at: int
    """Position of the next directory's offset."""

    def count(self, tag: int) -> int:
        """Returns how many values a tag has; 0 if it is not there."""
        return max((count for name, _, count, _ in self.entries if name == tag), default=0)

    def values(self, tag: int, data: bytes) -> tuple[int, ...]:
        """Returns the first values of a tag of whole numbers; none if there are none."""
        for name, kind, count, value in self.entries:
            if name != tag or kind not in _CODES:
                continue
            count = min(count, MAX_PAGES)
            form = struct.Struct(f"{self.layout.order}{count}{_CODES[kind]}")
            if form.size <= len(value):
                return form.unpack_from(value)
            (position,) = self.layout.offset.unpack(value)
            if position + form.size <= len(data):
                return form.unpack_from(data, position)
        return ()


def layout_of(data: bytes) -> Layout:
    """Returns the layout of a TIFF file."""
    is_big = data[2:4] in (b"+\0", b"\0+")
    return Layout("<" if data.startswith(b"II") else ">", is_big)


def directories(data: bytes) -> Iterator[Directory]:
    """Yields the directories of the first pages of a TIFF file, as far as they can be read."""
    layout = layout_of(data)
    seen: set[int] = set()
    try:
        (start,) = layout.offset.unpack_from(data, layout.first_at)
        while start and start not in seen and len(seen) < MAX_PAGES:
            seen.add(start)
            directory = _read(data, layout, start)
            yield directory
            (start,) = layout.offset.unpack_from(data, directory.next_at)
    except struct.error:
        return  # Truncated, as Pillow will report.


def sub_directories(directory: Directory, data: bytes) -> Iterator[Directory]:
    """Yields the directories that a directory refers to, as far as they can be read."""
    for start in directory.values(_SUB_DIRECTORIES, data):
        try:
            yield _read(data, directory.layout, start)
        except struct.error:
            continue


def _read(data: bytes, layout: Layout, start: int) -> Directory:
    (count,) = layout.head.unpack_from(data, start)
    first, size = start + layout.head.size, layout.entry.size
    # Pillow also uses the entries of a directory that is cut short.
    num_complete = min(count, 2**16, max(0, len(data) - first) // size)
    entries = tuple(
        layout.entry.unpack_from(data, first + number * size) for number in range(num_complete)
    )
    return Directory(layout, start, entries, first + count * size)
