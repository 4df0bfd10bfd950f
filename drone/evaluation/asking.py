"""Asks about many pictures, a batch at a time."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Gather = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Gives the pictures at some positions, (B, side_px, side_px, 3) uint8."""

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""What is said of such pictures, a row for each."""

Track = Callable[[Iterable[int], str, int], Iterable[int]]
"""Passes the numbers on and shows how far they are: numbers, a word for it, how many."""

_BATCH = 64


def quietly(numbers: Iterable[int], word: str, total: int) -> Iterable[int]:
    """A `Track` that shows nothing."""
    return numbers


def ask(
    answer: Answer,
    count: int,
    gather: Gather,
    track: Track = quietly,
    word: str = "asking the model",
) -> NDArray[np.float32]:
    """The answers for all pictures, a row for each.

    Args:
        answer: to a batch.
        count: of the pictures.
        gather: gives those at some positions.
        track: shows how far it is.
        word: for what is being done.
    """
    starts = range(0, count, _BATCH)
    return np.concatenate(
        [
            answer(gather(np.arange(start, min(start + _BATCH, count))))
            for start in track(starts, word, len(starts))
        ]
    )
