"""The original's graph as the report draws it: what was cut in each layer, and boxes a person can read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from condensec.passes.bodies import enters
from condensec.passes.prune import Cut
from condensec.passes.widths import Widths
from condensec.report.model import LayerCut, runs
from condensec.report.values import GraphNode
from condensec.stages.job import Job

MOST_BOXES = 3000  # beyond it nobody finds anything in a drawing, and the file grows too large
_MEASURES = frozenset(("Shape", "Size"))


@dataclass
class _Box:
    name: str
    op: str
    inputs: list[_Box]
    folded: list[str] = field(default_factory=list)


def layer_cuts(job: Job, cut: Cut, counts: Mapping[str, int]) -> tuple[LayerCut, ...]:
    """What was cut in each weighted node."""
    analysis = job.analysis
    dense, thin = Widths(analysis, ()), Widths(analysis, ()).at(counts)
    kept = analysis.kept(cut.plan.kept())
    owner = {a.id: g.id for g in analysis.groups for a in g.atoms}
    found = []
    for cost in analysis.context.costs:
        if cost.outputs is None:
            continue
        before, after = dense.shape(cost), thin.shape(cost)
        gone = thin.removed(before.name)
        atoms = analysis.axes.atoms(cost.outputs)
        found.append(
            LayerCut(
                name=before.name,
                op=before.op,
                before=before.out_channels,
                after=0 if gone else after.out_channels,
                macs_before=before.macs,
                macs_after=0 if gone else after.macs,
                group=next((owner[a.id] for a in atoms if a.id in owner), ""),
                kept=() if gone else runs(int(i) for i in kept.indices(cost.outputs)),
                removed=gone,
                reason=next((a.frozen for a in atoms if a.frozen), ""),
            )
        )
    return tuple(found)


def diagram(model: ir.Model, layers: Collection[str]) -> tuple[GraphNode, ...]:
    """Boxes in topological order.

    A node without weights that has one predecessor, whose only user it is, is drawn within its
    predecessor's box: Conv, BatchNormalization and Relu are one. Constants and what only computes shapes
    aren't drawn.

    Args:
        model: the analysed model.
        layers: names of nodes that get a box of their own.

    Returns:
        The boxes; nothing where there would be more than `MOST_BOXES`.
    """
    nodes = [node for node in model.graph if not enters(node)]
    uses = _uses(model, nodes)
    holder: dict[ir.Value, _Box] = {}
    boxes: list[_Box] = []
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            holder[value] = _Box(value.name or "", "input", [])
            boxes.append(holder[value])
    shapes: set[ir.Value] = set()
    for node in nodes:
        if _only_shapes(node, shapes):
            shapes.update(node.outputs)
            continue
        values = [value for value in dict.fromkeys(node.inputs) if value is not None and value in holder]
        if not values:
            continue  # a constant
        box = _host(node, values, holder, uses, layers)
        if box is None:
            box = _Box(node.name or "", node.op_type, [holder[value] for value in values])
            boxes.append(box)
        holder.update(dict.fromkeys(node.outputs, box))
    for value in model.graph.outputs:
        if value in holder:
            boxes.append(_Box(value.name or "", "output", [holder[value]]))
    return _numbered(boxes) if len(boxes) <= MOST_BOXES else ()


def _uses(model: ir.Model, nodes: Iterable[ir.Node]) -> dict[ir.Value, int]:
    """How many nodes and graph outputs take a value."""
    uses: dict[ir.Value, int] = {}
    taken = [value for node in nodes for value in dict.fromkeys(node.inputs) if value is not None]
    for value in [*taken, *model.graph.outputs]:
        uses[value] = uses.get(value, 0) + 1
    return uses


def _only_shapes(node: ir.Node, shapes: Collection[ir.Value]) -> bool:
    """Whether a node works on sizes alone."""
    if node.op_type in _MEASURES:
        return True
    moving = [v for v in node.inputs if v is not None and (v.producer() is not None or v.is_graph_input())]
    moving = [v for v in moving if v.producer() is None or v.producer().op_type != "Constant"]  # type: ignore[union-attr]
    return bool(moving) and all(v in shapes for v in moving)


def _host(
    node: ir.Node,
    values: list[ir.Value],
    holder: dict[ir.Value, _Box],
    uses: dict[ir.Value, int],
    layers: Collection[str],
) -> _Box | None:
    """The predecessor in whose box a node is drawn; None where it gets one of its own."""
    if (node.name or "") in layers or len(values) != 1 or uses[values[0]] != 1:
        return None
    host = holder[values[0]]
    if host.op == "input":
        return None
    host.folded.append(node.op_type)
    return host


def _numbered(boxes: list[_Box]) -> tuple[GraphNode, ...]:
    places = {id(box): number for number, box in enumerate(boxes)}
    return tuple(
        GraphNode(box.name, box.op, tuple(sorted({places[id(b)] for b in box.inputs})), tuple(box.folded))
        for box in boxes
    )
