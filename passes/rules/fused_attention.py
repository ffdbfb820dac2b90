"""Fused attention of onnxruntime: Attention, MultiHeadAttention, GroupQueryAttention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Kept, Layout, volume
from condensec.passes.rules import rule
from condensec.passes.rules.attention import (
    POSITIONS,
    attention_cost,
    count_heads,
    earlier_steps,
    head_dim,
    integer,
    keep_scale,
    masked_heads,
    product,
    query_heads,
    rotated,
)


@dataclass(frozen=True)
class _Packed:
    """Where an attention that projects by itself keeps its optional inputs."""

    bias_of_scores: int | None
    past: int
    per_column: tuple[int, ...] = ()
    exact_mask: bool = True


@rule("com.microsoft::Attention")
def packed_attention(ctx: Context, node: ir.Node) -> None:
    """``X [B, S, I] @ W [I, q ++ k ++ v] + bias``, each ``heads x dim``; result ``[B, S, heads*dim_v]``."""
    _packed_attention(ctx, node, _Packed(5, 4))


@rule("com.microsoft::QAttention")
def quantized_attention(ctx: Context, node: ir.Node) -> None:
    """The same of quantized numbers; the weight's scale and zero-point are one number, or one a column."""
    _packed_attention(ctx, node, _Packed(None, 8, (4, 7), exact_mask=False))


