"""Removable layers: residual blocks whose input and output layouts agree.

``x + f(x)`` becomes ``x``. The branch ``f`` is all that is used for nothing but the sum; it has to hold a
weighted operator, and the sum has to have the shape and layout of ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from condensec.passes.bodies import enters, home, is_open
from condensec.passes.context import Context


@dataclass(frozen=True)
class Layer:
    """A residual block that can be taken out whole.

    Attributes:
        id: stable within one model: ``l0``, ``l1``, ... in graph order.
        nodes: names of the branch's nodes in graph order, the sum last.
        weighted: those of them that multiply by weights.
        source: the value that stays; it comes in beside the branch.
        output: the sum, which it replaces.
    """

    id: str
    nodes: tuple[str, ...]
    weighted: tuple[str, ...]
    source: str
    output: str


def find_layers(context: Context, graph: ir.Graph) -> tuple[Layer, ...]:
    """All residual blocks of a graph that can be removed."""
    weighted = {cost.node for cost in context.costs}
    order = {node: position for position, node in enumerate(graph)}
    found: list[Layer] = []
    for node in graph:
        if node.op_type != "Add" or node.outputs[0].is_graph_output() or len(node.inputs) != 2:
            continue
        for source, other in (node.inputs, tuple(reversed(node.inputs))):
            if source is None or other is None or not _agree(context, source, node.outputs[0]):
                continue
            branch = _branch(node, source, other)
            inside = [n for n in branch if n in weighted]
            if (
                inside
                and any(v is source for n in branch for v in n.inputs)
                and _together(node, source, branch)
            ):
                branch.sort(key=order.__getitem__)
                inside.sort(key=order.__getitem__)
                found.append(
                    Layer(
                        f"l{len(found)}",
                        tuple(n.name or "" for n in (*branch, node)),
                        tuple(n.name or "" for n in inside),
                        source.name or "",
                        node.outputs[0].name or "",
                    )
                )
                break
    return tuple(found)


def _agree(context: Context, a: ir.Value, b: ir.Value) -> bool:
    if (
        a.is_initializer()
        or context.world.shape(a) is None
        or context.world.shape(a) != context.world.shape(b)
    ):
        return False
    pairs = zip(context.layouts.get(a, []), context.layouts.get(b, []), strict=False)
    return all(context.same(x, y) for x, y in pairs)


def _branch(total: ir.Node, source: ir.Value, end: ir.Value) -> list[ir.Node]:
    """The nodes between a source and a sum of it that are used for nothing else."""
    inside: dict[ir.Node, None] = {}
    todo = [end]
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or node in inside or node is source.producer():
            continue
        users = [use.node for output in node.outputs for use in output.uses()]
        if any(o.is_graph_output() for o in node.outputs) or not all(
            u is total or u in inside for u in users
        ):
            continue
        inside[node] = None
        todo.extend(v for v in node.inputs if v is not None)
    return list(inside)


def _together(total: ir.Node, source: ir.Value, branch: Sequence[ir.Node]) -> bool:
    """Whether all lies in one body of an If, Loop or Scan (or in none), and no body begins or ends in it."""
    above = source.producer()
    users = [use.node for use in total.outputs[0].uses()]
    begins = above is not None and enters(above)
    nodes = [*branch, *users, *([above] if above is not None and not begins else [])]
    ends = begins or any(is_open(n) for n in (*branch, *users))
    return not ends and all(home(n) == home(total) for n in nodes)


def take_out(graph: ir.Graph, layers: Sequence[Layer]) -> None:
    """Let each block's input stand for its output, and remove what nobody uses any more."""
    values = {o.name: o for node in graph for o in node.outputs}
    values.update((v.name, v) for v in graph.inputs)
    for layer in layers:
        output, source = values.get(layer.output), values[layer.source]
        if output is None:
            continue  # inside a block that is out already
        last = output.producer()
        output.replace_all_uses_with(source)
        values[layer.output] = source
        remove_unused(graph, [last] if last is not None else [])


def remove_unused(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Remove nodes that nobody uses, then those that only they used, and their weights."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        above = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for value in above:
            producer = value.producer()
            if producer is not None:
                todo.append(producer)
            elif value.is_initializer() and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)
