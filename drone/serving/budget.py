"""A bound on what threads hold at the same time."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Budget:
    """A semaphore of shares of different size; who came first goes first.

    Were it otherwise, small shares would pass a large one for as long as they come.
    """

    def __init__(self, most: int) -> None:
        """Sets how much may be held at a time."""
        self._most = most
        self._held = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Holds a share, once there is room; one larger than the budget is held alone."""
        size = min(size, self._most)
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                self._changed.wait_for(
                    lambda: self._waiting[0] is me and self._held + size <= self._most
                )
                self._held += size
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
