"""An exported model in 8-bit integers: smaller, and quicker where the processor has the means."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
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


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Hands over pictures a few at a time."""

    def __init__(self, batches: Iterator[NDArray[np.uint8]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {export.INPUT: batch}


def to_int8(source: Path, target: Path, batches: Sequence[NDArray[np.uint8]]) -> None:
    """Writes a statically quantised copy of a model.

    The convolutions are quantised, activations to unsigned and weights to signed 8 bits, channel by
    channel; the head stays as it is, since it loses accuracy otherwise.

    Args:
        source: that `export.to_onnx` wrote.
        target: the file.
        batches: pictures to measure the ranges of activations on, (B, side_px, side_px, 3) uint8.
    """
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.ERROR))
    with tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            _Pictures(iter(batches)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            extra_options={"CalibMovingAverage": True},
        )
    export.add_facts(target, {**export.facts_of(source), "precision": "int8"})
