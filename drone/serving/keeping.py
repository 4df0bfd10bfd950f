"""Keeps some of the served images, to be labelled and trained on: unsure, rejected or sampled ones.

A store holds one folder per day, in UTC. Each image lies in it with its original bytes as
`DAY/SHA256.EXTENSION`, beside `DAY/SHA256.json` with the answer, the model, the time and why it was
kept. The image has what metadata the client sent in it, such as a place; nothing else about the
client is stored. Keeping never fails an answer: a store that is full, broken or slow costs images
only.
"""

import datetime
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from drone.errors import ConfigError, DroneError
from drone.labels import NONE

DO_NOT_KEEP = "X-Do-Not-Keep"
"""Header of a request whose image must not be kept, whatever the header's value."""

UNSURE, REJECTED, SAMPLED = "unsure", "rejected", "sampled"
"""Reasons to keep an image: `unsure_below` is not reached, the label is `labels.NONE`, or the
image's hash falls into the sampled share."""

_EXTENSIONS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P4": "pbm",
    b"P5": "pgm",
    b"P6": "ppm",
}
"""Extensions of files by how their content begins; those of containers are in `_extension`."""

_MAX_DAYS = 36_500
"""A century."""

_LOG_AGAIN_S = 3600.0
"""Seconds after which a problem that lasts is logged again."""

_log = logging.getLogger("drone.keeping")


@dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Which served images are kept, where and for how long."""

    keep: str | None = None
    """Folder or URI (s3://...) where served images are kept for review.py --served (default: no
    image is kept)."""

    keep_share: float = 0.05
    """Share of all images that is kept as a sample, 0 to 1; chosen by a hash of the content, so
    that an image is kept either always or never."""

    keep_unsure: bool = True
    """Keep every image whose answer is unsure."""

    keep_none: bool = True
    """Keep every image whose answer is "none of these"."""

    keep_gb: float = 10.0
    """Maximum size of the kept images in GB; the oldest days are deleted first."""

    keep_days: int = 90
    """Days after which kept images are deleted."""

    def __post_init__(self) -> None:
        if self.keep is not None and not self.keep.strip():
            raise ConfigError("--keep is empty; name a folder or a URI such as s3://bucket/folder.")
        if not 0 <= self.keep_share <= 1:
            raise ConfigError(f"--keep-share is {self.keep_share}; it must be 0 to 1.")
        if not 0 < self.keep_gb < math.inf:
            raise ConfigError(f"--keep-gb is {self.keep_gb}; it must be above 0.")
        if not 1 <= self.keep_days <= _MAX_DAYS:
            raise ConfigError(f"--keep-days is {self.keep_days}; it must be 1 to {_MAX_DAYS:,}.")

    def reasons(self, answer: Mapping[str, Any], sha256: str) -> list[str]:
        """Returns why an image is kept; empty if it is not."""
        # The hash as a number in [0, 1): needs no random numbers, and repeats for a copy.
        position = int(sha256[:8], 16) / 2**32
        applies = {
            UNSURE: self.keep_unsure and answer["unsure"],
            REJECTED: self.keep_none and answer["label"] == NONE,
            SAMPLED: position < self.keep_share,
        }
        return [reason for reason, holds in applies.items() if holds]

    def to_dict(self) -> dict[str, Any]:
        """Returns what clients need to know, as JSON values."""
        return {
            "unsure": self.keep_unsure,
            "none": self.keep_none,
            "share": self.keep_share,
            "days": self.keep_days,
            "forbid_header": DO_NOT_KEEP,
        }

    @property
    def notice(self) -> str:
        """What clients are told, in sentences."""
        kinds = [
            *(["images whose answer is unsure"] if self.keep_unsure else []),
            *([f"images whose answer is {NONE!r}"] if self.keep_none else []),
            *([f"{self.keep_share:.3g} of all images"] if self.keep_share else []),
        ]
        return (
            f"To improve the model, this server keeps {', '.join(kinds) or 'no images'}, with the "
            f"answer and the time, for at most {self.keep_days} days; people may look at them and "
            f"label them, and labelled ones are kept for training. A file is kept as it was sent, "
            f"with the metadata in it, such as the place where it was taken; nothing else about "
            f"the client is stored. The image of a request with the header {DO_NOT_KEEP} is not "
            f"kept."
        )


@dataclass(frozen=True)
class StoredFile:
    """A file of a store."""

    path: str
    """Path below the store: DAY/NAME."""

    size_bytes: int


class ImageSink(Protocol):
    """Where images go."""

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, as a whole or not at all; its folder is created."""


