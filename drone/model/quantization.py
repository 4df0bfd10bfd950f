"""Static quantization of an exported model to 8-bit integers."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from drone.model import export


class _BatchReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds batches of pixels to onnxruntime's calibration."""

    def __init__(self, batches: Iterator[NDArray[np.uint8]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {export.INPUT: batch}


def to_int8(source: Path, target: Path, batches: Sequence[NDArray[np.uint8]]) -> None:
    """Writes a statically quantized copy of a model.

    Only the convolutions are quantized: activations to unsigned, weights to signed 8 bits, per
    channel. The head stays in fp32, since quantizing it costs accuracy.

    Args:
        source: File that `export.to_onnx` wrote.
        target: File to write.
        batches: Images to calibrate the ranges of activations on, (B, side_px, side_px, 3) uint8.
    """
    with _without_advice(), tempfile.TemporaryDirectory() as temporary:
        preprocessed = Path(temporary) / "preprocessed.onnx"
        quant_pre_process(str(source), str(preprocessed), skip_symbolic_shape=True)
        quantize_static(
            str(preprocessed),
            str(target),
            _BatchReader(iter(batches)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            # Averages the ranges over batches, so that single outliers do not widen them.
            extra_options={"CalibMovingAverage": True},
        )
    export.add_metadata(target, {**export.read_metadata(source), "precision": "int8"})


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drops what onnxruntime.quantization logs through the root logger, below errors.

    A logger's filter sees only what is logged by that logger itself, so other loggers keep
    their warnings, which they would lose by the root's level.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(is_error)
    try:
        yield
    finally:
        root.removeFilter(is_error)
