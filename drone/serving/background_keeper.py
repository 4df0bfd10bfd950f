"""Keeps served images in a thread of its own, within limits on bytes and days."""

import contextlib
import datetime
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
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
"""Seconds after which the store is listed again: other servers may share it."""

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
        self._attempt(lambda: self._index.refresh(self._clock()))
        while (kept := self._queue.get()) is not None:
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
            return False
        return True

    def _keep(self, kept: KeptImage) -> None:
        self._index.refresh_if_due(self._clock())
        if kept.sha256 in self._index.stored:  # Another server has stored it.
            return
        if not self._index.has_room(len(kept.image)):
            self._drop("The images of one day alone reach --keep-gb.")
            return
        try:
            self._index.add(kept, write_pair(self._store, kept))
        except Exception:
            # On a full disk the image may fit and its record not: no half of a pair stays.
            with contextlib.suppress(Exception):
                self._store.delete(next(iter(kept.files())))
            raise
        self.num_kept += 1

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.num_dropped += 1
        self._complaints.log(reason, f"{reason} Some are not kept.")


class _Index:
    """What a store holds, and the deletion of its oldest days; used by one thread.

    Others may read `stored`.
    """

    def __init__(self, settings: KeepSettings, store: ImageStore) -> None:
        self.stored: set[str] = set()
        """SHA-256 of the stored images."""

        self._settings = settings
        self._store = store
        self._bytes_by_day: Counter[str] = Counter()
        self._hashes_by_day: dict[str, set[str]] = {}
        self._refreshed_at = -_RELIST_S
        self._today = ""

    def refresh_if_due(self, when: datetime.datetime) -> None:
        """Lists the store again on a new day, or if the last time is long ago."""
        is_old = time.monotonic() - self._refreshed_at >= _RELIST_S
        if is_old or self._today != f"{when:%Y-%m-%d}":
            self.refresh(when)

    def refresh(self, when: datetime.datetime) -> None:
        """Lists the store, and deletes the days that are too old."""
        self._bytes_by_day.clear()
        self._hashes_by_day.clear()
        for file in self._store.files():
            day, _, name = file.path.partition("/")
            if is_day(day):
                self._bytes_by_day[day] += file.size_bytes
                if name.endswith(".json"):
                    self._hashes_by_day.setdefault(day, set()).add(name.removesuffix(".json"))
        first = when - datetime.timedelta(days=self._settings.keep_days - 1)
        for day in sorted(self._bytes_by_day):
            if day < f"{first:%Y-%m-%d}":
                self._delete(day)
        self.stored = set().union(*self._hashes_by_day.values())
        self._today = f"{when:%Y-%m-%d}"
        # Last: after a failure the next image tries again.
        self._refreshed_at = time.monotonic()

    def has_room(self, num_bytes: int) -> bool:
        """Deletes the oldest days until so many bytes fit; False if today's alone are too many."""
        limit = self._settings.keep_gb * 1e9
        while sum(self._bytes_by_day.values()) + num_bytes > limit:
            days = sorted(day for day in self._bytes_by_day if day != self._today)
            if not days:
                return False
            self._delete(days[0])
        return True

    def add(self, kept: KeptImage, num_bytes: int) -> None:
        """Counts an image that was written."""
        self._bytes_by_day[kept.day] += num_bytes
        self._hashes_by_day.setdefault(kept.day, set()).add(kept.sha256)
        self.stored.add(kept.sha256)

    def _delete(self, day: str) -> None:
        self._store.delete(day)
        del self._bytes_by_day[day]
        self.stored -= self._hashes_by_day.pop(day, set())


def is_day(name: str) -> bool:
    """Whether the name of a folder is a day, such as 2026-11-28."""
    try:
        return datetime.date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False
