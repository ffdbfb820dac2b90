"""Attention of the standard (opset 23): Attention, RotaryEmbedding. Fused ones are in `fused_attention`."""

from __future__ import annotations

from math import sqrt

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Kept, Layout
from condensec.passes.rules import rule

POSITIONS = "positions of an attention"


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def product(ctx: Context, *terms: Term | None) -> Term | None:
    """The product of the terms that are there (an axis of one unit has none)."""
    real = [t for t in terms if t is not None]
    return ctx.axes.product(real) if real else None


def query_heads(ctx: Context, key_heads: int, heads: int) -> tuple[Term | None, Term | None]:
    """Axes of key and query heads: a key head serves ``heads / key_heads`` neighbouring query heads."""
    keys = ctx.axes.atom(key_heads) if key_heads > 1 else None
    if heads == key_heads:
        if keys is not None:
            ctx.axes.hint(keys, "head")
        return keys, keys
    repeats = ctx.axes.atom(heads // key_heads)
    ctx.axes.hint(repeats, "head")
    if keys is not None:
        ctx.axes.hint(keys, "kv_head")
    return keys, product(ctx, keys, repeats)


def head_dim(ctx: Context, size: int, block: int = 1) -> Term | None:
    """The axis of one head's features, where a kernel asks for it in blocks that leave as one."""
    if size == 1:
        return None
    if size % block:
        return ctx.axes.fixed(size, f"the kernel takes features in multiples of {block}")
    axis = ctx.axes.atom(size // block)
    if axis.size > 1:
        ctx.axes.hint(axis, "head_dim")
    return axis if block == 1 else ctx.axes.product([axis, ctx.axes.fixed(block, "features of one block")])


def keep_scale(ctx: Context, node: ir.Node, size: int) -> None:
    """Without a scale, the operator divides by the root of the head's size: that one stays as it was."""
    if "scale" not in node.attributes or node.attributes["scale"].as_float() == 0.0:
        ctx.attribute(node, "scale", lambda kept: 1.0 / sqrt(size))


def count_heads(ctx: Context, node: ir.Node, name: str, heads: Term | None) -> None:
    """The attribute that counts heads follows the cut."""
    if heads is not None:

        def new(kept: Kept, axis: Term = heads) -> int:
            return kept.size(axis)

        ctx.attribute(node, name, new)


def attention_cost(
    ctx: Context,
    node: ir.Node,
    heads: Term | None,
    dims: tuple[Term | None, Term | None],
    sizes: tuple[int, ...],
) -> None:
    """Scores and their product with the values: ``pairs of positions * heads * (dim of k + dim of v)``."""
    count, query, value, positions = sizes
    both = ctx.axes.sum([ctx.term(dims[0], query), ctx.term(dims[1], value)])
    ctx.cost(node, (heads, both, None), (count, query + value, positions))


def earlier_steps(
    ctx: Context,
    node: ir.Node,
    heads: Term | None,
    dims: dict[int, Term | None],
    axes: tuple[int, int] = (1, 3),
) -> None:
    """Cached keys and values of earlier steps, by input index: their axes of heads and of features."""
    for index, dim in dims.items():
        if ctx.has(node, index):
            past = ctx.layout(ctx.operand(node, index))
            ctx.tie(heads, past[axes[0]], "keys and values of earlier steps")
            ctx.tie(dim, past[axes[1]], "keys and values of earlier steps")


def masked_heads(ctx: Context, node: ir.Node, index: int, heads: Term | None) -> None:
    """A mask or bias of the scores, ``[..., heads or 1, S, T]``."""
    if ctx.has(node, index):
        mask = ctx.operand(node, index)
        if len(ctx.shape(mask)) > 2 and ctx.shape(mask)[-3] > 1:
            ctx.tie(heads, ctx.layout(mask)[-3], "masked head by head by the data")


@rule("Attention")
def attention(ctx: Context, node: ir.Node) -> None:
    """``Q [B, Hq, S, D]`` or ``[B, S, Hq*D]``; ``K`` and ``V`` alike, with key heads."""
    values = [ctx.operand(node, i) for i in range(3)]
    shapes = [ctx.shape(v) for v in values]
    flat = len(shapes[0]) == 3
    heads = integer(node, "q_num_heads") if flat else shapes[0][1]
    key_heads = integer(node, "kv_num_heads") if flat else shapes[1][1]
    keys, queries = query_heads(ctx, key_heads, heads)
    sizes = [shapes[1][2] // key_heads, shapes[2][2] // key_heads] if flat else [shapes[1][3], shapes[2][3]]
    dim, value_dim = head_dim(ctx, sizes[0]), head_dim(ctx, sizes[1])
    for value, own, last in zip(values, (queries, keys, keys), (dim, dim, value_dim), strict=True):
        layout = ctx.layout(value)
        ctx.freeze_but(value, (2,) if flat else (1, 3), POSITIONS)
        if flat:
            ctx.tie(layout[2], product(ctx, own, last))
        else:
            ctx.tie(layout[1], own)
            ctx.tie(layout[3], last)
    masked_heads(ctx, node, 3, queries)
    earlier_steps(ctx, node, keys, {4: dim, 5: value_dim})
    _results(ctx, node, (keys, queries), (dim, value_dim), flat)
    keep_scale(ctx, node, sizes[0])
    length = 1 if flat else 2
    pairs = shapes[0][0] * shapes[0][length] * shapes[1][length]
    attention_cost(ctx, node, queries, (dim, value_dim), (heads, *sizes, pairs))


def _results(
    ctx: Context,
    node: ir.Node,
    heads: tuple[Term | None, Term | None],
    dims: tuple[Term | None, Term | None],
    flat: bool,
) -> None:
    """Layouts of the outputs, and what sums over a head's features."""
    (keys, queries), (dim, value_dim) = heads, dims
    batch = ctx.layout(ctx.operand(node, 0))[0]
    out: Layout = [batch, queries, None, value_dim]
    if flat:  # heads and features share an axis, which the oracle can't restrict
        out = [batch, None, product(ctx, queries, value_dim)]
        ctx.needs_zeros(node, dim)
        count_heads(ctx, node, "q_num_heads", queries)
        count_heads(ctx, node, "kv_num_heads", keys)
    else:
        ctx.contracts(node, 0, 3)
        ctx.contracts(node, 1, 3)
    states = [out, [batch, keys, None, dim], [batch, keys, None, value_dim], [batch, queries, None, None]]
    for output, layout in zip(node.outputs, states, strict=False):
        ctx.set(output, layout)


def rotated(
    ctx: Context, size: int, rotary: int, interleaved: bool, block: int = 1
) -> tuple[Term | None, Term | None]:
    """A head's features under rotary embedding, and the axis of rotated pairs.

    Features turn in pairs: ``i`` with ``i + rotary/2``, or neighbours where they are interleaved. Pairs, and
    features that don't turn, leave in blocks of ``block``.
    """
    pairs = head_dim(ctx, rotary // 2, block)
    two = ctx.axes.fixed(2, "the two features of a rotated pair")
    turned = product(ctx, *((pairs, two) if interleaved else (two, pairs)))
    if rotary == size:
        return turned, pairs
    assert turned is not None
    rest = ctx.term(head_dim(ctx, size - rotary, 2 * block if block > 1 else 1), size - rotary)
    return ctx.axes.sum([turned, rest]), pairs


@rule("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def rotary_embedding(ctx: Context, node: ir.Node) -> None:
    """``X [B, H, S, D]`` or ``[B, S, H*D]``; cosines and sines ``[positions, D/2]`` or ``[B, S, D/2]``."""
    data = ctx.operand(node, 0)
    caches = [ctx.operand(node, i) for i in ((2, 3) if node.domain == "com.microsoft" else (1, 2))]
    layout, shape = ctx.layout(data), ctx.shape(data)
    half = ctx.shape(caches[0])[-1]
    partial = integer(node, "rotary_embedding_dim")
    flat = len(shape) == 3
    heads = (integer(node, "num_heads") or shape[2] // (2 * half)) if flat else shape[1]
    size = shape[2] // heads if flat else shape[3]
    features, pairs = rotated(ctx, size, partial or 2 * half, bool(integer(node, "interleaved")))
    for cache in caches:
        ctx.tie(pairs, ctx.layout(cache)[-1], "rotated by angles that come from the data")
    if flat:
        axis = ctx.axes.atom(heads) if heads > 1 else None
        ctx.tie(layout[2], product(ctx, axis, features))
        if integer(node, "num_heads"):
            count_heads(ctx, node, "num_heads", axis)
    else:
        ctx.tie(layout[3], features)
    if partial and pairs is not None:
        ctx.attribute(node, "rotary_embedding_dim", lambda kept: 2 * kept.size(pairs))
    ctx.set(node.outputs[0], layout)
