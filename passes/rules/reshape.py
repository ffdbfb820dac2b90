"""Operators that regroup axes: Reshape, Flatten, Squeeze, Unsqueeze, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Array, Context, Kept, Layout
from condensec.passes.rules import rule


def regroup(ctx: Context, layout: Layout, before: tuple[int, ...], after: tuple[int, ...]) -> Layout:
    """Layout after a row-major reshape: the finest runs of axes with equal products correspond."""
    result: Layout = []
    i = j = 0
    while i < len(before) or j < len(after):
        rows, cols = [i], [j]
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= before[i]
                rows.append(i)
                i += 1
            else:
                right *= after[j]
                cols.append(j)
                j += 1
        terms = [(layout[r], before[r]) for r in rows if r < len(before) and before[r] > 1]
        sizes = [after[c] for c in cols if c < len(after)]
        result.extend(_block(ctx, terms, sizes))
    return result


def _block(ctx: Context, terms: list[tuple[Term | None, int]], sizes: list[int]) -> Layout:
    """One run of axes regrouped into axes of the given sizes."""
    real = [s for s in sizes if s > 1]
    if all(term is None for term, _ in terms):
        return [None] * len(sizes)
    if len(terms) == 1 and len(real) == 1:
        return [terms[0][0] if s > 1 else None for s in sizes]
    whole = ctx.axes.product([ctx.term(term, size) for term, size in terms])
    if len(real) == 1:
        return [whole if s > 1 else None for s in sizes]
    if len(terms) == 1 or not _aligned(terms, real):
        new: list[Term | None] = [ctx.axes.atom(s) for s in real]
        ctx.tie(whole, ctx.axes.product([t for t in new if t is not None]))
    else:
        new = [term for term, _ in terms]
    found = iter(new)
    return [next(found) if s > 1 else None for s in sizes]


def _aligned(terms: list[tuple[Term | None, int]], sizes: list[int]) -> bool:
    return [size for _, size in terms] == sizes


@rule("Reshape")
def reshape(ctx: Context, node: ir.Node) -> None:
    """Row-major regrouping; the target follows the cut."""
    data, output = ctx.operand(node, 0), node.outputs[0]
    before, after = ctx.shape(data), ctx.shape(output)
    source = ctx.layout(data)
    layout = regroup(ctx, source, before, after)
    ctx.set(output, layout)

    def new_target(kept: Kept, old: Array) -> Array:
        new = [
            int(o) if o in (0, -1) or t is None else kept.size(t) for o, t in zip(old, layout, strict=True)
        ]
        return np.array(new, old.dtype)

    if any(term is not None for term in layout):
        ctx.input(node, 1, new_target)


@rule("Flatten")
def flatten(ctx: Context, node: ir.Node) -> None:
    """Two axes: everything before ``axis``, everything from it on."""
    data = ctx.operand(node, 0)
    ctx.set(node.outputs[0], regroup(ctx, ctx.layout(data), ctx.shape(data), ctx.shape(node.outputs[0])))


@rule("Squeeze")
def squeeze(ctx: Context, node: ir.Node) -> None:
    """Axes of size 1 leave."""
    data = ctx.operand(node, 0)
    sizes = ctx.shape(data)
    axes = ctx.ints(node, 1, "axes")
    gone = {a % len(sizes) for a in axes} if axes else {a for a, s in enumerate(sizes) if s == 1}
    ctx.set(node.outputs[0], [t for a, t in enumerate(ctx.layout(data)) if a not in gone])


@rule("Unsqueeze")
def unsqueeze(ctx: Context, node: ir.Node) -> None:
    """Axes of size 1 come in."""
    data = ctx.operand(node, 0)
    axes = ctx.ints(node, 1, "axes") or []
    rank = len(ctx.layout(data)) + len(axes)
    new = {a % rank for a in axes}
    old = iter(ctx.layout(data))
    ctx.set(node.outputs[0], [None if a in new else next(old) for a in range(rank)])


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(ctx: Context, node: ir.Node) -> None:
    """Channels are ``C`` times a block of ``b x b`` positions that can't be cut."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    for term in layout[2:]:
        ctx.freeze(term, f"{node.op_type} moves blocks of space")
    block = node.attributes["blocksize"].as_int()
    if node.op_type == "SpaceToDepth":
        pixels = ctx.axes.fixed(block * block, "positions of a block")
        channels = layout[1]
        ctx.set(
            node.outputs[0],
            [layout[0], ctx.axes.product([pixels, *([channels] if channels else [])]), None, None],
        )
        return
    pixels = ctx.axes.fixed(block * block, "positions of a block")
    count = ctx.shape(data)[1] // (block * block)
    inner = ctx.axes.atom(count) if count > 1 else None
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "DCR"
    factors = [pixels, *([inner] if inner else [])]
    ctx.tie(layout[1], ctx.axes.product(factors if mode == "DCR" else factors[::-1]))
    ctx.set(node.outputs[0], [layout[0], inner, None, None])
