"""A semaphore whose holders take different amounts of one capacity."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class WeightedSemaphore:
    """Bounds the total weight that threads hold at the same time, first come, first served.

    The order is strict: a heavy request that waits is never overtaken by lighter ones, which could
    otherwise starve it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = 0
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @contextlib.contextmanager
    def acquire(self, weight: int) -> Iterator[None]:
        """Holds a weight for the block, waiting for room first.

        A weight above the capacity counts as the whole capacity, so it is held alone.
        """
        weight = min(weight, self._capacity)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._queue[0] is ticket and self._held + weight <= self._capacity
                )
                self._held += weight
            finally:
                self._queue.remove(ticket)
                # Wakes all waiters: whose turn it is depends on the queue, not on who wakes first.
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= weight
                self._changed.notify_all()
