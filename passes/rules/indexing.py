"""Operators that take pieces of an axis: Slice, Gather and their kin, Pad."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Array, Context, Kept, Layout
from condensec.passes.rules import rule
from condensec.passes.rules.reshape import regroup

LONE = "a single unit taken out of an axis"


@rule("Slice")
def slice_(ctx: Context, node: ir.Node) -> None:
    """A piece of an axis; starts and ends follow the cut. Regular strides take one unit of each row."""
    data = ctx.operand(node, 0)
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
        if after[axis] == 1:
            ctx.freeze(layout[axis], LONE)
            layout[axis] = None
    ctx.set(node.outputs[0], layout)
    if moves:
        _slice_positions(ctx, node, moves)


def _window(ctx: Context, term: Term, start: int, stop: int) -> Term:
    bounds = sorted({b for b in (start, stop) if 0 < b < term.size})
    return ctx.axes.pieces(term, bounds)[1 if start > 0 else 0]


def _stride(ctx: Context, term: Term, start: int, step: int, count: int) -> Term | None:
    if step > 1 and 0 <= start < step and term.size % step == 0 and count == term.size // step:
        outer, inner = ctx.axes.factor(term, count)
        ctx.freeze(inner, "taken apart by a strided Slice")
        return outer
    ctx.freeze(term, "sliced with an irregular stride")
    return None


def _slice_positions(ctx: Context, node: ir.Node, moves: dict[int, tuple[Term, int, int]]) -> None:
    def moved(end: bool, kept: Kept, old: Array) -> Array:
        result = old.copy()
        for k, (term, start, stop) in moves.items():
            if end and old.reshape(-1)[k] >= term.size:
                continue  # "to the end" stays so
            result.reshape(-1)[k] = kept.position(term, stop if end else start)
        return result

    def moved_list(end: bool, old: Array, kept: Kept) -> list[int]:
        return [int(x) for x in moved(end, kept, old)]

    if "starts" in node.attributes:
        for name in ("starts", "ends"):
            before = np.array(node.attributes[name].as_ints(), np.int64)
            ctx.attribute(node, name, partial(moved_list, name == "ends", before))
        return
    ctx.input(node, 1, partial(moved, False))
    ctx.input(node, 2, partial(moved, True))


@rule("Gather")
def gather(ctx: Context, node: ir.Node) -> None:
    """Constant indices pick pieces of an axis; indices from the data freeze it."""
    data, indices = ctx.operand(node, 0), ctx.operand(node, 1)
    layout, shape = ctx.layout(data), ctx.shape(data)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
    picked = ctx.constant(node, 1)
    term = layout[axis]
    middle: Layout = [None] * len(ctx.shape(indices))
    home = ctx.positions.get(indices)
    chosen = [] if picked is None else [int(i) % shape[axis] for i in picked.reshape(-1)]
    whole = chosen == list(range(shape[axis]))
    if home is not None:
        ctx.tie(term, home, "chosen by TopK, from an axis of the data")
    elif term is not None and len(chosen) > 1 and _is_static(ctx, indices) and (whole or len(middle) == 1):
        piece = _pick(ctx, term, chosen)
        middle = regroup(ctx, [piece], (len(chosen),), ctx.shape(indices))
        ctx.input(node, 1, lambda kept, old: _renumber(kept, term, piece, chosen, middle, old))
    elif term is not None and not (picked is not None and _only_sizes(node, picked)):
        what = "indexed by the data" if picked is None else LONE
        ctx.freeze(term, what)
    ctx.set(node.outputs[0], [*layout[:axis], *middle, *layout[axis + 1 :]])


def _only_sizes(node: ir.Node, picked: Array) -> bool:
    """Whether one end of an axis is taken only to ask for the sizes of the other axes: any unit will do.

    BART's positions count the tokens of ``embedded[:, :, -1]``.
    """
    uses = list(node.outputs[0].uses())
    sizes = all(use.node.op_type in ("Shape", "Size") for use in uses)
    return bool(uses) and sizes and not node.outputs[0].is_graph_output() and picked.tolist() in (0, -1)


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
    pieces = dict(zip(edges, ctx.axes.pieces(term, bounds), strict=False))
    parts: list[Term] = []
    for start, stop in runs:
        while start < stop:
            parts.append(pieces[start])
            start += pieces[start].size
    return ctx.axes.sum(parts)


def _renumber(kept: Kept, source: Term, piece: Term, chosen: list[int], shape: Layout, old: Array) -> Array:
    position = np.cumsum(kept.axes.alive(source, kept.masks)) - 1
    new = np.array([position[chosen[i]] for i in kept.indices(piece)], old.dtype)
    return new.reshape([n if t is None else kept.size(t) for n, t in zip(old.shape, shape, strict=True)])


@rule("GatherElements", "ScatterElements", "Scatter")
def along_one_axis(ctx: Context, node: ir.Node) -> None:
    """Indices name positions on one axis; on the others, data, indices and updates lie side by side."""
    data, indices = ctx.operand(node, 0), ctx.operand(node, 1)
    layout, shape = list(ctx.layout(data)), ctx.shape(data)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(shape)
    others = [ctx.operand(node, 2)] if node.op_type != "GatherElements" else []
    home = ctx.positions.get(indices)
    if home is not None:
        _at_positions(ctx, node, axis, home)
    for value in (data, indices, *others) if home is None else (indices, *others):
        ctx.freeze(ctx.layout(value)[axis], f"{node.op_type} indexes this axis")
    for position, size in enumerate(shape):
        if position == axis:
            layout[position] = home if others else None
            continue
        for value in (indices, *others):
            if ctx.shape(value)[position] == size:
                ctx.tie(
                    layout[position], ctx.layout(value)[position], f"{node.op_type} by the data's indices"
                )
            else:
                ctx.freeze(layout[position], f"{node.op_type} reaches a part of this axis")
                ctx.freeze(ctx.layout(value)[position], f"{node.op_type} reaches a part of an axis")
        if ctx.layout(indices)[position] is None or ctx.shape(indices)[position] != size:
            layout[position] = None
    ctx.set(node.outputs[0], layout)


def _at_positions(ctx: Context, node: ir.Node, axis: int, home: Term) -> None:
    """Positions that TopK found are those of the data's axis; zeros of a computed size follow."""
    data = ctx.operand(node, 0)
    if (
        ctx.layout(data)[axis] is None
        and data.name in ctx.world.derived
        and ctx.constant(node, 0) is not None
    ):
        ctx.input(node, 0, lambda kept, old: np.take(old, kept.indices(home), axis))
    else:
        ctx.tie(ctx.layout(data)[axis], home, "chosen by TopK, from an axis of the data")


