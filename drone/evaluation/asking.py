"""Asks about many pictures, a batch at a time."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from drone.data.batches import Batches
from drone.data.bins import PIXEL_BUDGET

Gather = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Gives the pictures at some positions, all of one size, (B, side, side, 3) uint8."""

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""What is said of such pictures, a row for each."""

Track = Callable[[Iterable[int], str, int], Iterable[int]]
"""Passes the numbers on and shows how far they are: numbers, a word for it, how many."""

_BATCH = 64
"""Pictures at a time, at most; of large ones fewer."""


def quietly(numbers: Iterable[int], word: str, total: int) -> Iterable[int]:
    """A `Track` that shows nothing."""
    return numbers


def ask(
    answer: Answer,
    sides_N: NDArray[np.int64],
    gather: Gather,
    track: Track = quietly,
    word: str = "asking the model",
) -> NDArray[np.float32]:
    """The answers for all pictures, (N, K), a row for each.

    Args:
        answer: to a batch of pictures of one size.
        sides_N: side of each picture as `gather` gives it.
        gather: gives those at some positions.
        track: shows how far it is.
        word: for what is being done.
    """
    batches = Batches(sides_N, len(sides_N), PIXEL_BUDGET).once(0, 1, _BATCH)
    rows = [
        answer(gather(batches[number])) for number in track(range(len(batches)), word, len(batches))
    ]
    answers_NK = np.empty((len(sides_N), rows[0].shape[1]), np.float32)
    for positions, found in zip(batches, rows, strict=True):
        answers_NK[positions] = found
    return answers_NK