class ImageStore(ImageSink, Protocol):
    """Where images are kept, and deleted again."""

    def check_writable(self) -> None:
        """Writes and deletes a file; raises an error if that fails."""

    def files(self) -> Iterable[StoredFile]:
        """Returns the files that `write` has written, complete or not, and no others."""

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes files, and folders that are left empty; a file that is gone is no error."""


class Keeper(Protocol):
    """Decides on served images, and keeps some of them."""

    @property
    def settings(self) -> KeepSettings:
        """What it decides by."""

    def offer(self, image: bytes, answer: Mapping[str, Any], model: Mapping[str, str]) -> None:
        """Keeps an image if the settings say so; never raises.

        Args:
            image: The file as it was received.
            answer: The answer to it.
            model: Name, version, fingerprint and checksum of the model.
        """


@dataclass(frozen=True)
class KeptImage:
    """An image on its way to the store."""

    image: bytes
    record: Mapping[str, Any]

    @property
    def day(self) -> str:
        """Folder of the image: the day on which it was served, in UTC."""
        return str(self.record["time"][:10])

    @property
    def sha256(self) -> str:
        """Hash of the image."""
        return str(self.record["sha256"])

    def files(self) -> dict[str, bytes]:
        """Returns content by path: first the image, then its record, which makes it complete."""
        stem = f"{self.day}/{self.sha256}"
        record = json.dumps(self.record, ensure_ascii=False, sort_keys=True).encode()
        return {f"{stem}.{_extension(self.image)}": self.image, f"{stem}.json": record}


def select(
    settings: KeepSettings,
    image: bytes,
    answer: Mapping[str, Any],
    model: Mapping[str, str],
    when: datetime.datetime,
) -> KeptImage | None:
    """Returns an image with its record if it is one to keep; see `Keeper.offer`."""
    sha256 = hashlib.sha256(image).hexdigest()
    reasons = settings.reasons(answer, sha256)
    if not reasons:
        return None
    record = {
        "sha256": sha256,
        # Decisions of a review name an image by this one.
        "md5": hashlib.md5(image, usedforsecurity=False).hexdigest(),
        "time": when.astimezone(datetime.UTC).isoformat(timespec="seconds"),
        "reasons": reasons,
        "answer": dict(answer),
        "model": dict(model),
    }
    return KeptImage(image, record)


def _extension(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    if image[4:8] == b"ftyp":
        return "avif" if image[8:12] in (b"avif", b"avis") else "heic"
    return next((name for start, name in _EXTENSIONS.items() if image.startswith(start)), "img")


def write_pair(sink: ImageSink, kept: KeptImage) -> dict[str, int]:
    """Writes an image and its record; returns the bytes of each by its path.

    Raises:
        Exception: Whatever the sink raises.
    """
    files = kept.files()
    for path, content in files.items():
        sink.write(path, content)
    return {path: len(content) for path, content in files.items()}


class Complaints:
    """Logs each kind of problem once an hour: a store that is away must not fill the log."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}

    def log(self, kind: str, message: str) -> None:
        """Logs a message, unless one of its kind was logged within the hour."""
        present = time.monotonic()
        if present - self._logged_at.get(kind, -math.inf) >= _LOG_AGAIN_S:
            self._logged_at[kind] = present
            # As an error of ours, since those show no password that a location may hold.
            _log.warning("%s This is logged once an hour.", DroneError(message))

    def log_error(self, error: Exception) -> None:
        """Logs why an image was not kept."""
        kind = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        reason = " ".join(str(error).split())[:300]
        self.log(kind, f"Served images cannot be kept: {type(error).__name__}: {reason}.")


class ImmediateKeeper:
    """Keeps images before it returns: for Lambda, which freezes the process after each answer."""

    def __init__(self, settings: KeepSettings, sink: ImageSink) -> None:
        """Creates the keeper.

        Args:
            settings: What is kept. Deleting what is too old or too much is left to others.
            sink: Where; its calls must have short timeouts.
        """
        self.settings = settings
        self._sink = sink
        self._complaints = Complaints()

    def offer(self, image: bytes, answer: Mapping[str, Any], model: Mapping[str, str]) -> None:
        """See `Keeper.offer`."""
        try:
            kept = select(self.settings, image, answer, model, now())
            if kept is not None:
                write_pair(self._sink, kept)
        except Exception as error:
            self._complaints.log_error(error)


def now() -> datetime.datetime:
    """Returns the present time in UTC."""
    return datetime.datetime.now(datetime.UTC)
