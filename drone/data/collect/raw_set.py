"""A raw set from the web: what is wanted, what is there already, and what becomes of each url."""

import csv
import datetime
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from drone.data.collect import provenance
from drone.data.collect.connection import host_of
from drone.data.collect.download import Outcome, RateLimiter, download_lane
from drone.data.collect.provenance import Key, Record, Wanted
from drone.data.collect.settings import FetchSettings
from drone.errors import DataError
from drone.labels import CLASSES, match_class, nearest, normalised

KEPT, FAILED = "kept", "failed"
NO_HOST = "(not a url)"

_COLUMNS = ("url", "class", "source", "licence")
_MORE_COLUMNS = ("creator", "attribution", "landing_page")
_PART = ".part"
"""Name of a picture until it is whole; beside the class folders, where no scan sees it."""

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}

Downloader = Callable[[Sequence[Wanted], FetchSettings], Iterator[tuple[Wanted, Outcome]]]
"""Downloads in parallel if it can, and gives each outcome as it comes, in any order."""


@dataclass(frozen=True)
class Plan:
    """What is wanted, and what of it is still to be done."""

    wanted: tuple[Wanted, ...]
    todo: tuple[Wanted, ...]

    @property
    def hosts(self) -> dict[str, Counter[str]]:
        """Urls to do by host and class, busiest host first."""
        return {
            host: Counter(one.class_name for one in urls) for host, urls in lanes(self.todo).items()
        }

    def least_s(self, settings: FetchSettings) -> float:
        """Seconds that the busiest host needs at the allowed rate."""
        most = max((sum(counts.values()) for counts in self.hosts.values()), default=0)
        return most / settings.per_host_per_s


@dataclass(frozen=True)
class Tally:
    """How the urls of one class ended."""

    wanted: int
    kept: int
    pictures: int
    """Different files; less than `kept` where several urls give the same picture."""

    failed: dict[str, int]
    """Failures by reason, the most frequent first."""

    open: int
    """Not tried yet."""


def check_writable(out: Path) -> None:
    """Fails before any work if `out` is not for us.

    Raises:
        DataError: it is something else than a set that `collect` made.
    """
    if not out.exists() or (out / provenance.NAME).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise DataError(
            f"{out} exists and was not collected: it has no {provenance.NAME}. Give --out a new "
            f"folder; prepare.py takes several with --raw."
        )


def read_table(file: Path) -> list[Wanted]:
    """The urls that a table wants.

    Args:
        file: CSV or parquet, columns url, class, source, licence; creator, attribution and
            landing_page are kept if they are there.

    Raises:
        DataError: the table cannot be read, lacks a column or has a row that is no use.
    """
    wanted = [_wanted(file, where, row) for where, row in _rows(file)]
    if not wanted:
        raise DataError(f"{file} has no row. Wanted is one a picture: {', '.join(_COLUMNS)}.")
    return wanted


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by its column's names, and where it is in words."""
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            yield from _parquet_rows(file)
        else:
            yield from _csv_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The table {file} cannot be read: {error}") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        frame = pd.read_parquet(file)
    except ValueError as error:  # What pyarrow raises for a file of another kind.
        raise DataError(f"The table {file} is no parquet file: {error}") from error
    names = _columns(file, [str(name) for name in frame.columns])
    texts = frame.astype("string").fillna("").to_numpy()
    for number, row in enumerate(texts, 1):
        yield f"row {number}", dict(zip(names, map(str, row), strict=True))


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # utf-8-sig: spreadsheets put a mark before the first column's name.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        names = _columns(file, next(reader, []))
        for row in reader:
            if row:
                # A short row lacks its last values, which is for `_wanted` to judge.
                yield f"line {reader.line_num}", dict(zip(names, row, strict=False))


def _columns(file: Path, found: Sequence[str]) -> list[str]:
    """The columns by our names: case and punctuation do not count, nor does "license"."""
    known = {normalised(name): name for name in (*_COLUMNS, *_MORE_COLUMNS)}
    known["license"] = "licence"
    names = [known.get(normalised(name), name) for name in found]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"The table {file} has no column {', '.join(missing)}. It has: "
            f"{', '.join(found) or 'none'}. Wanted: {', '.join(_COLUMNS)}."
        )
    return names


