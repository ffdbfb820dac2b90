"""Operators that move, join, cut and repeat axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Array, Context, Kept, Layout
from condensec.passes.rules import rule


@rule("Transpose")
def transpose(ctx: Context, node: ir.Node) -> None:
    """Axes change places."""
    data = node.inputs[0]
    assert data is not None
    layout = ctx.layout(data)
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(layout))[::-1]
    ctx.set(node.outputs[0], [layout[axis] for axis in perm])


@rule("Concat")
def concat(ctx: Context, node: ir.Node) -> None:
    """One axis is the concatenation; the others are tied."""
    values = [v for v in node.inputs if v is not None]
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
    data = node.inputs[0]
    assert data is not None
    layout, shape = ctx.layout(data), ctx.shape(data)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
    sizes = [ctx.shape(output)[axis] for output in node.outputs]
    term = layout[axis]
    if term is None:
        pieces: list[Term | None] = [None] * len(sizes)
    else:
        bounds = [int(b) for b in np.cumsum(sizes)[:-1]]
        pieces = [piece if size > 1 else _lone(ctx, piece) for piece, size in zip(_cut(ctx, term, bounds), sizes, strict=True)]
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


def _cut(ctx: Context, term: Term, bounds: list[int]) -> list[Term]:
    """Pieces of a term; bounds at the very ends give empty pieces, which never matter."""
    return ctx.axes.pieces(term, bounds)


def _lone(ctx: Context, piece: Term) -> None:
    """An axis of one unit broadcasts from here on: it can't be cut."""
    ctx.freeze(piece, "a single unit taken out of an axis")
    return None


@rule("Slice")
def slice_(ctx: Context, node: ir.Node) -> None:
    """A piece of an axis; starts and ends follow the cut. Regular strides take one unit of each row."""
    data = node.inputs[0]
    assert data is not None
    layout, before, after = list(ctx.layout(data)), ctx.shape(data), ctx.shape(node.outputs[0])
    starts, ends = ctx.ints(node, 1, "starts"), ctx.ints(node, 2, "ends")
    axes, steps = ctx.ints(node, 3, "axes"), ctx.ints(node, 4, "steps")
    if starts is None or ends is None:
        ctx.freeze_all(data, "sliced at positions chosen at run time")
        ctx.set(node.outputs[0], [None] * len(after))
        return
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    moves: dict[int, tuple[Term, int, int]] = {}
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis %= len(before)
        term, size = layout[axis], before[axis]
        if term is None or (step == 1 and after[axis] == size):
            continue
        if step != 1:
            layout[axis] = _stride(ctx, term, starts[k], step, after[axis])
            continue
        start = max(0, min(starts[k] + size if starts[k] < 0 else starts[k], size))
        layout[axis] = _window(ctx, term, start, start + after[axis])
        moves[k] = (term, start, start + after[axis])
        if after[axis] == 1 and layout[axis] is not None:
            layout[axis] = _lone(ctx, layout[axis])  # type: ignore[arg-type]
    ctx.set(node.outputs[0], layout)
    if moves:
        _slice_positions(ctx, node, moves)


def _window(ctx: Context, term: Term, start: int, stop: int) -> Term:
    bounds = sorted({b for b in (start, stop) if 0 < b < term.size})
    return _cut(ctx, term, bounds)[1 if start > 0 else 0]


def _stride(ctx: Context, term: Term, start: int, step: int, count: int) -> Term | None:
    if step > 1 and 0 <= start < step and term.size % step == 0 and count == term.size // step:
        outer, inner = ctx.axes.factor(term, count)
        ctx.freeze(inner, "taken apart by a strided Slice")
        return outer
    ctx.freeze(term, "sliced with an irregular stride")
    return None


def _slice_positions(ctx: Context, node: ir.Node, moves: dict[int, tuple[Term, int, int]]) -> None:
    def moved(end: bool) -> Callable[[Kept, Array], Array]:
        def new(kept: Kept, old: Array) -> Array:
            result = old.copy()
            for k, (term, start, stop) in moves.items():
                if end and old.reshape(-1)[k] >= term.size:
                    continue  # "to the end" stays so
                result.reshape(-1)[k] = kept.position(term, stop if end else start)
            return result

        return new

    if "starts" in node.attributes:
        for name in ("starts", "ends"):
            old = np.array(node.attributes[name].as_ints(), np.int64)
            change = moved(name == "ends")
            ctx.attribute(node, name, lambda kept, change=change, old=old: [int(x) for x in change(kept, old)])  # type: ignore[misc]
        return
    ctx.input(node, 1, moved(False))
    ctx.input(node, 2, moved(True))


@rule("Gather")
def gather(ctx: Context, node: ir.Node) -> None:
    """Constant indices pick pieces of an axis; indices from the data freeze it."""
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None and indices is not None
    layout, shape = ctx.layout(data), ctx.shape(data)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
    picked = ctx.constant(node, 1)
    term = layout[axis]
    middle: Layout = [None] * len(ctx.shape(indices))
    if term is not None and picked is not None and picked.ndim == 1 and picked.size > 1 and _is_static(ctx, indices):
        chosen = [int(i) % shape[axis] for i in picked]
        middle = [_pick(ctx, term, chosen)]
        ctx.input(node, 1, lambda kept, old: _renumber(kept, term, middle[0], chosen, old))
    elif term is not None:
        what = "indexed by the data" if picked is None else "a single unit taken out of an axis"
        ctx.freeze(term, what)
    ctx.set(node.outputs[0], [*layout[:axis], *middle, *layout[axis + 1 :]])


