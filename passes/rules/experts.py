"""Fused mixtures of experts of onnxruntime."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, volume
from condensec.passes.rules import rule


@rule("com.microsoft::MoE")
def mixture(ctx: Context, node: ir.Node) -> None:
    """``x [.., H], router [T, E], w1 [E, I, H], b1, w2 [E, H, I], b2, w3 [E, I, H], b3``.

    Every expert keeps the same neurons. A router chooses ``k`` experts a token: so many stay at least, and
    it chooses among those that stay.
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
    chosen = node.attributes["k"].as_int() if "k" in node.attributes else 1
    experts = _experts(ctx, node, router, min(chosen, count))
    for value in (v for v in node.inputs[2:] if v is not None):
        ctx.tie(ctx.layout(value)[0], experts, "experts that a router from outside chooses")
    ctx.freeze_but(data, (len(ctx.shape(data)) - 1,), "tokens of a mixture of experts")
    ctx.set(node.outputs[0], ctx.layout(data))
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


def _experts(ctx: Context, node: ir.Node, router: ir.Value, chosen: int) -> Term | None:
    """The axis of experts, of which ``chosen`` stay."""
    experts = ctx.layout(router)[-1]
    ctx.freeze_but(router, (len(ctx.shape(router)) - 1,), "tokens of a mixture of experts")
    if experts is not None:
        ctx.axes.at_least(experts, chosen, f"a router chooses {chosen} of these")
        ctx.axes.hint(experts, "expert")
        ctx.reduces(node, 1, len(ctx.shape(router)) - 1)
    return experts


@rule("com.microsoft::QMoE")
def quantized_mixture(ctx: Context, node: ir.Node) -> None:
    """As `mixture`, with packed weights: whole experts may go, the features inside stay.

    ``x, router [T, E]``, then weights, scales, biases and zero-points ``[E, ...]``.
    """
    data, router = ctx.operand(node, 0), ctx.operand(node, 1)
    chosen = node.attributes["k"].as_int() if "k" in node.attributes else 1
    count = ctx.shape(router)[-1]
    ctx.freeze_all(data, "features of experts whose weights are packed")
    experts = _experts(ctx, node, router, min(chosen, count))
    for index, value in enumerate(node.inputs[2:], start=2):
        if value is None:
            continue
        known = index < 14 and ctx.shape(value)[:1] == (count,)
        if known:
            ctx.tie(ctx.layout(value)[0], experts, "experts that a router from outside chooses")
            ctx.freeze_but(value, (0,), "features of experts whose weights are packed")
        else:
            ctx.freeze_all(value, "a mixture of experts with weights for its router")
            ctx.freeze(experts, "a mixture of experts with weights for its router")
    ctx.set(node.outputs[0], ctx.layout(data))
