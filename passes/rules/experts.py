"""Fused mixtures of experts of onnxruntime."""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.context import Context, volume
from condensec.passes.rules import rule


@rule("com.microsoft::MoE")
def mixture(ctx: Context, node: ir.Node) -> None:
    """``x [.., H], router [T, E], w1 [E, I, H], b1, w2 [E, H, I], b2, w3 [E, I, H], b3``.

    Every expert keeps the same neurons. The experts compete in the router, so their number
    stays.
    """
    data, router = ctx.operand(node, 0), ctx.operand(node, 1)
    hidden = ctx.layout(data)[-1]
    first, second = ctx.operand(node, 2), ctx.operand(node, 4)
    count = ctx.shape(first)[0]
    shapes = ctx.shape(first), ctx.shape(second)
    features = ctx.shape(data)[-1]
    if shapes[0][2] != features or shapes[1][1] != features or shapes[0][1] != shapes[1][2]:
        ctx.freeze_all(data, "a mixture of experts with interleaved weights")
        for value in node.inputs[1:]:
            ctx.freeze_all(value, "a mixture of experts with interleaved weights")
        ctx.set(node.outputs[0], [None] * len(ctx.shape(data)))
        return
    neurons = ctx.layout(first)[1]
    for index, axes in ((2, (1, 2)), (4, (2, 1)), (6, (1, 2))):
        if ctx.has(node, index):
            layout = ctx.layout(ctx.operand(node, index))
            ctx.tie(layout[axes[0]], neurons)
            ctx.tie(layout[axes[1]], hidden, "features come from the data")
    for index, term in ((3, neurons), (5, hidden), (7, neurons)):
        if ctx.has(node, index):
            ctx.tie(ctx.layout(ctx.operand(node, index))[1], term)
    for value in (v for v in node.inputs[2:] if v is not None):
        ctx.freeze(ctx.layout(value)[0], "experts compete in the router")
    ctx.freeze(ctx.layout(router)[-1], "experts compete in the router")
    ctx.freeze_but(data, (len(ctx.shape(data)) - 1,), "tokens of a mixture of experts")
    ctx.freeze_all(router, "experts compete in the router")
    ctx.set(node.outputs[0], ctx.layout(data))
    chosen = node.attributes["k"].as_int() if "k" in node.attributes else 1
    matrices = 3 if ctx.has(node, 6) else 2
    tokens = volume(ctx.shape(data)[:-1])
    ctx.cost(
        node,
        (None, neurons, hidden),
        (matrices * tokens * min(chosen, count), shapes[0][1], features),
        inputs=hidden,
        outputs=neurons,
        positions=tokens,
    )
