"""Fused norms of onnxruntime: a residual sum or an embedding, normalized."""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.context import Context, Layout
from condensec.passes.rules import rule


@rule("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def skip_layer_norm(ctx: Context, node: ir.Node) -> None:
    """``x, skip, scale, (shift,) bias``: norm of ``x + skip + bias`` over the last axis; and the sum."""
    ctx.broadcast(node, [ctx.operand(node, 0), ctx.operand(node, 1)], node.outputs[0])
    layout = ctx.layout(node.outputs[0])
    for index in range(2, len(node.inputs)):
        if ctx.has(node, index):
            ctx.tie(layout[-1], ctx.layout(ctx.operand(node, index))[0])
    ctx.reduces(node, 0, len(layout) - 1)
    _statistics(ctx, node, layout, 3)


@rule("com.microsoft::GatedRMSNorm")
def gated_rms_norm(ctx: Context, node: ir.Node) -> None:
    """``x, scale, gate``: norm of ``x`` over the last axis, times an activation of the gate."""
    data, gate = ctx.operand(node, 0), ctx.operand(node, 2)
    ctx.broadcast(node, [data, gate], node.outputs[0])
    last = len(ctx.layout(data)) - 1
    ctx.tie(ctx.layout(data)[last], ctx.layout(ctx.operand(node, 1))[0])
    ctx.reduces(node, 0, last)


@rule("com.microsoft::EmbedLayerNormalization")
def embed_layer_norm(ctx: Context, node: ir.Node) -> None:
    """``ids, segment_ids, words, positions, segments, scale, shift, mask``: sum of embeddings, normalized."""
    words = ctx.operand(node, 2)
    hidden = ctx.layout(words)[1]
    for index in (3, 4):
        if ctx.has(node, index):
            ctx.tie(hidden, ctx.layout(ctx.operand(node, index))[1])
    for index in (2, 3, 4):
        if ctx.has(node, index):
            ctx.freeze(ctx.layout(ctx.operand(node, index))[0], "rows of an embedding are chosen by the data")
    for index in (5, 6):
        ctx.tie(hidden, ctx.layout(ctx.operand(node, index))[0])
    ctx.reduces(node, 2, 1)
    rank = len(ctx.shape(node.outputs[0]))
    layout: Layout = [*[None] * (rank - 1), hidden]
    ctx.set(node.outputs[0], layout)
    for index, output in enumerate(node.outputs[1:], start=1):
        ctx.set(output, layout if index == 2 else [None] * len(ctx.world.shape(output) or ()))


def _statistics(ctx: Context, node: ir.Node, layout: Layout, total: int) -> None:
    ctx.set(node.outputs[0], layout)
    for index, output in enumerate(node.outputs[1:], start=1):
        ctx.set(output, layout if index == total else [*layout[:-1], None])


@rule("com.microsoft::BiasAdd", "com.microsoft::BiasSoftmax")
def biased(ctx: Context, node: ir.Node) -> None:
    """``x + bias (+ skip)``, or the softmax over the last axes of ``x + bias``."""
    ctx.broadcast(node, [v for v in node.inputs if v is not None], node.outputs[0])
    if node.op_type == "BiasSoftmax":
        layout = ctx.layout(node.outputs[0])
        axis = (
            node.attributes["axis"].as_int() % len(layout) if "axis" in node.attributes else len(layout) - 1
        )
        for term in layout[axis:]:
            ctx.freeze(term, "softmax of a biased value")
