"""Positions: integers computed at run time that number the units of an axis which may be cut."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.arithmetic import names
from condensec.passes.context import Context

_PASS = names(
    "Cast Expand Flatten Gather GatherElements Identity Reshape Slice Split Squeeze Transpose Unsqueeze"
)
_INDEX = {("Gather", 1), ("GatherElements", 1), ("OneHot", 0), ("ScatterElements", 1)}


def follow(ctx: Context, node: ir.Node) -> None:
    """Where do positions go? Called for every node, behind its rule."""
    for index, value in enumerate(node.inputs):
        term = ctx.positions.get(value) if value is not None else None
        if term is None or (node.op_type, index) in _INDEX or node.op_type in ("Shape", "Size"):
            continue
        if index or node.op_type not in _PASS:
            ctx.freeze(term, f"{node.op_type} '{node.name}' takes positions that TopK found")
            continue
        for output in node.outputs:
            found(ctx, node, output, term)


def found(ctx: Context, node: ir.Node, value: ir.Value, term: Term) -> None:
    """This value holds positions of units of an axis."""
    ctx.positions[value] = term
    inside = any(use.node.graph is not node.graph for use in value.uses())
    if value.is_graph_output() or inside:
        ctx.freeze(term, "positions that TopK found leave the graph")
