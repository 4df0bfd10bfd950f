"""Questions that come at the same time are answered by the engine together."""

import queue
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone.serving.predictor import Predictor

_Question = tuple[NDArray[np.uint8], "Future[NDArray[np.float32]]"]

_USUAL_PIXELS = 448 * 448
"""Of larger pictures fewer go into a call, so that its memory stays bounded."""


class BatchingPredictor(Predictor):
    """A predictor for many threads that ask at once.

    Nothing waits for company: a free engine takes what is there, and what comes while all of them
    are busy goes together. An answer does not depend on what it was computed beside, but for
    rounding.
    """

    def __init__(self, model: Path, engines: int = 2, most: int = 8) -> None:
        """Names the model.

        Args:
            model: file that `drone.model.export.to_onnx` wrote.
            engines: calls at the same time, each on one core.
            most: pictures in one call.
        """
        super().__init__(model, threads=1)
        self._most = most
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        for _ in range(engines):
            threading.Thread(target=self._work, daemon=True).start()

    def uncalibrated(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the exported network itself says, (N, K) float32."""
        if len(pixels_NHWC) != 1:
            return super().uncalibrated(pixels_NHWC)
        answer: Future[NDArray[np.float32]] = Future()
        self._questions.put((pixels_NHWC, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            batch = [self._questions.get()]
            while len(batch) < self._most:
                try:
                    batch.append(self._questions.get_nowait())
                except queue.Empty:
                    break
            by_shape: dict[tuple[int, ...], list[_Question]] = {}
            for question in batch:  # Of a model of mixed resolutions they may differ.
                by_shape.setdefault(question[0].shape, []).append(question)
            for shape, questions in by_shape.items():
                size = max(1, self._most * _USUAL_PIXELS // max(1, shape[1] * shape[2]))
                for start in range(0, len(questions), size):
                    self._answer(questions[start : start + size])

    def _answer(self, questions: list[_Question]) -> None:
        """Answers questions about pictures of one size."""
        try:
            probs_NK = super().uncalibrated(np.concatenate([pixels for pixels, _ in questions]))
        except Exception as error:  # Whoever asked hears of it; the engine goes on.
            for _, answer in questions:
                answer.set_exception(error)
            return
        for row, (_, answer) in enumerate(questions):
            answer.set_result(probs_NK[row : row + 1])
