"""The provenance file of a collected raw folder: one line of JSON per URL and attempt.

Lines are only ever added, and the last one of a class and URL counts.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from drone.errors import DataError
from drone.files import locked

FILE_NAME = "provenance.jsonl"

KEPT, FAILED = "kept", "failed"
"""Values of `Record.status`."""

UrlKey = tuple[str, str]
"""Class and URL. A URL that is listed for two classes is collected for both."""


@dataclass(frozen=True, kw_only=True)
class ImageUrl:
    """URL of an image for one class, and what its source says about it."""

    url: str
    class_name: str
    source: str
    """Where the URL is from: "openverse/flickr", "commons", or the source column of a table."""

    licence: str
    """Licence as the source states it; empty if it states none."""

    creator: str = ""
    attribution: str = ""
    """Credit line that the creator or the source asks for."""

    landing_page: str = ""
    """Web page that shows the image and its licence."""

    @property
    def key(self) -> UrlKey:
        """Class and URL."""
        return (self.class_name, self.url)


@dataclass(frozen=True, kw_only=True)
class Record(ImageUrl):
    """Result of one URL: a line of the provenance file."""

    status: str
    """`KEPT` or `FAILED`."""

    reason: str
    """Short name of the reason for a failure; empty for an image."""

    detail: str
    """The reason as a sentence."""

    final_url: str
    """URL after redirects."""

    path: str
    """Path of the image relative to the raw folder; empty after a failure."""

    md5: str
    size_bytes: int
    content_type: str
    """Content-Type header of the response."""

    format: str
    """Format of the content as Pillow names it."""

    when: str
    """Time of the attempt, ISO 8601 in UTC."""


def latest_records(folder: Path) -> Mapping[UrlKey, Record]:
    """Returns the last record of each class and URL; empty if nothing was collected yet.

    Raises:
        DataError: A line is not a record.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return {}
    records, _ = _read(file)
    return {record.key: record for record in records}


def parse_lines(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Parses the content of a provenance file.

    Yields:
        Each line and its JSON object; an empty one if the line holds none.
    """
    # bytes.splitlines splits at line breaks only, str.splitlines at other characters as well,
    # which a creator's name may contain.
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        yield line, value if isinstance(value, dict) else {}


def _read(file: Path) -> tuple[list[Record], int]:
    """Returns the records and the number of bytes they take, without an incomplete last line."""
    records, valid_bytes = [], 0
    for number, (line, values) in enumerate(parse_lines(file.read_bytes()), 1):
        try:
            records.append(Record(**values))
        except TypeError as error:
            if not line.endswith(b"\n"):
                break  # The run was killed while it wrote this line; its URL is downloaded again.
            raise DataError(
                f"{file}, line {number} is not a provenance record. Correct or delete the line; "
                f"a URL without a record is collected again."
            ) from error
        valid_bytes += len(line)
    return records, valid_bytes


@contextlib.contextmanager
def open_locked(folder: Path) -> Iterator[RawIOBase]:
    """Opens the provenance file for `append`, with a lock that keeps other processes out.

    Raises:
        LockedError: Another process is collecting into the folder.
        DataError: The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".collect.lock", f"The raw folder {folder}"))
            # A link would let the job write outside of its folder.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(folder / FILE_NAME, flags, 0o644)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            reason = f"{FILE_NAME} in it is a link" if is_link else error.strerror
            raise DataError(
                f"{folder} cannot be written: {reason}. Choose another --out."
            ) from error
        stream = stack.enter_context(os.fdopen(descriptor, "ab", buffering=0))
        _repair(folder / FILE_NAME, stream)
        yield stream


def _repair(file: Path, stream: RawIOBase) -> None:
    """Removes an incomplete last line, so that the next record starts on a line of its own."""
    _, valid_bytes = _read(file)
    stream.truncate(valid_bytes)
    stream.seek(0, 2)
    if valid_bytes and not file.read_bytes().endswith(b"\n"):
        stream.write(b"\n")
        stream.flush()


def append(stream: RawIOBase, record: Record) -> None:
    """Appends a record to an open provenance file: the whole line or, on a full disk, nothing.

    Raises:
        OSError: The disk is full or not writable.
    """
    line = json.dumps(asdict(record), ensure_ascii=False, sort_keys=True)
    content = line.encode("utf-8", "backslashreplace") + b"\n"
    before = stream.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[stream.write(content) :]
    except OSError:
        os.ftruncate(stream.fileno(), before)
        raise
