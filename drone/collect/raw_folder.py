"""Fills a raw folder with images from the web: plans, downloads, stores and counts."""

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from drone.collect import provenance
from drone.collect.download import Outcome, download_host_queue
from drone.collect.provenance import FAILED, KEPT, ImageUrl, Record, UrlKey
from drone.collect.rate_limiter import RateLimiter
from drone.collect.settings import FetchSettings
from drone.collect.urls import host_of
from drone.commands import command
from drone.data.prepare.class_names import folder_name
from drone.errors import DataError
from drone.files import write_whole
from drone.labels import CLASSES, ClassSet

_NO_HOST = "(not a url)"
_PARTIAL_FILE = ".part"
"""Name of an image while it is written, outside the class folders, where no scan sees it."""

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic"}

Downloader = Callable[[Sequence[ImageUrl], FetchSettings], Iterator[tuple[ImageUrl, Outcome]]]
"""Downloads image URLs, in parallel if it can, and yields each outcome as it comes, in any order.
"""


@dataclass(frozen=True)
class CollectionPlan:
    """The URLs of a collection, and those still to be downloaded."""

    image_urls: tuple[ImageUrl, ...]
    """Every URL of the collection once."""

    pending: tuple[ImageUrl, ...]
    """URLs that this run downloads."""

    @property
    def hosts(self) -> dict[str, Counter[str]]:
        """Number of pending URLs by host and class, the host with the most URLs first."""
        return {
            host: Counter(image_url.class_name for image_url in queue)
            for host, queue in host_queues(self.pending).items()
        }

    def min_duration_s(self, settings: FetchSettings) -> float:
        """Returns the seconds that the rate limit demands for the host with the most URLs."""
        max_urls = max((counts.total() for counts in self.hosts.values()), default=0)
        return max_urls / settings.requests_per_s


@dataclass(frozen=True)
class ClassCounts:
    """Results of the URLs of one class."""

    urls: int
    """Number of URLs."""

    kept: int
    """Number of URLs that gave an image."""

    images: int
    """Number of distinct image files; less than `kept` if several URLs give the same image."""

    failed: dict[str, int]
    """Number of failures by reason, the most frequent first."""

    pending: int
    """Number of URLs that were not tried yet."""


def check_writable(folder: Path) -> None:
    """Checks, before any work, that a folder is new, empty or an earlier collection.

    Raises:
        DataError: The folder contains something else.
    """
    if not folder.exists() or (folder / provenance.FILE_NAME).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise DataError(
            f"{folder} was not collected by this job: it has no {provenance.FILE_NAME}. Choose a "
            f"new folder with --out, and prepare both: "
            f"{command('prepare', raw=[folder, 'NEW_FOLDER'], out='DATASET')}"
        )


def check_unmixed(
    folder: Path,
    records: Mapping[UrlKey, Record],
    classes: ClassSet = CLASSES,
    *,
    negatives: bool = False,
) -> None:
    """Checks that a folder was not collected for classes if it is for negatives now, or vice versa.

    `prepare` reads classes and negatives from different folders.

    Raises:
        DataError: It was.
    """
    if any((class_name in classes) == negatives for class_name, _ in records):
        held, flag = ("images of classes", "with") if negatives else ("negatives", "without")
        raise DataError(
            f"{folder} holds {held}, and this run is {flag} --negatives. Choose another --out: "
            f"prepare takes classes and negatives from folders of their own."
        )


def plan_collection(
    image_urls: Iterable[ImageUrl],
    records: Mapping[UrlKey, Record],
    *,
    retry_failed: bool = False,
) -> CollectionPlan:
    """Plans which URLs to download.

    Args:
        image_urls: All URLs. If a class has a URL several times, the first one counts.
        records: Results of earlier runs.
        retry_failed: Whether to download the URLs again that failed in earlier runs.
    """
    unique: dict[UrlKey, ImageUrl] = {}
    for image_url in image_urls:
        unique.setdefault(image_url.key, image_url)
    done = {key for key, record in records.items() if record.status == KEPT or not retry_failed}
    pending = tuple(image_url for key, image_url in unique.items() if key not in done)
    return CollectionPlan(tuple(unique.values()), pending)


