"""Inference latency of an exported model."""

import statistics
import time

import numpy as np

from drone.serving.predictor import Predictor

_NUM_TIMED, _MIN_TIMED, _NUM_WARM_UP = 30, 5, 2


def measure_latency_ms(predictor: Predictor, side_px: int | None = None) -> float:
    """Returns the median time of predicting one image, in milliseconds, after a warm-up.

    Args:
        predictor: The exported model.
        side_px: Side of the image; None takes the smallest one that the model takes.
    """
    side = side_px or predictor.info.preprocessing.side_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    # Fewer runs for large images, which take up to 50 times as long.
    num_timed = max(_MIN_TIMED, _NUM_TIMED * 224 // side)
    # The first predictions load the model and allocate its memory, so they do not count.
    times_s = []
    for _ in range(_NUM_WARM_UP + num_timed):
        start = time.perf_counter()
        predictor.predict_pixels(pixels)
        times_s.append(time.perf_counter() - start)
    return 1000 * statistics.median(times_s[_NUM_WARM_UP:])
