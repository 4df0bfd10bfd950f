"""Pictures from the web at a polite pace: rates by host, retries, and a look at what came."""

import functools
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from drone.data.collect.connection import host_of
from drone.data.collect.settings import FetchError, FetchSettings
from drone.data.collect.web import Fetched, fetch
from drone.errors import ImageError
from drone.serving.preprocess import Preprocessing, decode, open_header


class Limiter(Protocol):
    """Says when a host may be asked; all that ask share one."""

    def reserve(self, host: str) -> float:
        """Takes the host's turn and gives 0, or the seconds after which to ask again."""

    def hold(self, host: str, seconds: float) -> None:
        """Lets nobody ask the host for so long."""


class RateLimiter:
    """A `Limiter` in one process: two turns of a host are at least 1 / per_s seconds apart."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = 1 / per_s
        self._clock = clock
        self._free_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def reserve(self, host: str) -> float:
        """Takes the host's turn and gives 0, or the seconds after which to ask again."""
        # Turns are not promised ahead: they would drift apart from the requests they are for.
        with self._lock:
            now = self._clock()
            wait_s = self._free_at.get(host, now) - now
            if wait_s > 0:
                return wait_s
            self._free_at[host] = now + self._gap_s
            return 0.0

    def hold(self, host: str, seconds: float) -> None:
        """Lets nobody ask the host for so long."""
        with self._lock:
            until = self._clock() + seconds
            self._free_at[host] = max(self._free_at.get(host, until), until)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one url: a picture, or a reason why there is none."""

    data: bytes = b""
    """The file as it came; empty if it is refused."""

    md5: str = ""
    format: str = ""
    """As Pillow names what the content is ("JPEG")."""

    final_url: str = ""
    content_type: str = ""
    reason: str = ""
    """Empty for a picture, else one word for the tables."""

    detail: str = ""
    """The reason in words."""

    silent_host: str = ""
    """The host, if the reason is that it does not answer."""


_SILENCE = ("unreachable", "timeout")


def download_lane(
    urls: Sequence[str], settings: FetchSettings, limiter: Limiter
) -> Iterator[Outcome]:
    """The outcome of each url of one host, in order.

    A host that is gone is given up: its retries and time-outs, url by url, would take hours.
    """
    silent = 0
    for url in urls:
        if silent >= settings.max_silent:
            yield Outcome(
                reason="host-down", detail=f"Not asked: {silent} urls before it had no answer."
            )
            continue
        outcome = download(url, settings, limiter)
        # Behind a redirect it is another host that is silent.
        silent = silent + 1 if outcome.silent_host == host_of(url) != "" else 0
        yield outcome


def download(url: str, settings: FetchSettings, limiter: Limiter) -> Outcome:
    """Fetches one picture. Whatever is wrong with it becomes a reason, never an error."""
    try:
        fetched = get(url, settings, limiter)
    except FetchError as error:
        silent_host = error.host if error.reason in _SILENCE else ""
        return Outcome(reason=error.reason, detail=str(error), silent_host=silent_host)
    return _judged(fetched, settings)


def get(url: str, settings: FetchSettings, limiter: Limiter) -> Fetched:
    """Fetches one file, again where that may help.

    Raises:
        FetchError: there is no such file, or not now.
    """
    pace = functools.partial(_wait_for_turn, limiter=limiter, settings=settings)
    for attempt in range(settings.num_retries + 1):
        try:
            return fetch(url, settings, pace)
        except FetchError as error:
            last = attempt == settings.num_retries
            if error.wait_s is not None:
                limiter.hold(error.host, error.wait_s)
            if not error.temporary or last or (error.wait_s or 0) > settings.max_wait_s:
                raise
            limiter.hold(error.host, _backoff_s(attempt, settings))
    raise AssertionError("the last try returns or raises")


def _backoff_s(attempt: int, settings: FetchSettings) -> float:
    longest = min(settings.backoff_s * 2**attempt, settings.max_wait_s)
    # By chance, so that hosts that failed together are not asked together again.
    return float(longest * random.uniform(0.5, 1.0))


def _wait_for_turn(host: str, limiter: Limiter, settings: FetchSettings) -> None:
    # Of a slow rate the pause between two requests may itself be longer.
    longest_s = max(settings.max_wait_s, 1 / settings.per_host_per_s)
    while wait_s := limiter.reserve(host):
        if wait_s > longest_s:
            raise FetchError(
                "busy", f"{host} asks for a pause of {wait_s:.0f} s; try later.", host=host
            )
        time.sleep(wait_s)


def _judged(fetched: Fetched, settings: FetchSettings) -> Outcome:
    limits = Preprocessing(
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        min_side_px=settings.min_side_px,
    )
    try:
        header = open_header(fetched.data, limits)
        # Without a length, only decoding tells a file that was cut short.
        decode(fetched.data, limits)
    except ImageError as error:
        return Outcome(
            final_url=fetched.final_url,
            content_type=fetched.content_type,
            reason=error.problem,
            detail=str(error),
        )
    return Outcome(
        data=fetched.data,
        md5=hashlib.md5(fetched.data, usedforsecurity=False).hexdigest(),
        format=header.format or "",
        final_url=fetched.final_url,
        content_type=fetched.content_type,
    )
