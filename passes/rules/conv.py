"""Convolutions: input channels, output channels and groups, in any number of dimensions."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, volume
from condensec.passes.rules import rule


@rule("Conv", "com.microsoft::FusedConv", "com.microsoft.nchwc::Conv")
def conv(ctx: Context, node: ir.Node) -> None:
    """Data ``[N, C, ...]``, weight ``[M, C/g, ...]``; grouped: ``C = g x C/g``, ``M = g x M/g``."""
    data, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None and weight is not None
    x, w = ctx.layout(data), ctx.layout(weight)
    n, c = ctx.shape(data)[:2]
    m, per_group, *kernel = ctx.shape(weight)
    groups = _groups(node)
    outputs, inputs, group_term = _channels(ctx, x[1], w[0], w[1], c, m, per_group, groups)
    _fix_kernel(ctx, w)
    if groups > 1:
        _rewrite_groups(ctx, node, group_term)
    _bias(ctx, node, outputs)
    _residual(ctx, node, outputs)
    sizes = ctx.shape(output)
    ctx.set(output, [x[0], outputs, *[None] * len(kernel)])
    ctx.cost(
        node,
        (outputs, inputs, None),
        (m, per_group, volume(kernel) * volume(sizes[2:]) * n),
        inputs=inputs,
        outputs=outputs,
        groups=group_term if groups > 1 and group_term is not None else 1,
        kernel=volume(kernel),
        positions=volume(sizes[2:]),
    )


@rule("ConvTranspose")
def conv_transpose(ctx: Context, node: ir.Node) -> None:
    """Data ``[N, C, ...]``, weight ``[C, M/g, ...]``; grouped: ``C = g x C/g``, ``M = g x M/g``."""
    data, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None and weight is not None
    x, w = ctx.layout(data), ctx.layout(weight)
    n, c, *space = ctx.shape(data)
    _, per_group, *kernel = ctx.shape(weight)
    groups = _groups(node)
    m = per_group * groups
    inputs, outputs, group_term = _channels(ctx, w[1], w[0], x[1], m, c, c // groups, groups, transposed=True)
    _fix_kernel(ctx, w)
    if groups > 1:
        _rewrite_groups(ctx, node, group_term)
    _bias(ctx, node, outputs)
    ctx.set(output, [x[0], outputs, *[None] * len(kernel)])
    ctx.cost(
        node,
        (w[0], w[1], None),
        (c, per_group, volume(kernel) * volume(space) * n),
        inputs=inputs,
        outputs=outputs,
        groups=group_term if groups > 1 and group_term is not None else 1,
        kernel=volume(kernel),
        positions=volume(space),
    )


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _channels(
    ctx: Context,
    x: Term | None,
    w_full: Term | None,
    w_per_group: Term | None,
    c: int,
    m: int,
    per_group: int,
    groups: int,
    *,
    transposed: bool = False,
) -> tuple[Term | None, Term | None, Term | None]:
    """Tie channels; returns (full weight axis's layout, per-group axis's layout, groups).

    For Conv: (outputs, per-group inputs, groups). For ConvTranspose: (inputs per group, outputs, groups).
    """
    if transposed:
        return _transposed_channels(ctx, x, w_full, w_per_group, c, m, groups)
    if groups == 1:
        ctx.tie(x, w_per_group, "input channels come from the data")
        return w_full, w_per_group, None
    group_axis = ctx.axes.atom(groups)
    inner_in = w_per_group if per_group > 1 else None
    ctx.tie(x, ctx.axes.product([group_axis, *([inner_in] if inner_in is not None else [])]))
    if m == groups:
        ctx.tie(w_full, group_axis)
        return w_full, w_per_group, group_axis
    rest = ctx.axes.atom(m // groups)
    ctx.tie(w_full, ctx.axes.product([group_axis, rest]))
    return w_full, w_per_group, group_axis


def _transposed_channels(
    ctx: Context, w_out: Term | None, w_in: Term | None, x: Term | None, m: int, c: int, groups: int
) -> tuple[Term | None, Term | None, Term | None]:
    ctx.tie(x, w_in, "input channels come from the data")
    if groups == 1:
        return w_in, w_out, None
    group_axis = ctx.axes.atom(groups)
    if c == groups:
        ctx.tie(w_in, group_axis)
    else:
        ctx.tie(w_in, ctx.axes.product([group_axis, ctx.axes.atom(c // groups)]))
    outputs = ctx.axes.product([group_axis, *([w_out] if w_out is not None else [])])
    return w_in, outputs, group_axis


def _rewrite_groups(ctx: Context, node: ir.Node, term: Term | None) -> None:
    assert term is not None
    group_term = term
    ctx.attribute(node, "group", lambda kept: kept.size(group_term))


def _fix_kernel(ctx: Context, w: list[Term | None]) -> None:
    for term in w[2:]:
        ctx.freeze(term, "kernel positions")


def _bias(ctx: Context, node: ir.Node, outputs: Term | None) -> None:
    if ctx.has(node, 2):
        bias = node.inputs[2]
        assert bias is not None
        ctx.tie(outputs, ctx.layout(bias)[0])


def _residual(ctx: Context, node: ir.Node, outputs: Term | None) -> None:
    if node.domain == "com.microsoft" and ctx.has(node, 3):
        residual = node.inputs[3]
        assert residual is not None
        ctx.tie(outputs, ctx.layout(residual)[1])