def host_queues(image_urls: Iterable[ImageUrl]) -> dict[str, list[ImageUrl]]:
    """Returns a queue of URLs per host, the longest first.

    One worker downloads a queue in order, so that a host has one connection at a time.
    """
    queues: dict[str, list[ImageUrl]] = {}
    for image_url in image_urls:
        queues.setdefault(host_of(image_url.url) or _NO_HOST, []).append(image_url)
    return dict(sorted(queues.items(), key=lambda item: -len(item[1])))


def download_sequentially(
    image_urls: Sequence[ImageUrl], settings: FetchSettings
) -> Iterator[tuple[ImageUrl, Outcome]]:
    """A `Downloader` in this process: one host after the other."""
    limiter = RateLimiter(settings.requests_per_s)
    for queue in host_queues(image_urls).values():
        urls = [image_url.url for image_url in queue]
        yield from zip(queue, download_host_queue(urls, settings, limiter), strict=True)


def collect(
    image_urls: Sequence[ImageUrl],
    folder: Path,
    settings: FetchSettings,
    downloader: Downloader,
) -> Iterator[Record]:
    """Downloads URLs and stores each image and its record as it comes.

    It may be interrupted at any time: every recorded image is complete, and a URL without a
    record is downloaded again by the next run.

    Args:
        image_urls: URLs to download, such as `CollectionPlan.pending`.
        folder: Raw folder to write to.
        settings: How to download.
        downloader: What downloads them.

    Yields:
        Record of each URL.

    Raises:
        LockedError: Another process is collecting into the folder.
        DataError: The folder cannot be written, or a folder in it is a link.
    """
    with provenance.open_locked(folder) as stream:
        for image_url, outcome in downloader(image_urls, settings):
            path = "" if outcome.reason else _store(folder, image_url.class_name, outcome)
            record = _record(image_url, outcome, path)
            provenance.append(stream, record)
            yield record


def _store(folder: Path, class_name: str, outcome: Outcome) -> str:
    """Writes an image under the hash of its content and returns the path in the folder.

    Equal images of a class become one file.
    """
    suffix = _SUFFIXES.get(outcome.format, outcome.format.lower())
    path = f"{folder_name(class_name)}/{outcome.md5[:16]}.{suffix}"
    target = folder / path
    # Anything of that name counts, a broken link too: nothing is written through it.
    if target.parent.is_symlink() or target.is_symlink():
        raise DataError(
            f"{target.parent if target.parent.is_symlink() else target} is a link, and collect "
            f"writes to its own folder only. Replace it by what it points to."
        )
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        # Not beside it: what a kill leaves in a class folder would count as a raw file.
        write_whole(target, outcome.data, folder / _PARTIAL_FILE)
    return path


def _record(image_url: ImageUrl, outcome: Outcome, path: str) -> Record:
    return Record(
        **asdict(image_url),
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


def count_by_class(
    image_urls: Iterable[ImageUrl],
    records: Mapping[UrlKey, Record],
    classes: ClassSet = CLASSES,
) -> dict[str, ClassCounts]:
    """Counts the results of URLs by class or kind, over this run and earlier ones."""
    by_class: dict[str, list[Record | None]] = {}
    for image_url in image_urls:
        by_class.setdefault(image_url.class_name, []).append(records.get(image_url.key))
    kinds = [name for name in by_class if name not in classes]
    return {name: _count(by_class[name]) for name in (*classes, *kinds) if name in by_class}


def _count(records: Sequence[Record | None]) -> ClassCounts:
    done = [record for record in records if record is not None]
    kept = [record for record in done if record.status == KEPT]
    failed = Counter(record.reason for record in done if record.status == FAILED)
    return ClassCounts(
        urls=len(records),
        kept=len(kept),
        images=len({record.path for record in kept}),
        failed=dict(failed.most_common()),
        pending=len(records) - len(done),
    )
