"""Where bodies of If, Loop and Scan begin and end (`condensec.passes.bodies` opens them)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from condensec.passes.bodies import entry, scan_axes
from condensec.passes.context import Context, Layout
from condensec.passes.rules import rule


@rule("condensec.body::If")
def branches(ctx: Context, node: ir.Node) -> None:
    """``cond, *then, *else``: each output is what comes out of either branch."""
    count = len(node.outputs)
    ctx.freeze_all(node.inputs[0], f"decides '{node.name}'")
    for index, output in enumerate(node.outputs):
        pair = [ctx.operand(node, 1 + index + shift) for shift in (0, count)]
        ctx.set(output, meet(ctx, pair, output, f"the branches of If '{node.name}' differ in it"))


def meet(ctx: Context, values: Sequence[ir.Value], output: ir.Value, reason: str) -> Layout:
    """One value or the other: axes of equal size are tied. Where shapes differ, only the data's axes may."""
    sizes = [ctx.shape(v) for v in values]
    if sizes[0] == sizes[1]:
        pairs = list(zip(*map(ctx.layout, values), strict=True))
        for a, b in pairs:
            ctx.tie(a, b, reason)
        return [None if a is None or b is None else a for a, b in pairs]
    taken = sizes.index(ctx.shape(output)) if ctx.shape(output) in sizes else 0
    first, second = ([t for t in ctx.layout(v) if t is not None] for v in values)
    places = [[axis for axis, t in enumerate(ctx.layout(v)) if t is not None] for v in values]
    moved = len(sizes[0]) == len(sizes[1]) and places[0] != places[1]
    if not moved and [t.size for t in first] == [t.size for t in second]:
        for a, b in zip(first, second, strict=True):
            ctx.tie(a, b)
    else:
        for value in values:
            ctx.freeze_all(value, reason)
    rank = len(ctx.shape(output))
    return list(ctx.layout(values[taken])) if rank == len(sizes[taken]) else [None] * rank


@rule("condensec.body::LoopEnter")
def loop_begins(ctx: Context, node: ir.Node) -> None:
    """``M, cond, *initial`` become ``iteration, cond, *carried``."""
    for value in node.inputs[:2]:
        ctx.freeze_all(value, f"decides how often '{node.name}' runs")
    for output in node.outputs[:2]:
        ctx.set(output, [None] * len(ctx.shape(output)))
    for index, output in enumerate(node.outputs[2:], 2):
        initial = ctx.operand(node, index)
        ctx.shape(output)
        ctx.set(output, ctx.layout(initial))


@rule("condensec.body::Loop")
def loop_ends(ctx: Context, node: ir.Node) -> None:
    """``cond, *carried, *scanned``, then the body's inputs; scanned outputs gain a first axis of the data."""
    start, outputs = entry(node), list(node.outputs)
    carried = len(start.outputs) - 2
    ctx.freeze_all(node.inputs[0], f"decides how often '{node.name}' runs")
    for index in range(carried):
        _carry(ctx, node, start.outputs[2 + index], ctx.operand(node, 1 + index), outputs[index])
    for index in range(carried, len(outputs)):
        scanned = ctx.operand(node, 1 + index)
        ctx.shape(scanned)
        ctx.set(outputs[index], [None, *ctx.layout(scanned)])


def _carry(ctx: Context, node: ir.Node, before: ir.Value, after: ir.Value, final: ir.Value) -> None:
    """What goes into an iteration and what comes out of it are one."""
    if ctx.shape(before) != ctx.shape(after):
        reason = f"{node.op_type} '{node.name}' carries it, and it grows"
        for value in (before, after):
            ctx.freeze_all(value, reason)
        ctx.set(final, [None] * len(ctx.shape(after)))
        return
    ctx.set(final, meet(ctx, (before, after), final, f"{node.op_type} '{node.name}' carries data in it"))


@rule("condensec.body::ScanEnter")
def scan_begins(ctx: Context, node: ir.Node) -> None:
    """``*initial, *scanned`` become ``*carried, *elements``: elements lose the axis that is scanned over."""
    axes = scan_axes(node, "input")
    carried = len(node.inputs) - len(axes)
    for index, output in enumerate(node.outputs):
        source = ctx.operand(node, index)
        layout = list(ctx.layout(source))
        if index >= carried:
            axis = axes[index - carried] % len(ctx.shape(source))
            ctx.freeze(layout.pop(axis), f"'{node.name}' takes one after the other")
        ctx.set(output, layout)


@rule("condensec.body::Scan")
def scan_ends(ctx: Context, node: ir.Node) -> None:
    """``*carried, *elements``, then the body's inputs; elements gain the axis they are put together on."""
    start, axes = entry(node), scan_axes(node, "output")
    carried = len(node.outputs) - len(axes)
    for index, output in enumerate(node.outputs):
        value = ctx.operand(node, index)
        if index < carried:
            _carry(ctx, node, start.outputs[index], value, output)
            continue
        layout = list(ctx.layout(value))
        layout.insert(axes[index - carried] % (len(ctx.shape(value)) + 1), None)
        ctx.set(output, layout)
