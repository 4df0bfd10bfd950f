"""How long a model takes to answer."""

import statistics
import time

import numpy as np

from drone.serving.predictor import Predictor

_TIMED, _WARM_UP = 30, 2


def milliseconds(predictor: Predictor, side_px: int | None = None) -> float:
    """An answer for the pixels of one picture: the median of some after a warm-up.

    Args:
        predictor: the model.
        side_px: of the picture; None takes the side that every model takes.
    """
    side = side_px or predictor.preprocessing.side_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    timed = max(5, _TIMED * 224 // side)
    times = []
    for _ in range(_WARM_UP + timed):
        began = time.perf_counter()
        predictor.predict_pixels(pixels)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[_WARM_UP:])
