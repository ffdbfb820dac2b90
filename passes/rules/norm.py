"""Normalizations. Parameters lie on the axis they scale; statistics over a cut axis aren't mask-exact."""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.context import Context
from condensec.passes.rules import rule


@rule("BatchNormalization", "SpatialBN")
def batch_norm(ctx: Context, node: ir.Node) -> None:
    """Scale, bias, mean and variance lie on the channel axis."""
    _on_channels(ctx, node, 1, (1, 2, 3, 4))


@rule("InstanceNormalization")
def instance_norm(ctx: Context, node: ir.Node) -> None:
    """Like BatchNormalization, with statistics over the spatial axes of each sample."""
    data = ctx.operand(node, 0)
    for axis in range(2, len(ctx.layout(data))):
        ctx.reduces(node, 0, axis)
    _on_channels(ctx, node, 1, (1, 2))


def _on_channels(ctx: Context, node: ir.Node, axis: int, parameters: tuple[int, ...]) -> None:
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    for index in parameters:
        if ctx.has(node, index):
            parameter = ctx.operand(node, index)
            ctx.tie(layout[axis], ctx.layout(parameter)[0])
    for output in node.outputs:
        ctx.set(output, layout if output is node.outputs[0] else [layout[axis]])


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "com.microsoft::SimplifiedLayerNormalization",
    "com.microsoft::LayerNormalization",
)
def layer_norm(ctx: Context, node: ir.Node) -> None:
    """Statistics over the last axes; scale and bias broadcast over them."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    rank = len(layout)
    first = (node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % rank
    for axis in range(first, rank):
        ctx.reduces(node, 0, axis)
    for index in (1, 2):
        parameter = node.inputs[index] if ctx.has(node, index) else None
        if parameter is None:
            continue
        sizes = ctx.shape(parameter)
        for axis, size in enumerate(sizes, start=rank - len(sizes)):
            if size > 1:
                ctx.tie(layout[axis], ctx.layout(parameter)[axis - rank + len(sizes)])
    ctx.set(node.outputs[0], layout)
    for output in node.outputs[1:]:
        ctx.set(output, [*layout[:first], *[None] * (rank - first)])


@rule("GroupNormalization", "com.microsoft::GroupNorm")
def group_norm(ctx: Context, node: ir.Node) -> None:
    """Channels are ``groups x channels/groups``, with statistics over the inner factor and space.

    Opset 18 keeps one scale a group, opset 21 one a channel.
    """
    data = ctx.operand(node, 0)
    layout = list(ctx.layout(data))
    if node.domain == "com.microsoft":
        for term in layout[1:]:
            ctx.freeze(term, "GroupNorm of com.microsoft keeps its channels last")
        ctx.set(node.outputs[0], [layout[0], *[None] * (len(layout) - 1)])
        return
    groups = node.attributes["num_groups"].as_int()
    channels = ctx.shape(data)[1]
    group_axis = ctx.axes.atom(groups) if groups > 1 else None
    inner = ctx.axes.atom(channels // groups) if channels > groups else None
    whole = ctx.axes.product([t for t in (group_axis, inner) if t is not None])
    ctx.tie(layout[1], whole)
    if inner is not None:
        ctx.freeze(inner, "GroupNormalization takes statistics over the channels of each group")
    for index in (1, 2):
        parameter = ctx.operand(node, index)
        size = ctx.shape(parameter)[0]
        ctx.tie(group_axis if size == groups != channels else whole, ctx.layout(parameter)[0])
    if group_axis is not None:
        ctx.attribute(node, "num_groups", lambda kept: kept.size(group_axis))
    ctx.set(node.outputs[0], layout)


@rule("LpNormalization", "MeanVarianceNormalization")
def norm_without_parameters(ctx: Context, node: ir.Node) -> None:
    """Statistics over the named axes."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    if node.op_type == "LpNormalization":
        axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else -1]
    else:
        axes = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else [0, 2, 3]
    for axis in axes:
        ctx.reduces(node, 0, axis % len(layout))
    ctx.set(node.outputs[0], layout)


@rule("LRN")
def local_response(ctx: Context, node: ir.Node) -> None:
    """Each channel is scaled by its neighbours: no channel can leave without changing the others."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    ctx.freeze(layout[1], "LRN scales each channel by its neighbours")
    ctx.set(node.outputs[0], layout)
