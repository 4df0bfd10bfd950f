"""Where each picture of a collected set comes from: one line of JSON a url, only ever added to."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from drone.errors import DataError

NAME = "provenance.jsonl"

Key = tuple[str, str]
"""Class and url: a url that is wanted in two classes is collected for both."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A url that may give a picture, and what is known of it beforehand."""

    url: str
    class_name: str
    source: str
    """Who named it: "openverse/flickr", "commons", or what a table says."""

    licence: str
    """As the source says it; empty if it says nothing."""

    creator: str = ""
    attribution: str = ""
    """The line that the creator or the source wants to be named with."""

    landing_page: str = ""
    """The page that shows the picture and its licence."""

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return (self.class_name, self.url)


@dataclass(frozen=True, kw_only=True)
class Record(Wanted):
    """What became of it."""

    status: str
    """"kept" or "failed"."""

    reason: str
    """Empty if it is kept, else one word for the tables."""

    detail: str
    """The reason in words."""

    final_url: str
    """Address after redirects."""

    path: str
    """Below the set's folder; empty if it failed."""

    md5: str
    size_bytes: int
    content_type: str
    """What the server said."""

    format: str
    """What the content is, as Pillow names it."""

    when: str
    """ISO 8601, UTC."""


def standing(out: Path) -> Mapping[Key, Record]:
    """The last record of each url; none if nothing was collected yet.

    Raises:
        DataError: a line cannot be read.
    """
    file = out / NAME
    if not file.exists():
        return {}
    records, _ = _read(file)
    return {record.key: record for record in records}


def objects(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of such a file, and the JSON object that it holds; an empty one if it holds none.

    Only line breaks part lines: a creator's name may hold other characters that text is split at.
    """
    for line in content.splitlines(keepends=True):
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        yield line, told if isinstance(told, dict) else {}


def _read(file: Path) -> tuple[list[Record], int]:
    """The records, and the bytes that hold them; a torn last line is left out."""
    records, good_bytes = [], 0
    for number, (line, told) in enumerate(objects(file.read_bytes()), 1):
        try:
            records.append(Record(**told))
        except TypeError as error:
            if not line.endswith(b"\n"):
                break  # The run was killed while it wrote; its url comes again.
            raise DataError(
                f"{file}, line {number} is no record of a url. Mend or delete the line; "
                f"a url without a record is collected again."
            ) from error
        good_bytes += len(line)
    return records, good_bytes


@contextlib.contextmanager
def writing(out: Path) -> Iterator[BinaryIO]:
    """The file at its end, for `append`; one process at a time.

    Raises:
        DataError: another process collects into the same folder, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        opened = (out / NAME).open("ab")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from (
            error
        )
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"Another run collects into {out} now. Wait for its end, or give another --out."
            ) from error
        _mend(out / NAME, stream)
        yield stream


def _mend(file: Path, stream: BinaryIO) -> None:
    """Cuts a torn last line off, so that the next record does not join it."""
    _, good_bytes = _read(file)
    stream.truncate(good_bytes)
    stream.seek(0, 2)
    if good_bytes and not file.read_bytes().endswith(b"\n"):
        stream.write(b"\n")
        stream.flush()


def append(stream: BinaryIO, record: Record) -> None:
    """Adds a record at the end."""
    line = json.dumps(asdict(record), ensure_ascii=False, sort_keys=True)
    stream.write(line.encode("utf-8", "replace") + b"\n")
    stream.flush()
