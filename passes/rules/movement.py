"""Operators that move, join, cut and repeat axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Array, Context, Kept, Layout
from condensec.passes.rules import rule


@rule("Transpose")
def transpose(ctx: Context, node: ir.Node) -> None:
    """Axes change places."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(layout))[::-1]
    ctx.set(node.outputs[0], [layout[axis] for axis in perm])


@rule("Concat")
def concat(ctx: Context, node: ir.Node) -> None:
    """One axis is the concatenation; the others are tied."""
    join(ctx, node, [v for v in node.inputs if v is not None])


def join(ctx: Context, node: ir.Node, values: list[ir.Value]) -> None:
    """Concatenate values along the node's axis."""
    rank = len(ctx.shape(values[0]))
    join = node.attributes["axis"].as_int() % rank
    result: Layout = []
    for axis in range(rank):
        terms = [ctx.layout(v)[axis] for v in values]
        sizes = [ctx.shape(v)[axis] for v in values]
        if axis == join:
            parts = [ctx.term(t, s) for t, s in zip(terms, sizes, strict=True) if s > 0]
            result.append(None if all(t is None for t in terms) else ctx.axes.sum(parts))
            continue
        for term in terms[1:]:
            ctx.tie(terms[0], term)
        result.append(None if any(t is None for t in terms) else terms[0])
    ctx.set(node.outputs[0], result)


@rule("Split", "com.microsoft::SplitTraining")
def split(ctx: Context, node: ir.Node) -> None:
    """One axis is cut into pieces; the sizes follow the cut."""
    data = ctx.operand(node, 0)
    layout, shape = ctx.layout(data), ctx.shape(data)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
    sizes = [ctx.shape(output)[axis] for output in node.outputs]
    term = layout[axis]
    if term is None:
        pieces: list[Term | None] = [None] * len(sizes)
    else:
        bounds = [int(b) for b in np.cumsum(sizes)[:-1]]
        pieces = list(ctx.axes.pieces(term, bounds))
        for position, size in enumerate(sizes):
            if size == 1:  # an axis of one unit broadcasts from here on
                ctx.freeze(pieces[position], "a single unit taken out of an axis")
                pieces[position] = None
    for output, piece in zip(node.outputs, pieces, strict=True):
        ctx.set(output, [*layout[:axis], piece, *layout[axis + 1 :]])
    if term is None:
        return

    def new_sizes(kept: Kept) -> list[int]:
        return [1 if t is None else kept.size(t) for t in pieces]

    if "split" in node.attributes:
        ctx.attribute(node, "split", new_sizes)
    elif ctx.has(node, 1):
        ctx.input(node, 1, lambda kept, old: np.array(new_sizes(kept), old.dtype))
    else:  # equal parts: they stay equal only if they are the same axis
        for piece in pieces[1:]:
            ctx.tie(pieces[0], piece, "one of the equal parts of a Split without sizes")


@rule("Expand")
def expand(ctx: Context, node: ir.Node) -> None:
    """Axes of size 1 are repeated: a repeated axis of a constant size may follow a cut."""
    data, output = ctx.operand(node, 0), node.outputs[0]
    after = ctx.shape(output)
    before = (1,) * (len(after) - len(ctx.shape(data))) + ctx.shape(data)
    layout: Layout = [None] * (len(after) - len(ctx.layout(data))) + list(ctx.layout(data))
    target = node.inputs[1]
    static = target is not None and ctx.constant(node, 1) is not None
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == 1 and new > 1 and static and axis > 0:
            layout[axis] = ctx.axes.atom(new)
            repeated = layout[axis - 1]
            if repeated is not None:  # grouped-query attention: key and value heads serve several query heads
                ctx.axes.hint(repeated, "kv_head")
    ctx.set(output, layout)
    if not any(t is not None for t in layout):
        return

    ctx.input(node, 1, lambda kept, old: _sizes(kept, layout[len(layout) - old.size :], old))


@rule("Tile")
def tile(ctx: Context, node: ir.Node) -> None:
    """An axis repeated whole is ``repeats x axis``."""
    data, output = ctx.operand(node, 0), node.outputs[0]
    result: Layout = []
    for term, old, new in zip(ctx.layout(data), ctx.shape(data), ctx.shape(output), strict=True):
        if term is None or old == new:
            result.append(term)
        else:
            result.append(ctx.axes.product([ctx.axes.fixed(new // old, "repeats of a Tile"), term]))
    ctx.set(output, result)


@rule("ConstantOfShape")
def filled(ctx: Context, node: ir.Node) -> None:
    """The same number everywhere, as many as the rest of the graph wants: the first state of an LSTM, say."""
    sizes = ctx.shape(node.outputs[0])
    layout: Layout = [ctx.axes.atom(size) if size > 1 else None for size in sizes]
    if ctx.constant(node, 0) is None or not ctx.fills(node):
        layout = [None] * len(sizes)
    ctx.set(node.outputs[0], layout)
    if any(term is not None for term in layout):
        ctx.input(node, 0, lambda kept, old: _sizes(kept, layout, old))


def _sizes(kept: Kept, layout: Layout, old: Array) -> Array:
    new = [int(o) if o == 1 or t is None else kept.size(t) for o, t in zip(old, layout, strict=True)]
    return np.array(new, old.dtype)


@rule("Shape", "Size", "Range", "EyeLike", "NonZero", "RandomNormalLike", "RandomUniformLike")
def from_sizes(ctx: Context, node: ir.Node) -> None:
    """Sizes, not values: nothing on these axes can be cut."""
    if node.op_type in ("EyeLike", "NonZero"):
        ctx.freeze_all(node.inputs[0], f"{node.op_type} depends on every position")
    for output in node.outputs:
        ctx.set(output, [None] * len(ctx.shape(output)))