def _packed_attention(ctx: Context, node: ir.Node, places: _Packed) -> None:
    data, weight = ctx.operand(node, 0), ctx.operand(node, 1)
    heads, (features, width) = integer(node, "num_heads"), ctx.shape(weight)
    listed = "qkv_hidden_sizes" in node.attributes
    whole = list(node.attributes["qkv_hidden_sizes"].as_ints()) if listed else [width // 3] * 3
    axis, _ = query_heads(ctx, heads, heads)
    dim = head_dim(ctx, whole[0] // heads)
    value_dim = head_dim(ctx, whole[2] // heads) if listed and len(node.outputs) == 1 else dim
    if integer(node, "do_rotary"):
        ctx.freeze(dim, "rotated inside of a fused attention")
    parts = [product(ctx, axis, d) for d in (dim, dim, value_dim)]
    packed = ctx.axes.sum([ctx.term(p, s) for p, s in zip(parts, whole, strict=True)])
    inputs = ctx.layout(weight)[0]
    ctx.tie(ctx.layout(data)[2], inputs, "features come from the data")
    ctx.tie(ctx.layout(weight)[1], packed)
    for index in (2, *places.per_column):
        if ctx.has(node, index) and volume(ctx.shape(node.inputs[index])) > 1:
            ctx.tie(ctx.layout(ctx.operand(node, index))[0], packed)
    ctx.freeze_but(data, (2,), POSITIONS)
    earlier_steps(ctx, node, axis, {places.past: dim}, (2, 4))
    if places.bias_of_scores is not None:
        masked_heads(ctx, node, places.bias_of_scores, axis)
    ctx.set(node.outputs[0], [ctx.layout(data)[0], None, parts[2]])
    for output in node.outputs[1:]:
        ctx.set(output, [None, None, axis, None, dim])
    keep_scale(ctx, node, whole[0] // heads)
    count_heads(ctx, node, "num_heads", axis)
    if listed:
        ctx.attribute(node, "qkv_hidden_sizes", partial(_widths, parts, whole))
    positions = ctx.shape(data)[0] * ctx.shape(data)[1]
    extra: dict[str, Any] = {
        "inputs": inputs,
        "outputs": packed,
        "positions": ctx.shape(data)[1],
        "mask": (0, 2) if places.exact_mask else None,
    }
    ctx.cost(node, (None, inputs, packed), (positions, features, width), **extra)


def _widths(parts: list[Term | None], whole: list[int], kept: Kept) -> list[int]:
    return [size if part is None else kept.size(part) for part, size in zip(parts, whole, strict=True)]


@rule("com.microsoft::MultiHeadAttention")
def multi_head_attention(ctx: Context, node: ir.Node) -> None:
    """``Q [B, S, H*D]``, ``K``, ``V`` alike or ``[B, H, T, D]``, or packed ``[B, S, H, 3 (or 2), D]``."""
    heads = integer(node, "num_heads")
    query = ctx.operand(node, 0)
    layout, shape = ctx.layout(query), ctx.shape(query)
    packed = len(shape) == 5
    ctx.freeze_but(query, (2, 4) if packed else (2,), POSITIONS)
    size = shape[4] if packed else shape[2] // heads
    axis, _ = query_heads(ctx, heads, heads)
    dim = head_dim(ctx, size)
    value_dim, value_size = dim, size
    if packed:
        ctx.tie(layout[2], axis)
        ctx.tie(layout[4], dim)
    else:
        ctx.tie(layout[2], product(ctx, axis, dim))
        value_dim, value_size = _keys_and_values(ctx, node, axis, dim, heads, size)
    if ctx.has(node, 3):
        widths = [(dim, size), (dim, size), (value_dim, value_size)]
        whole = ctx.axes.sum([ctx.term(product(ctx, axis, d), heads * s) for d, s in widths])
        ctx.tie(ctx.layout(ctx.operand(node, 3))[0], whole)
    masked_heads(ctx, node, 5, axis)
    earlier_steps(ctx, node, axis, {6: dim, 7: value_dim})
    result: Layout = [layout[0], None, product(ctx, axis, value_dim)]
    states = [result, [None, axis, None, dim], [None, axis, None, value_dim], [None, axis, None, None]]
    for output, state in zip(node.outputs, states, strict=False):
        ctx.set(output, state)
    keep_scale(ctx, node, size)
    count_heads(ctx, node, "num_heads", axis)
    ctx.needs_zeros(node, dim)
    separate = ctx.has(node, 1) and len(ctx.shape(node.inputs[1])) == 3
    keys = ctx.shape(node.inputs[1])[1] if separate else shape[1]
    attention_cost(ctx, node, axis, (dim, value_dim), (heads, size, value_size, shape[0] * shape[1] * keys))


def _keys_and_values(
    ctx: Context, node: ir.Node, axis: Term | None, dim: Term | None, heads: int, size: int
) -> tuple[Term | None, int]:
    """Tie the keys and values; returns the axis and size of a head's values."""
    value_dim, value_size = dim, size
    for index in (1, 2):
        if not ctx.has(node, index):
            continue
        value = ctx.operand(node, index)
        layout, shape = ctx.layout(value), ctx.shape(value)
        ctx.freeze_but(value, (1, 3) if len(shape) == 4 else (2, 4), POSITIONS)
        if len(shape) == 5:
            ctx.tie(layout[2], axis)
            ctx.tie(layout[4], dim)
            continue
        if index == 2:
            value_size = shape[3] if len(shape) == 4 else shape[2] // heads
            value_dim = head_dim(ctx, value_size)
        last = value_dim if index == 2 else dim
        if len(shape) == 4:
            ctx.tie(layout[1], axis)
            ctx.tie(layout[3], last)
        else:
            ctx.tie(layout[2], product(ctx, axis, last))
    return value_dim, value_size


@rule("com.microsoft::GroupQueryAttention")
def group_query_attention(ctx: Context, node: ir.Node) -> None:
    """``Q [B, S, Hq*D]``, ``K``, ``V [B, S, Hk*D]``, or all packed in the first; a cache of keys, values."""
    heads, key_heads = integer(node, "num_heads"), integer(node, "kv_num_heads")
    query = ctx.operand(node, 0)
    packed = not ctx.has(node, 1)
    batch, length, width = ctx.shape(query)
    size = width // (heads + 2 * key_heads if packed else heads)
    keys, queries = query_heads(ctx, key_heads, heads)
    dim = _rotated_dim(ctx, node, size)
    _extras(ctx, node, queries, dim)
    for value in node.inputs[: 1 if packed else 3]:
        if value is not None:
            ctx.freeze_but(value, (2,), POSITIONS)
    parts = [product(ctx, queries, dim), product(ctx, keys, dim), product(ctx, keys, dim)]
    if packed:
        counts = (heads, key_heads, key_heads)
        terms = [ctx.term(p, n * size) for p, n in zip(parts, counts, strict=True)]
        ctx.tie(ctx.layout(query)[2], ctx.axes.sum(terms))
    else:
        for index, part in enumerate(parts):
            ctx.tie(ctx.layout(ctx.operand(node, index))[2], part)
    earlier_steps(ctx, node, keys, {3: dim, 4: dim})
    masked_heads(ctx, node, 10, queries)
    state: Layout = [None, keys, None, dim]
    results: list[Layout] = [[None, None, parts[0]], state, state, [None, queries, None, None]]
    for output, layout in zip(node.outputs, results, strict=False):
        ctx.set(output, layout)
    keep_scale(ctx, node, size)
    count_heads(ctx, node, "num_heads", queries)
    count_heads(ctx, node, "kv_num_heads", keys)
    ctx.needs_zeros(node, dim)
    attention_cost(ctx, node, queries, (dim, dim), (heads, size, size, batch * length * length))


def _rotated_dim(ctx: Context, node: ir.Node, size: int) -> Term | None:
    """A head's features, in the multiples its kernels take: of 8, under rotary embedding of 8 pairs."""
    if not (integer(node, "do_rotary") and ctx.has(node, 7)):
        return head_dim(ctx, size, 8)
    caches = [ctx.operand(node, i) for i in (7, 8)]
    interleaved = bool(integer(node, "rotary_interleaved"))
    dim, pairs = rotated(ctx, size, 2 * ctx.shape(caches[0])[1], interleaved, 8)
    for cache in caches:
        ctx.tie(pairs, ctx.layout(cache)[1], "rotated by angles that come from the data")
    return dim


def _extras(ctx: Context, node: ir.Node, queries: Term | None, dim: Term | None) -> None:
    """A sink a head; what quantizes a cache or normalizes queries and keys inside holds their features."""
    if ctx.has(node, 11):
        ctx.tie(queries, ctx.layout(ctx.operand(node, 11))[0])
    for index in range(12, len(node.inputs)):
        if ctx.has(node, index):
            reason = "normalized or quantized inside of a fused attention"
            ctx.freeze(dim, reason)
            ctx.freeze_all(ctx.operand(node, index), reason)