def _is_static(ctx: Context, value: ir.Value) -> bool:
    return value.name not in ctx.world.derived


def _pick(ctx: Context, term: Term, chosen: list[int]) -> Term:
    """The concatenation of the runs of consecutive indices."""
    runs: list[tuple[int, int]] = []
    for index in chosen:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    bounds = sorted({b for run in runs for b in run if 0 < b < term.size})
    edges = [0, *bounds, term.size]
    pieces = dict(zip(edges, _cut(ctx, term, bounds), strict=False))
    parts: list[Term] = []
    for start, stop in runs:
        while start < stop:
            parts.append(pieces[start])
            start += pieces[start].size
    return ctx.axes.sum(parts)


def _renumber(kept: Kept, source: Term, picked: Term | None, chosen: list[int], old: Array) -> Array:
    assert picked is not None
    position = np.cumsum(kept.axes.alive(source, kept.masks)) - 1
    stay = kept.indices(picked)
    return np.array([position[chosen[i]] for i in stay], old.dtype)


@rule("GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter", "Compress", "NonMaxSuppression", "OneHot")
def indexed(ctx: Context, node: ir.Node) -> None:
    """Indices name positions on axes: those axes can't be cut."""
    for value in node.inputs:
        ctx.freeze_all(value, f"{node.op_type} indexes this axis")
    for output in node.outputs:
        ctx.set(output, [None] * len(ctx.shape(output)))


@rule("Pad")
def pad(ctx: Context, node: ir.Node) -> None:
    """Padded units come before and after an axis; their number follows the cut."""
    data = node.inputs[0]
    assert data is not None
    layout, before = list(ctx.layout(data)), ctx.shape(data)
    after = ctx.shape(node.outputs[0])
    name = "pads" if "pads" in node.attributes else "paddings"
    pads = ctx.ints(node, 1, name)
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    listed = ctx.ints(node, 3, "axes")
    axes = [a % len(before) for a in listed] if listed is not None else list(range(len(before)))
    edges: dict[int, tuple[Term | None, Term | None]] = {}
    for k, axis in enumerate(axes):
        if before[axis] == after[axis] or layout[axis] is None:
            continue
        low, high = (pads[k], pads[k + len(axes)]) if pads is not None else (-1, -1)
        if low < 0 or high < 0 or mode != "constant":
            ctx.freeze(layout[axis], "padded with its own values, or cropped")
            layout[axis] = None
            continue
        edges[k] = (ctx.axes.atom(low) if low else None, ctx.axes.atom(high) if high else None)
        parts = [edges[k][0], layout[axis], edges[k][1]]
        layout[axis] = ctx.axes.sum([t for t in parts if t is not None])
    ctx.set(node.outputs[0], layout)
    if not edges:
        return

    def new(kept: Kept, old: Array) -> Array:
        result = old.copy()
        for k, pair in edges.items():
            for position, term in zip((k, k + len(axes)), pair, strict=True):
                result[position] = 0 if term is None else kept.size(term)
        return result

    if name in node.attributes:
        old = np.array(node.attributes[name].as_ints(), np.int64)
        ctx.attribute(node, name, lambda kept: [int(x) for x in new(kept, old)])
    else:
        ctx.input(node, 1, new)


@rule("Expand")
def expand(ctx: Context, node: ir.Node) -> None:
    """Axes of size 1 are repeated: a repeated axis of a constant size may follow a cut."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
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

    def new_target(kept: Kept, old: Array) -> Array:
        offset = len(layout) - old.size
        new = [int(o) if o == 1 or layout[offset + i] is None else kept.size(layout[offset + i]) for i, o in enumerate(old)]  # type: ignore[arg-type]
        return np.array(new, old.dtype)

    ctx.input(node, 1, new_target)


@rule("Tile")
def tile(ctx: Context, node: ir.Node) -> None:
    """An axis repeated whole is ``repeats x axis``."""
    data, output = node.inputs[0], node.outputs[0]
    assert data is not None
    result: Layout = []
    for term, old, new in zip(ctx.layout(data), ctx.shape(data), ctx.shape(output), strict=True):
        if term is None or old == new:
            result.append(term)
        else:
            result.append(ctx.axes.product([ctx.axes.fixed(new // old, "repeats of a Tile"), term]))
    ctx.set(output, result)


@rule("Shape", "Size", "ConstantOfShape", "Range", "EyeLike", "NonZero", "RandomNormalLike", "RandomUniformLike")
def from_sizes(ctx: Context, node: ir.Node) -> None:
    """Sizes, not values: nothing on these axes can be cut."""
    if node.op_type in ("EyeLike", "NonZero"):
        ctx.freeze_all(node.inputs[0], f"{node.op_type} depends on every position")
    for output in node.outputs:
        ctx.set(output, [None] * len(ctx.shape(output)))
