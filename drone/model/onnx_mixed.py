"""One ONNX graph that takes images of several sizes.

The parts before and after the resizer are exported once, the resizer of each size separately. Here
they are joined into one graph that selects the resizer by the size of its input (ONNX's `If`).
"""

from collections.abc import Iterable, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper


def join_sizes(
    normalise: ModelProto, resizers: Mapping[int, ModelProto], network: ModelProto
) -> ModelProto:
    """Joins the parts into one model.

    Args:
        normalise: Pixels (N, side, side, 3) in, images (M, 3, side, side) out.
        resizers: By side: images of that side in, images of the smallest side out. The smallest
            side has none; its images pass unchanged.
        network: Images of the smallest side in, probabilities out.
    """
    first = compose.add_prefix(normalise, "normalise_", rename_inputs=False).graph
    last = compose.add_prefix(network, "network_", rename_outputs=False).graph
    images = first.output[0].name
    nodes = [*first.node, *_side_nodes(first.input[0].name)]
    initializers = [*first.initializer, *last.initializer]
    # ONNX has no switch statement: each turn wraps what it has so far as the else branch of an If.
    select = helper.make_node("Identity", [images], ["resized_from_smallest"])
    for side, model in resizers.items():
        resizer = _with_input(compose.add_prefix(model, f"from_{side}_").graph, images)
        # An inner graph may use names of the outer one, so all constants live outside.
        initializers += [*resizer.initializer, _int64(f"constant_{side}", side)]
        nodes.append(helper.make_node("Equal", ["side", f"constant_{side}"], [f"is_{side}"]))
        select = helper.make_node(
            "If",
            [f"is_{side}"],
            [f"resized_from_{side}"],
            then_branch=_branch(resizer.node, resizer.output[0].name),
            else_branch=_branch([select], select.output[0]),
        )
    select.output[0] = last.input[0].name
    graph = helper.make_graph(
        [*nodes, select, *last.node], "mixed", list(first.input), list(last.output), initializers
    )
    return helper.make_model(
        graph, opset_imports=normalise.opset_import, ir_version=normalise.ir_version
    )


def _side_nodes(pixels: str) -> list[NodeProto]:
    """Returns nodes that output the height of the pixels as "side"."""
    return [
        helper.make_node("Shape", [pixels], ["side_1d"], start=1, end=2),
        helper.make_node("Squeeze", ["side_1d"], ["side"]),
    ]


def _int64(name: str, value: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [], [value])


def _branch(nodes: Iterable[NodeProto], output: str) -> GraphProto:
    """Returns an inner graph, which reads its inputs from the outer one."""
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), f"branch_{output}", [], [value])


def _with_input(graph: GraphProto, name: str) -> GraphProto:
    """Makes the graph read `name` of the outer graph in place of its only input."""
    own_name = graph.input[0].name
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used == own_name:
                node.input[index] = name
    return graph
