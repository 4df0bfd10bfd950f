"""Keeps served images in a thread of its own, within limits on bytes and days."""

import datetime
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from drone.serving.keeping import (
    Complaints,
    ImageStore,
    KeepSettings,
    KeptImage,
    now,
    select,
    write_pair,
)

_MAX_WAITING_BYTES = 64 * 2**20
"""Bytes of images that wait to be written; a further one is dropped."""

_RELIST_S = 3600.0
"""Seconds after which the store is listed again: other servers may share it, and days end."""

_RELIST_AFTER_FAILURE_S = 60.0
"""The same after a write or deletion that failed."""

_log = logging.getLogger("drone.keeping")


class BackgroundKeeper:
    """A `keeping.Keeper` that answers need not wait for; threads may share it.

    Images that do not fit into the queue, or cannot be written, are dropped and counted.
    """

    def __init__(
        self,
        settings: KeepSettings,
        store: ImageStore,
        clock: Callable[[], datetime.datetime] = now,
    ) -> None:
        """Creates the keeper and starts its thread; `close` ends it.

        Args:
            settings: What is kept, how much of it and how long.
            store: Where.
            clock: Returns the present time, with its zone.
        """
        self.settings = settings
        self.num_kept = 0
        self.num_dropped = 0
        self._clock = clock
        self._complaints = Complaints()
        self._index = _Index(settings, store)
        self._store = store
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._queue: queue.SimpleQueue[KeptImage | None] = queue.SimpleQueue()
        # A daemon: a store that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="keep", daemon=True)
        self._thread.start()

    def offer(self, image: bytes, answer: Mapping[str, Any], model: Mapping[str, str]) -> None:
        """See `Keeper.offer`; returns at once."""
        try:
            kept = select(self.settings, image, answer, model, self._clock())
            if kept is not None and kept.sha256 not in self._index.stored:
                self._enqueue(kept)
        except Exception as error:
            self._complaints.log_error(error)

    def _enqueue(self, kept: KeptImage) -> None:
        with self._lock:
            if kept.sha256 in self._waiting:
                return
            fits = sum(self._waiting.values()) + len(kept.image) <= _MAX_WAITING_BYTES
            if fits:
                self._waiting[kept.sha256] = len(kept.image)
        if fits:
            self._queue.put(kept)
        else:
            self._drop("Served images arrive faster than their store takes them.")

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what still waits, as far as the timeout allows."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        with self._lock:
            num_lost = self.num_dropped + len(self._waiting)
        if num_lost:
            _log.warning("%d served images that were to be kept are not.", num_lost)

    def _run(self) -> None:
        # At the start, and not with the first image: what is too old goes in any case.
        self._attempt(self._store.check_writable)
        self._attempt(lambda: self._index.refresh(self._clock()))
        while True:
            try:
                kept = self._queue.get(timeout=_RELIST_S)
            except queue.Empty:  # Days end without images too.
                self._attempt(lambda: self._index.refresh_if_due(self._clock()))
                continue
            if kept is None:
                return
            is_done = self._attempt(lambda kept=kept: self._keep(kept))  # type: ignore[misc]
            with self._lock:
                self.num_dropped += not is_done
                del self._waiting[kept.sha256]

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Returns whether an action succeeded; its error is logged."""
        try:
            action()
        except Exception as error:  # A store may fail in any way, and this thread must not end.
            self._complaints.log_error(error)
            self._index.refresh_soon()
            return False
        return True

    def _keep(self, kept: KeptImage) -> None:
        self._index.refresh_if_due(self._clock())
        if kept.sha256 in self._index.stored:  # Another server has stored it.
            return
        if not self._index.has_room(len(kept.image)):
            self._drop("The images of one day alone reach --keep-gb.")
            return
        # A half that is left of a failure stays until the next day: it may be another server's.
        self._index.add(write_pair(self._store, kept))
        self.num_kept += 1

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.num_dropped += 1
        self._complaints.log(reason, f"{reason} Some are not kept.")


class _Index:
    """What a store holds, and the deletion of what is too old or too much; used by one thread.

    Others may read `stored`.
    """

    def __init__(self, settings: KeepSettings, store: ImageStore) -> None:
        self.stored: set[str] = set()
        """SHA-256 of the images that are stored with their records."""

        self._settings = settings
        self._store = store
        self._days: dict[str, dict[str, int]] = {}
        """Bytes of each file by its path, by day."""

        self._refresh_at = 0.0
        self._today = ""

    def refresh_if_due(self, when: datetime.datetime) -> None:
        """Lists the store again on a new day, or if the last time is long ago."""
        if time.monotonic() >= self._refresh_at or self._today != _day(when):
            self.refresh(when)

    def refresh(self, when: datetime.datetime) -> None:
        """Lists the store, and deletes the days that are too old and halves of pairs."""
        self._days.clear()
        for file in self._store.files():
            self._days.setdefault(_day_of(file.path), {})[file.path] = file.size_bytes
        self._today = _day(when)
        self.stored = set().union(*map(_pairs, self._days.values()))
        first = _day(when - datetime.timedelta(days=self._settings.keep_days - 1))
        # Of today, another server may be writing the other half.
        for day in [day for day in self._days if day < self._today]:
            files = self._days[day]
            pairs = set() if day < first else _pairs(files)
            self._delete(day, [path for path in files if _stem(path) not in pairs])
        # Last: after a failure the next image tries again.
        self._refresh_at = time.monotonic() + _RELIST_S

    def refresh_soon(self) -> None:
        """Has the store listed again before long: something else may be in it than was thought."""
        self._refresh_at = min(self._refresh_at, time.monotonic() + _RELIST_AFTER_FAILURE_S)

    @property
    def _num_bytes(self) -> int:
        return sum(sum(files.values()) for files in self._days.values())

    def has_room(self, num_bytes: int) -> bool:
        """Deletes the oldest days until so many bytes fit; False if today's alone are too many."""
        limit = self._settings.keep_gb * 1e9
        while self._num_bytes + num_bytes > limit:
            days = sorted(day for day in self._days if day != self._today)
            if not days:
                return False
            self._delete(days[0], list(self._days[days[0]]))
        return True

    def add(self, files: Mapping[str, int]) -> None:
        """Counts the files of an image that was written, with their bytes."""
        for path, num_bytes in files.items():
            self._days.setdefault(_day_of(path), {})[path] = num_bytes
        self.stored |= _pairs(files)

    def _delete(self, day: str, paths: Sequence[str]) -> None:
        """Deletes files of one day."""
        if paths:
            self._store.delete(paths)
        files = self._days[day]
        for path in paths:
            del files[path]
        self.stored -= {_stem(path) for path in paths}
        if not files:
            del self._days[day]


def is_day(name: str) -> bool:
    """Whether the name of a folder is a day, such as 2026-11-28."""
    try:
        return datetime.date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def _day(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).date().isoformat()


def _day_of(path: str) -> str:
    return path.partition("/")[0]


def _stem(path: str) -> str:
    """Returns the SHA-256 in the path of a file."""
    return path.partition("/")[2].partition(".")[0]


def _pairs(paths: Iterable[str]) -> set[str]:
    """Returns the SHA-256 of the images, of one day, that are there with their records."""
    whole = [path for path in paths if not path.endswith(".new")]
    records = {_stem(path) for path in whole if path.endswith(".json")}
    return records & {_stem(path) for path in whole if not path.endswith(".json")}
