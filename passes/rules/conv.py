"""Convolutions: input channels, output channels and groups, in any number of dimensions."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, volume
from condensec.passes.rules import rule


@rule("Conv", "com.microsoft::FusedConv", "com.microsoft.nchwc::Conv")
def conv(ctx: Context, node: ir.Node) -> None:
    """Data ``[N, C, ...]``, weight ``[M, C/g, ...]``; grouped: ``C = g x C/g``, ``M = g x M/g``."""
    data, weight = ctx.operand(node, 0), ctx.operand(node, 1)
    x, w = ctx.layout(data), ctx.layout(weight)
    m, per_group = ctx.shape(weight)[:2]
    groups = _groups(ctx, node)
    ctx.tie(x[1], _grouped(ctx, groups, w[1]), "input channels come from the data")
    outputs = w[0]
    if groups is not None:
        ctx.tie(outputs, _grouped(ctx, groups, ctx.axes.atom(m // groups.size) if m > groups.size else None))
    _finish(ctx, node, outputs, (outputs, w[1]), (m, per_group), x[1], groups)


@rule("ConvTranspose")
def conv_transpose(ctx: Context, node: ir.Node) -> None:
    """Data ``[N, C, ...]``, weight ``[C, M/g, ...]``; grouped: ``C = g x C/g``, ``M = g x M/g``."""
    data, weight = ctx.operand(node, 0), ctx.operand(node, 1)
    x, w = ctx.layout(data), ctx.layout(weight)
    c, per_group = ctx.shape(weight)[:2]
    groups = _groups(ctx, node)
    ctx.tie(x[1], w[0], "input channels come from the data")
    if groups is not None:
        ctx.tie(w[0], _grouped(ctx, groups, ctx.axes.atom(c // groups.size) if c > groups.size else None))
    _finish(ctx, node, _grouped(ctx, groups, w[1]), (w[0], w[1]), (c, per_group), x[1], groups)


def _groups(ctx: Context, node: ir.Node) -> Term | None:
    """The axis of convolution groups, or None for a dense one. The attribute follows the cut."""
    count = node.attributes["group"].as_int() if "group" in node.attributes else 1
    if count == 1:
        return None
    axis = ctx.axes.atom(count)
    ctx.attribute(node, "group", lambda kept: kept.size(axis))
    return axis


def _grouped(ctx: Context, groups: Term | None, inner: Term | None) -> Term | None:
    if groups is None:
        return inner
    return groups if inner is None else ctx.axes.product((groups, inner))


def _finish(
    ctx: Context,
    node: ir.Node,
    outputs: Term | None,
    weight_terms: tuple[Term | None, Term | None],
    weight_sizes: tuple[int, int],
    inputs: Term | None,
    groups: Term | None,
) -> None:
    """Bias, fused residual, kernel axes, the output's layout and the cost."""
    data, weight, output = ctx.operand(node, 0), ctx.operand(node, 1), node.outputs[0]
    kernel = ctx.shape(weight)[2:]
    for term in ctx.layout(weight)[2:]:
        ctx.freeze(term, "kernel positions")
    for index in (2, 3):
        extra = node.inputs[index] if ctx.has(node, index) else None
        if extra is not None:  # a bias [M], or FusedConv's residual [N, M, ...]
            ctx.tie(outputs, ctx.layout(extra)[0 if index == 2 else 1])
    ctx.set(output, [ctx.layout(data)[0], outputs, *[None] * len(kernel)])
    # a transposed convolution does its work once an input position, a convolution once an output position
    space = ctx.shape(data if node.op_type == "ConvTranspose" else output)
    positions = volume(space[2:])
    ctx.cost(
        node,
        (*weight_terms, None),
        (*weight_sizes, volume(kernel) * positions * space[0]),
        inputs=inputs,
        outputs=outputs,
        groups=groups if groups is not None else 1,
        kernel=volume(kernel),
        positions=positions,
        mask=(0, 1) if groups is None or weight_terms[1] is not None else None,
    )
    if outputs is not None:
        ctx.axes.hint(outputs, "channel")
