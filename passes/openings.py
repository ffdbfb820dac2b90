"""Shapes of open bodies: ordinary nodes that ONNX infers shapes of, in the place of both ends of a body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from condensec.passes.bodies import DOMAIN, SHELL, entry, home, scan_axes

if TYPE_CHECKING:
    from condensec.passes.world import World

UNKNOWN = f"{DOMAIN}.unknown"  # a boolean nobody knows: keeps ONNX from computing with what a loop carries
INDEX = f"{DOMAIN}.index"  # a number nobody knows
MOST_STEPS = 1 << 16  # more are a limit that some loop never reaches


def inputs() -> list[onnx.ValueInfoProto]:
    """Graph inputs that the nodes need."""
    return [
        helper.make_tensor_value_info(UNKNOWN, TensorProto.BOOL, []),
        helper.make_tensor_value_info(INDEX, TensorProto.INT64, []),
    ]


def replace(node: ir.Node, world: World, opset: int) -> list[onnx.NodeProto]:
    """Ordinary nodes with the shapes of one that begins or ends a body."""
    names = [v.name or "" if v is not None else "" for v in node.inputs]
    made = [v.name or "" for v in node.outputs]
    if node.op_type == "If":
        return _branches(node, names, made, world)
    if node.op_type == "LoopEnter":
        return _carried(zip([INDEX, UNKNOWN, *names[2:]], made, strict=True))
    if node.op_type == "ScanEnter":
        axes = scan_axes(node, "input")
        first = len(names) - len(axes)
        elements = zip(names[first:], made[first:], axes, strict=True)
        return [
            *_carried(zip(names[:first], made[:first], strict=True)),
            *(helper.make_node("Gather", [a, INDEX], [o], axis=axis) for a, o, axis in elements),
        ]
    return _ends(node, names, made, world, opset)


def _branches(node: ir.Node, names: list[str], made: list[str], world: World) -> list[onnx.NodeProto]:
    """Where the branches' shapes differ, the one that is taken in the sample world, if that's known."""
    count, decision = len(made), world.known(node.inputs[0])
    nodes: list[onnx.NodeProto] = []
    for pair in zip(names[1 : 1 + count], names[1 + count :], made, strict=True):
        shapes = [world.shapes.get(name) for name in pair[:2]]
        if decision is None or None in shapes or shapes[0] == shapes[1]:
            nodes.extend(_either([pair]))
        elif pair[2]:
            nodes.append(helper.make_node("Identity", [pair[0 if decision.all() else 1]], [pair[2]]))
    return nodes


def _ends(node: ir.Node, names: list[str], made: list[str], world: World, opset: int) -> list[onnx.NodeProto]:
    """A Loop's or Scan's outputs: what it carried, then what it put together of every step's."""
    start, loop = entry(node), node.op_type == "Loop"
    axes = [] if loop else scan_axes(node, "output")
    carried = len(start.outputs) - 2 if loop else len(made) - len(axes)
    axes = axes or [0] * (len(made) - carried)
    before = [v.name or "" for v in start.outputs[2 if loop else 0 :]][:carried]
    after = names[1:] if loop else names
    nodes = _either(zip(before, after[:carried], made[:carried], strict=True))
    count = steps(node, world)
    for source, output, axis in zip(after[carried:], made[carried:], axes, strict=False):
        if output and count is not None:
            nodes.extend(_stacked(source, output, axis, count, opset))
    return nodes


def _stacked(source: str, output: str, axis: int, count: int, opset: int) -> list[onnx.NodeProto]:
    one, times, where = (f"{output}.{DOMAIN}.{part}" for part in ("one", "times", "axis"))
    zeros = numpy_helper.from_array(np.zeros(count, np.int64))
    position = numpy_helper.from_array(np.array([axis], np.int64))
    if opset < 13:
        first = [helper.make_node("Unsqueeze", [source], [one], axes=[axis])]
    else:
        first = [
            helper.make_node("Constant", [], [where], value=position),
            helper.make_node("Unsqueeze", [source, where], [one]),
        ]
    return [
        *first,
        helper.make_node("Constant", [], [times], value=zeros),
        helper.make_node("Gather", [one, times], [output], axis=axis),
    ]


def _either(triples: Iterable[tuple[str, str, str]]) -> list[onnx.NodeProto]:
    """One or the other: sizes where they agree."""
    nodes = []
    for first, second, output in triples:
        bodies = []
        for number, name in enumerate((first, second)):
            inner = f"{output}.{DOMAIN}.{number}"
            made = [onnx.ValueInfoProto(name=inner)]
            bodies.append(helper.make_graph([helper.make_node("Identity", [name], [inner])], inner, [], made))
        if output:
            kinds = {"then_branch": bodies[0], "else_branch": bodies[1]}
            nodes.append(helper.make_node("If", [UNKNOWN], [output], **kinds))
    return nodes


def _carried(pairs: Iterable[tuple[str, str]]) -> list[onnx.NodeProto]:
    return [helper.make_node("Where", [UNKNOWN, a, a], [b]) for a, b in pairs if a and b]


def steps(node: ir.Node, world: World) -> int | None:
    """How often a Loop or Scan runs in the sample world; None where that is decided at run time."""
    start = entry(node)
    if node.op_type == "Scan":
        axes = scan_axes(start, "input")
        scanned = start.inputs[-len(axes)] if axes else None
        sizes = world.shape(scanned) if scanned is not None else None
        return None if sizes is None else sizes[axes[0]]
    most = world.known(start.inputs[0])
    if most is None or not 0 <= most.reshape(-1)[0] <= MOST_STEPS:
        return None
    goes_on = node.inputs[0]
    while (
        goes_on is not None and (up := goes_on.producer()) is not None and up.op_type in ("Identity", "Cast")
    ):
        goes_on = up.inputs[0]
    if goes_on is start.outputs[1]:
        goes_on = start.inputs[1]
    decided = goes_on is None or ((known := world.known(goes_on)) is not None and bool(known.all()))
    return int(most.reshape(-1)[0]) if decided else None


def repeats(graph: ir.Graph, world: World) -> dict[str, int]:
    """How often each body runs, where that's known; a branch counts once."""
    ends = {body.scope: node for node in graph if SHELL in node.meta for body in node.meta[SHELL].bodies}
    found: dict[str, int] = {}
    for scope in ends:
        times, inside = 1, scope
        while inside:
            node = ends[inside]
            times *= 1 if node.op_type == "If" else steps(node, world) or 1
            inside = home(node)
        found[scope] = times
    return found
