"""Batch inference over any number of images, of one or several sizes."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from drone.data.batches import Batches
from drone.serving.predictor import Outputs, Predictor

LoadPixels = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Loads the images at some positions, all of one size, (B, side, side, 3) uint8."""

PredictBatch = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Predicts a batch of such images; returns one row per image."""

Track = Callable[[Iterable[int], str, int], Iterable[int]]
"""Passes numbers on and shows progress: the numbers, a label and their count."""

_MAX_BATCH_SIZE = 64
"""Maximum number of images per batch."""

_PIXEL_BUDGET = 3 * 224 * 224
"""Maximum number of pixels per batch, unless a single image has more. With the mirror images, the
largest activation of so many has less than 32 MB; for each larger one the C library asks the system
for memory anew, and PyTorch then takes three times as long for an image."""


def no_progress(numbers: Iterable[int], label: str, total: int) -> Iterable[int]:
    """A `Track` that shows nothing."""
    return numbers


def predict_in_batches(
    predict: PredictBatch,
    sides_N: NDArray[np.int64],
    load_pixels: LoadPixels,
    track: Track = no_progress,
    label: str = "predicting",
) -> NDArray[np.float32]:
    """Returns the predictions for all images, (N, K), in the order of the images.

    Args:
        predict: Called once per batch; a batch holds images of one size.
        sides_N: Side in pixels of each image as `load_pixels` returns it.
        load_pixels: Loads the images at given positions.
        track: Shows progress.
        label: What the progress display calls it.
    """
    # As the only rank, so that no image is left to another process.
    batches = Batches(sides_N, len(sides_N), _PIXEL_BUDGET).sequential(0, 1, _MAX_BATCH_SIZE)
    rows = [
        predict(load_pixels(batches[number]))
        for number in track(range(len(batches)), label, len(batches))
    ]
    # Allocated now, because only a prediction tells the number of classes.
    predictions_NK = np.empty((len(sides_N), rows[0].shape[1]), np.float32)
    for positions, rows_BK in zip(batches, rows, strict=True):
        predictions_NK[positions] = rows_BK
    return predictions_NK


def predict_outputs_in_batches(
    predictor: Predictor,
    sides_N: NDArray[np.int64],
    load_pixels: LoadPixels,
    track: Track = no_progress,
) -> Outputs:
    """Returns calibrated probabilities and known scores; see `predict_in_batches`."""

    def predict(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = predictor.predict_outputs(pixels_NHWC)
        return np.column_stack([outputs.probs_NK, outputs.known_N])

    values = predict_in_batches(predict, sides_N, load_pixels, track)
    return Outputs(probs_NK=values[:, :-1], known_N=values[:, -1])
