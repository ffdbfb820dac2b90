"""Channel shuffles: Reshape, Transpose, Reshape that only permute one axis.

As a product of two factors, a shuffle ties channel ``i`` of every branch. As a Gather with a constant
permutation it ties nothing: each channel can be cut alone. That is the better form where the shuffled axis is
split again (ShuffleNet v2), not where a grouped convolution follows (v1), so it's tried and compared.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from condensec.passes.layers import remove_unused
from condensec.passes.world import World

_SPLITS = ("Split", "Slice", "Gather")


def permutation(world: World, last: ir.Node) -> tuple[ir.Value, list[ir.Node], list[int]] | None:
    """What a shuffle that ends in this Reshape permutes on axis 1: its source, its nodes, the permutation."""
    turn = last.inputs[0].producer() if last.op_type == "Reshape" and last.inputs[0] is not None else None
    if turn is None or turn.op_type != "Transpose" or "perm" not in turn.attributes:
        return None
    first = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if first is None or first.op_type != "Reshape" or first.inputs[0] is None:
        return None
    source = first.inputs[0]
    before, middle, after = (world.shape(v) for v in (source, first.outputs[0], last.outputs[0]))
    alone = all(len(n.outputs[0].uses()) == 1 and not n.outputs[0].is_graph_output() for n in (first, turn))
    if before is None or middle is None or before != after or len(before) < 2 or not alone:
        return None
    count = len(middle) - len(before) + 1  # factors that axis 1 falls into
    if count < 2 or middle[:1] + middle[1 + count :] != before[:1] + before[2:]:
        return None
    perm = list(turn.attributes["perm"].as_ints())
    inside = [p - 1 for p in perm[1 : 1 + count]]
    fixed = [0, *range(1 + count, len(middle))]
    if perm[:1] + perm[1 + count :] != fixed or sorted(inside) != list(range(count)):
        return None
    order = np.arange(before[1]).reshape(middle[1 : 1 + count]).transpose(inside).reshape(-1)
    return source, [first, turn, last], [int(i) for i in order]


def find(graph: ir.Graph, world: World) -> list[tuple[ir.Value, list[ir.Node], list[int]]]:
    """All shuffles of a graph, if one of them is split again; else none."""
    found = [p for node in graph if (p := permutation(world, node)) is not None]
    split_again = any(u.node.op_type in _SPLITS for _, nodes, _ in found for u in nodes[-1].outputs[0].uses())
    return found if split_again else []


def gather_instead(
    graph: ir.Graph, world: World, found: list[tuple[ir.Value, list[ir.Node], list[int]]]
) -> None:
    """Replace shuffles by Gathers, in place; names of values that stay don't change."""
    for _, nodes, order in found:
        source = nodes[0].inputs[0]  # that of a shuffle behind another one is the other's Gather by now
        result = nodes[-1].outputs[0]
        name = f"{result.name}.condensec.order"
        tensor = ir.Tensor(np.array(order, np.int64), name=name)
        indices = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(indices)
        world.shapes[name], world.values[name] = (len(order),), tensor.numpy()
        node = ir.Node(
            "", "Gather", [source, indices], [ir.AttrInt64("axis", 1)], name=f"{nodes[-1].name}.gather"
        )
        graph.insert_before(nodes[-1], node)
        new = node.outputs[0]
        new.shape, new.type = result.shape, result.type
        result.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, result.name = result.name, f"{result.name}.condensec.before"
        remove_unused(graph, list(reversed(nodes)))
