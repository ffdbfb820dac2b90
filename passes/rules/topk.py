"""TopK, and what becomes of the positions it finds: a router that chooses among experts.

TopK over an axis that may be cut chooses among the units that stay (as many as it wants stay at least). The
positions it gives count those units. So they may index an axis that is cut alike (Gather, GatherElements,
ScatterElements, OneHot); wherever else they go, the axis is frozen.
"""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.context import Context
from condensec.passes.positions import found
from condensec.passes.rules import rule


@rule("TopK")
def top_k(ctx: Context, node: ir.Node) -> None:
    """Values and positions ``[..., k, ...]`` of the largest (or smallest) along one axis."""
    data = ctx.operand(node, 0)
    layout = list(ctx.layout(data))
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % len(layout)
    term, wanted = layout[axis], ctx.ints(node, 1, "k")
    layout[axis] = None
    for output in node.outputs:
        ctx.set(output, layout)
    if term is None:
        return
    if not wanted:
        ctx.freeze(term, "TopK takes a number chosen at run time")
        return
    ctx.axes.at_least(term, wanted[0], f"TopK chooses {wanted[0]} of these")
    ctx.axes.hint(term, "expert")
    ctx.reduces(node, 0, axis)
    if len(node.outputs) > 1:
        found(ctx, node, node.outputs[1], term)
