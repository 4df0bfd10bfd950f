"""One ONNX graph that takes pictures of several sizes.

The parts before and behind the resizer are exported once, the resizer of each size by itself; here
they become one graph in which the size of the input chooses the resizer (ONNX's `If`).
"""

from collections.abc import Iterable, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper


def join(before: ModelProto, resizers: Mapping[int, ModelProto], behind: ModelProto) -> ModelProto:
    """The parts as one model.

    Args:
        before: pixels (N, side, side, 3) in, pictures (M, 3, side, side) out.
        resizers: by side, pictures of that side in, pictures of the smallest side out. Those of the
            smallest side itself pass.
        behind: pictures of the smallest side in, the answer out.
    """
    first = compose.add_prefix(before, "before_", rename_inputs=False).graph
    last = compose.add_prefix(behind, "behind_", rename_outputs=False).graph
    pictures = first.output[0].name
    nodes = [*first.node, *_side_of(first.input[0].name)]
    initializers = [*first.initializer, *last.initializer]
    chosen = helper.make_node("Identity", [pictures], ["resized_from_smallest"])
    for side, model in resizers.items():
        own = _reading_from(compose.add_prefix(model, f"from_{side}_").graph, pictures)
        # An inner graph may name what the outer one holds.
        initializers += [*own.initializer, _whole_number(f"is_it_{side}", side)]
        nodes.append(helper.make_node("Equal", ["side", f"is_it_{side}"], [f"it_is_{side}"]))
        chosen = helper.make_node(
            "If",
            [f"it_is_{side}"],
            [f"resized_from_{side}"],
            then_branch=_branch(own.node, own.output[0].name),
            else_branch=_branch([chosen], chosen.output[0]),
        )
    chosen.output[0] = last.input[0].name
    graph = helper.make_graph(
        [*nodes, chosen, *last.node], "mixed", list(first.input), list(last.output), initializers
    )
    return helper.make_model(graph, opset_imports=before.opset_import, ir_version=before.ir_version)


def _side_of(pixels: str) -> list[NodeProto]:
    """Nodes that give the height of the pixels as "side"."""
    return [
        helper.make_node("Shape", [pixels], ["side_in_a_row"], start=1, end=2),
        helper.make_node("Squeeze", ["side_in_a_row"], ["side"]),
    ]


def _whole_number(name: str, value: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [], [value])


def _branch(nodes: Iterable[NodeProto], output: str) -> GraphProto:
    """An inner graph, which takes what it needs from the outer one."""
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), f"gives_{output}", [], [value])


def _reading_from(graph: GraphProto, name: str) -> GraphProto:
    """The graph with its one input replaced by what is called so outside."""
    own = graph.input[0].name
    for node in graph.node:
        for number, used in enumerate(node.input):
            if used == own:
                node.input[number] = name
    return graph
