"""Recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Kept
from condensec.passes.rules import rule

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(ctx: Context, node: ir.Node) -> None:
    """``X [T, B, I]``, ``W [D, g*H, I]``, ``R [D, g*H, H]``, ``B [D, 2*g*H]``, ``P [D, 3*H]``.

    ``g`` gates, ``D`` directions that keep the same units; states are ``[D, B, H]``. A unit whose
    weights are zero keeps a state of zero, so cuts of it are exact.
    """
    x, w, r = (ctx.operand(node, i) for i in range(3))
    ctx.freeze_but(x, (2,), "steps and samples of a recurrent layer")
    gates, size = _GATES[node.op_type], ctx.shape(r)[2]
    batch_first = "layout" in node.attributes and bool(node.attributes["layout"].as_int())
    hidden: Term | None = ctx.layout(r)[2]
    inputs = ctx.layout(w)[2]
    ctx.tie(ctx.layout(x)[2], inputs, "features come from the data")
    for value in (w, r):
        ctx.tie(ctx.layout(value)[1], _rows(ctx, gates, hidden))
    for index, rows in ((3, 2 * gates), (7, 3)):
        if ctx.has(node, index):
            ctx.tie(ctx.layout(ctx.operand(node, index))[1], _rows(ctx, rows, hidden))
    for index in (5, 6):
        if ctx.has(node, index):
            ctx.tie(ctx.layout(ctx.operand(node, index))[2], hidden, "a state that comes from outside")
    for value in (w, r, *(v for v in node.inputs[3:] if v is not None)):
        ctx.freeze(ctx.layout(value)[0], "directions of a recurrent layer")
    states = [None, None, hidden]
    for index, output in enumerate(node.outputs):
        ctx.set(output, states if index else [None, None, None, hidden])
    if hidden is None:
        return

    def new_size(kept: Kept) -> int:
        return kept.size(hidden)

    if "hidden_size" in node.attributes:
        ctx.attribute(node, "hidden_size", new_size)
    ctx.axes.hint(hidden, "rnn_unit")
    directions, steps = ctx.shape(w)[0], ctx.shape(x)[1 if batch_first else 0]
    rows_of_batch = ctx.shape(x)[0 if batch_first else 1]
    both = ctx.axes.sum([ctx.term(inputs, ctx.shape(w)[2]), hidden])
    ctx.cost(
        node,
        (None, hidden, both),
        (directions * gates * steps * rows_of_batch, size, ctx.shape(w)[2] + size),
        inputs=inputs,
        outputs=hidden,
        positions=steps,
        mask=(0, 2),
    )


@rule("com.microsoft::DynamicQuantizeLSTM")
def quantized_lstm(ctx: Context, node: ir.Node) -> None:
    """As LSTM, with ``W [D, I, 4*H]``, ``R [D, H, 4*H]``; scales and zero-points ``[D]`` or ``[D, 4*H]``."""
    x, w, r = (ctx.operand(node, i) for i in range(3))
    ctx.freeze_but(x, (2,), "steps and samples of a recurrent layer")
    hidden, inputs = ctx.layout(r)[1], ctx.layout(w)[1]
    ctx.tie(ctx.layout(x)[2], inputs, "features come from the data")
    ctx.needs_zeros(node, inputs, 0)  # the range its numbers are quantized in is that of all of them
    rows = {1: 4, 2: 4, 3: 8, 7: 3, 8: 4, 9: 4, 10: 4, 11: 4}
    for index, value in enumerate(node.inputs):
        if index == 0 or value is None:
            continue
        layout = ctx.layout(value)
        if layout:
            ctx.freeze(layout[0], "directions of a recurrent layer")
        if index in rows and len(layout) > 1:
            ctx.tie(layout[-1], _rows(ctx, rows[index], hidden))
        elif index in (5, 6):
            ctx.tie(layout[2], hidden, "a state that comes from outside")
    for number, output in enumerate(node.outputs):
        ctx.set(output, [None, None, hidden] if number else [None, None, None, hidden])
    if hidden is None:
        return
    ctx.attribute(node, "hidden_size", lambda kept: kept.size(hidden))
    ctx.axes.hint(hidden, "rnn_unit")
    directions, features, wide = ctx.shape(w)
    steps, batch = ctx.shape(x)[:2]
    both = ctx.axes.sum([ctx.term(inputs, features), hidden])
    sizes = (directions * 4 * steps * batch, wide // 4, features + wide // 4)
    ctx.cost(node, (None, hidden, both), sizes, inputs=inputs, outputs=hidden, positions=steps)


def _rows(ctx: Context, count: int, hidden: Term | None) -> Term | None:
    """``count x hidden``: gates can't be cut."""
    if count == 1 or hidden is None:
        return hidden if hidden is not None else ctx.axes.fixed(count, "gates of a recurrent layer")
    return ctx.axes.product([ctx.axes.fixed(count, "gates of a recurrent layer"), hidden])