@rule("GatherND", "ScatterND")
def by_coordinates(ctx: Context, node: ir.Node) -> None:
    """The last axis of the indices names positions on the first axes; the axes behind them pass."""
    data, indices = ctx.operand(node, 0), ctx.operand(node, 1)
    layout, sizes = ctx.layout(data), ctx.shape(indices)
    batch = node.attributes["batch_dims"].as_int() if "batch_dims" in node.attributes else 0
    ctx.freeze_all(indices, f"indices of {node.op_type}")
    behind = batch + sizes[-1]
    for term in layout[:behind]:
        ctx.freeze(term, f"{node.op_type} indexes this axis")
    passing = layout[behind:]
    if node.op_type == "GatherND":
        ctx.set(node.outputs[0], [*[None] * (len(sizes) - 1), *passing])
        return
    updates = ctx.layout(ctx.operand(node, 2))
    for term in updates[: len(sizes) - 1]:
        ctx.freeze(term, "positions of ScatterND")
    for term, other in zip(passing, updates[len(sizes) - 1 :], strict=True):
        ctx.tie(term, other, "updates come from the data")
    ctx.set(node.outputs[0], [*[None] * behind, *passing])


@rule("OneHot")
def one_hot(ctx: Context, node: ir.Node) -> None:
    """A new axis, as deep as there are classes; it's the axis that TopK chose from, where it did."""
    indices = ctx.operand(node, 0)
    home, depth = ctx.positions.get(indices), ctx.ints(node, 1, "depth")
    if home is None or depth is None or depth[0] != home.size:
        indexed(ctx, node)
        ctx.freeze(home, "OneHot is as deep as something else")
        return
    layout = list(ctx.layout(indices))
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    layout.insert(axis % (len(layout) + 1), home)
    ctx.set(node.outputs[0], layout)
    ctx.input(node, 1, lambda kept, old: np.full(old.shape, kept.size(home), old.dtype))


@rule("Compress", "NonMaxSuppression")
def indexed(ctx: Context, node: ir.Node) -> None:
    """Positions on axes are chosen by the data: those axes can't be cut."""
    if node.op_type == "Compress" and "axis" in node.attributes:
        data = ctx.operand(node, 0)
        layout = list(ctx.layout(data))
        axis = node.attributes["axis"].as_int()
        ctx.freeze(layout[axis], "Compress takes pieces of this axis")
        layout[axis] = None
        ctx.set(node.outputs[0], layout)
        return
    for value in node.inputs:
        ctx.freeze_all(value, f"{node.op_type} indexes this axis")
    for output in node.outputs:
        ctx.set(output, [None] * len(ctx.shape(output)))


@rule("Pad")
def pad(ctx: Context, node: ir.Node) -> None:
    """Padded units come before and after an axis; their number follows the cut."""
    data = ctx.operand(node, 0)
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
