"""Limits the rate of requests to each host."""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Limiter(Protocol):
    """Rate limiter that all workers share."""

    def try_acquire(self, host: str) -> float:
        """Reserves a request to the host now and returns 0, or returns the seconds to wait."""

    def block(self, host: str, seconds: float) -> None:
        """Blocks all requests to the host for some seconds."""


class RateLimiter:
    """A `Limiter` in one process.

    Args:
        requests_per_s: Maximum requests per second to one host.
        clock: Returns the time in seconds.
    """

    def __init__(self, requests_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / requests_per_s
        self._clock = clock
        self._free_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def try_acquire(self, host: str) -> float:
        """Reserves a request to the host now and returns 0, or returns the seconds to wait."""
        # No reservations for later: they would drift apart from when the requests are really sent.
        with self._lock:
            now = self._clock()
            wait_s = self._free_at.get(host, now) - now
            if wait_s > 0:
                return wait_s
            self._free_at[host] = now + self._interval_s
            return 0.0

    def block(self, host: str, seconds: float) -> None:
        """Blocks all requests to the host for some seconds."""
        with self._lock:
            until = self._clock() + seconds
            self._free_at[host] = max(self._free_at.get(host, until), until)
