"""Convolutions: input channels, output channels and groups, in any number of dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, volume
from condensec.passes.rules import rule


@rule("Conv", "com.microsoft::FusedConv", "com.microsoft::NhwcConv", "com.microsoft::NhwcFusedConv")
def conv(ctx: Context, node: ir.Node) -> None:
    """``X, W, bias, residual``; Nhwc operators keep the channels of the data last, not those of weights."""
    last = node.op_type.startswith("Nhwc")
    convolution(ctx, node, Places(0, 1, 2, 3, channels_last=last))


@rule("DeformConv")
def deform_conv(ctx: Context, node: ir.Node) -> None:
    """``X, W, offsets, bias, mask``; offsets and mask have channels for kernel positions, which stay."""
    convolution(ctx, node, Places(0, 1, 3))
    for index in (2, 4):
        if ctx.has(node, index):
            ctx.freeze(ctx.layout(ctx.operand(node, index))[1], "offsets of kernel positions")
    if "offset_group" in node.attributes and node.attributes["offset_group"].as_int() > 1:
        ctx.freeze(ctx.layout(ctx.operand(node, 0))[1], "channels in groups of offsets")


@dataclass(frozen=True)
class Places:
    """Which inputs are data, weight, bias, and a residual that is added to the result.

    ``masked``: zeroing channels of the data is like a cut. ``channels_last``: of data and result.
    """

    data: int
    weight: int
    bias: int | None = None
    residual: int | None = None
    masked: bool = True
    channels_last: bool = False


def convolution(ctx: Context, node: ir.Node, places: Places) -> None:
    """Data ``[N, C, ...]``, weight ``[M, C/g, ...]``; grouped: ``C = g x C/g``, ``M = g x M/g``."""
    data, weight = ctx.operand(node, places.data), ctx.operand(node, places.weight)
    x, w = ctx.layout(data), ctx.layout(weight)
    channel = len(x) - 1 if places.channels_last else 1
    m, per_group = ctx.shape(weight)[:2]
    groups = _groups(ctx, node)
    ctx.tie(x[channel], _grouped(ctx, groups, w[1]), "input channels come from the data")
    outputs = w[0]
    if groups is not None:
        ctx.tie(outputs, _grouped(ctx, groups, ctx.axes.atom(m // groups.size) if m > groups.size else None))
    _finish(ctx, node, places, outputs, (outputs, w[1]), (m, per_group), x[channel], groups)


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
    outputs = _grouped(ctx, groups, w[1])
    _finish(ctx, node, Places(0, 1, 2), outputs, (w[0], w[1]), (c, per_group), x[1], groups)


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
    places: Places,
    outputs: Term | None,
    weight_terms: tuple[Term | None, Term | None],
    weight_sizes: tuple[int, int],
    inputs: Term | None,
    groups: Term | None,
) -> None:
    """Bias, fused residual, kernel axes, the output's layout and the cost."""
    data, weight = ctx.operand(node, places.data), ctx.operand(node, places.weight)
    output, kernel = node.outputs[0], ctx.shape(weight)[2:]
    for term in ctx.layout(weight)[2:]:
        ctx.freeze(term, "kernel positions")
    rank = len(ctx.layout(data))
    channel = rank - 1 if places.channels_last else 1
    ctx.freeze_but(data, (0, channel), "a convolution slides along this axis")
    for index, axis in ((places.bias, 0), (places.residual, channel)):
        if index is not None and ctx.has(node, index):
            ctx.tie(outputs, ctx.layout(ctx.operand(node, index))[axis])
    if groups is None:
        pair = (places.data, places.weight)
        ctx.contracts(node, places.data, channel, pair)
        ctx.contracts(node, places.weight, 0 if node.op_type == "ConvTranspose" else 1, pair)
    space: list[Term | None] = [None] * len(kernel)
    result = [*space, outputs] if places.channels_last else [outputs, *space]
    ctx.set(output, [ctx.layout(data)[0], *result])
    # a transposed convolution does its work once an input position, a convolution once an output position
    sizes = ctx.shape(data if node.op_type == "ConvTranspose" else output)
    positions = volume(sizes[1:-1] if places.channels_last else sizes[2:])
    ctx.cost(
        node,
        (*weight_terms, None),
        (*weight_sizes, volume(kernel) * positions * sizes[0]),
        inputs=inputs,
        outputs=outputs,
        groups=groups if groups is not None else 1,
        kernel=volume(kernel),
        positions=positions,
        mask=(places.data, channel)
        if places.masked and (groups is None or weight_terms[1] is not None)
        else None,
    )
    if outputs is not None:
        ctx.axes.hint(outputs, "channel")