def _wanted(file: Path, where: str, row: Mapping[str, str]) -> Wanted:
    values = {name: (row.get(name) or "").strip() for name in (*_COLUMNS, *_MORE_COLUMNS)}
    if not values["url"]:
        raise DataError(f"{file}, {where}: the url is empty. Fill it in, or take the row out.")
    name = values["class"]
    class_name = match_class(name)
    if class_name is None:
        like = nearest(name, CLASSES)
        hint = f"Did you mean {like!r}?" if like else f"Classes: {', '.join(CLASSES)}."
        raise DataError(f"{file}, {where}: {name!r} is no class. {hint}")
    more = {name: values[name] for name in ("url", "source", "licence", *_MORE_COLUMNS)}
    return Wanted(class_name=class_name, **more)


def plan(
    wanted: Iterable[Wanted], records: Mapping[Key, Record], *, retry_failed: bool = False
) -> Plan:
    """What is left to do of what is wanted.

    Args:
        wanted: urls; of equal ones of a class the first counts.
        records: of earlier runs.
        retry_failed: whether to do again what failed.
    """
    unique: dict[Key, Wanted] = {}
    for one in wanted:
        unique.setdefault(one.key, one)
    ordered = tuple(unique.values())
    done = {key for key, record in records.items() if record.status == KEPT or not retry_failed}
    return Plan(ordered, tuple(one for one in ordered if one.key not in done))


def lanes(wanted: Iterable[Wanted]) -> dict[str, list[Wanted]]:
    """The urls by host, the longest first: each host is asked in order, by one worker."""
    found: dict[str, list[Wanted]] = {}
    for one in wanted:
        found.setdefault(host_of(one.url) or NO_HOST, []).append(one)
    return dict(sorted(found.items(), key=lambda lane: -len(lane[1])))


def download_here(
    wanted: Sequence[Wanted], settings: FetchSettings
) -> Iterator[tuple[Wanted, Outcome]]:
    """The simplest downloader: one host after the other, in this process."""
    limiter = RateLimiter(settings.per_host_per_s)
    for lane in lanes(wanted).values():
        outcomes = download_lane([one.url for one in lane], settings, limiter)
        yield from zip(lane, outcomes, strict=True)


def collect(
    todo: Sequence[Wanted], out: Path, settings: FetchSettings, downloader: Downloader
) -> Iterator[Record]:
    """Downloads, and writes each picture and its record as it comes.

    Whenever it is stopped, each recorded picture is whole, and what has no record is done again.

    Raises:
        DataError: another run collects into the same folder.
    """
    with provenance.writing(out) as stream:
        for wanted, outcome in downloader(todo, settings):
            path = "" if outcome.reason else _store(out, wanted.class_name, outcome)
            record = _record(wanted, outcome, path)
            provenance.append(stream, record)
            yield record


def _store(out: Path, class_name: str, outcome: Outcome) -> str:
    """Writes a picture under its content's name, so that equal ones are one file."""
    suffix = _SUFFIXES.get(outcome.format, outcome.format.lower())
    path = f"{class_name}/{outcome.md5[:16]}.{suffix}"
    target = out / path
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with (out / _PART).open("wb") as stream:
            stream.write(outcome.data)
            stream.flush()
            os.fsync(stream.fileno())
        (out / _PART).replace(target)
    return path


def _record(wanted: Wanted, outcome: Outcome, path: str) -> Record:
    return Record(
        **asdict(wanted),
        status=FAILED if outcome.reason else KEPT,
        reason=outcome.reason,
        detail=outcome.detail,
        final_url=outcome.final_url,
        path=path,
        md5=outcome.md5,
        size_bytes=len(outcome.data),
        content_type=outcome.content_type,
        format=outcome.format,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def tally(wanted: Iterable[Wanted], records: Mapping[Key, Record]) -> dict[str, Tally]:
    """How the wanted urls of each class ended, in this run and earlier ones."""
    by_class: dict[str, list[Record | None]] = {}
    for one in wanted:
        by_class.setdefault(one.class_name, []).append(records.get(one.key))
    return {name: _tally(by_class[name]) for name in CLASSES if name in by_class}


def _tally(records: Sequence[Record | None]) -> Tally:
    done = [record for record in records if record is not None]
    kept = [record for record in done if record.status == KEPT]
    failed = Counter(record.reason for record in done if record.status == FAILED)
    return Tally(
        wanted=len(records),
        kept=len(kept),
        pictures=len({record.path for record in kept}),
        failed=dict(failed.most_common()),
        open=len(records) - len(done),
    )
