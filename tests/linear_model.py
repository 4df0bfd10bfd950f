"""An ONNX model of one matrix product, made in milliseconds and without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def write_linear(
    target: Path, side_px: int, weights_PK: NDArray[np.float64], metadata: Mapping[str, str]
) -> Path:
    """Writes a model of all pixels, with the interface that our export writes.

    Args:
        target: File to write.
        side_px: Side of its images.
        weights_PK: Weight of each value of an image, (side * side * 3, K).
        metadata: Metadata of the file.
    """
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        # Every image is known, with a score of 1.
        helper.make_node("ReduceSum", ["probabilities", "axis"], ["sums"], keepdims=0),
        helper.make_node("Round", ["sums"], ["known"]),
        # A grid of one cell, for which all of the evidence is the logit.
        helper.make_node("Unsqueeze", ["logits", "cell_axes"], ["evidence"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", side_px, side_px, 3])
    num_classes = weights_PK.shape[1]
    shapes = {
        "probabilities": ["n", num_classes],
        "known": ["n"],
        "evidence": ["n", num_classes, 1, 1],
    }
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    constants = [
        numpy_helper.from_array(weights_PK.astype(np.float32), "weights"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "cell_axes"),
    ]
    graph = helper.make_graph(nodes, "linear", [pixels], outputs, constants)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, target)
    return target


def random_weights(side_px: int, num_classes: int) -> NDArray[np.float64]:
    """Returns small random weights for `write_linear`."""
    return np.random.default_rng(0).normal(0, 1e-4, (side_px * side_px * 3, num_classes))
