"""The graph as a drawing: one box for each layer, coloured by what was cut; panned and zoomed by graph.js."""

from __future__ import annotations

from markupsafe import Markup

from condensec.report import format as fmt
from condensec.report.layered import Layout, layered
from condensec.report.model import LayerCut, Report
from condensec.report.svg import tag
from condensec.report.values import GraphNode

PITCH = (222, 68)  # of boxes, across and down
BOX = (204, 44)
_EDGE = 8  # around the drawing
_TITLE, _NAME = 23, 28  # letters that fit into a box
# operator names that are too long for a box
_SHORT = {
    "BatchNormalization": "BatchNorm",
    "LayerNormalization": "LayerNorm",
    "GroupNormalization": "GroupNorm",
    "InstanceNormalization": "InstanceNorm",
    "GlobalAveragePool": "GlobalPool",
}


def graph_drawing(report: Report) -> Markup:
    """The graph of the original with what was cut; an empty string where there is none."""
    if not report.graph:
        return Markup("")
    layout = layered([node.inputs for node in report.graph])
    cuts = {layer.name: layer for layer in report.layers if layer.name}
    width = int(layout.width * PITCH[0]) + 2 * _EDGE
    height = layout.height * PITCH[1] - (PITCH[1] - BOX[1]) + 2 * _EDGE
    said = f"graph of {len(report.graph)} boxes, coloured by how much of each layer was cut; the table of"
    parts = [tag("title", f"{said} layers says the same in words"), _lines(layout)]
    for place, node in enumerate(report.graph):
        parts.append(_box(node, cuts.get(node.name), _corner(layout, place)))
    attributes = {"viewBox": f"0 0 {width} {height}"}
    return tag("svg", *parts, role="img", class_="graph", **attributes)


def _corner(layout: Layout, place: int) -> tuple[int, int]:
    """Left upper corner of a box."""
    left = layout.x[place] + 0.5
    return round(_EDGE + left * PITCH[0] - BOX[0] / 2), _EDGE + layout.rank[place] * PITCH[1]


def _lines(layout: Layout) -> Markup:
    """All edges as one path: out of a box's lower side, round bends, into a box's upper side."""
    found = []
    for above, below in layout.edges:
        x1, x2 = (round(_EDGE + (layout.x[i] + 0.5) * PITCH[0]) for i in (above, below))
        y1, y2 = (_EDGE + layout.rank[i] * PITCH[1] for i in (above, below))
        if above < layout.boxes:
            y1 += BOX[1]
        start = f"M{x1} {y1}" if above < layout.boxes else f"M{x1} {y1}v{BOX[1]}"
        y1 = y1 if above < layout.boxes else y1 + BOX[1]
        middle = (y1 + y2) // 2
        found.append(start + (f"V{y2}" if x1 == x2 else f"C{x1} {middle} {x2} {middle} {x2} {y2}"))
    return tag("path", d="".join(found), class_="wire")


def _box(node: GraphNode, cut: LayerCut | None, corner: tuple[int, int]) -> Markup:
    """One box: operators, name, how many units stay, and a bar of them."""
    left, top = corner
    ops = " + ".join(_SHORT.get(op, op) for op in (node.op, *node.folded))
    parts = [tag("title", _spoken(node, cut, ops))]
    parts.append(tag("rect", x=left, y=top, width=BOX[0], height=BOX[1], rx=6))
    room = _TITLE
    if cut is not None and cut.before > 0:
        units = "removed" if cut.removed else f"{cut.after}/{cut.before}"
        room -= len(units) + 2
        parts.append(tag("text", units, x=left + BOX[0] - 9, y=top + 16, text_anchor="end", class_="units"))
        kept = 0 if cut.removed else max(1, round((BOX[0] - 18) * cut.after / cut.before))
        parts.append(tag("path", d=f"M{left + 9} {top + 38}h{BOX[0] - 18}", class_="gone"))
        if kept:
            parts.append(tag("path", d=f"M{left + 9} {top + 38}h{kept}", class_="kept"))
    parts.insert(2, tag("text", _clipped(ops, room), x=left + 9, y=top + 16, class_="op"))
    parts.insert(3, tag("text", _clipped(node.name, _NAME, end=True), x=left + 9, y=top + 30))
    return tag("g", *parts, class_=_classes(node, cut), style=_heat(cut))


def _spoken(node: GraphNode, cut: LayerCut | None, ops: str) -> str:
    text = f"{node.name}: {ops}"
    if cut is None:
        return text
    if cut.removed:
        return f"{text}; the whole layer was removed"
    left = f", {fmt.count(cut.macs_after)} of {fmt.count(cut.macs_before)} MACs" if cut.macs_before else ""
    group = f", group {cut.group}" if cut.group else ""
    frozen = f"; frozen: {cut.reason}" if cut.reason else ""
    return f"{text}; {cut.after} of {cut.before} units stay{left}{group}{frozen}"


def _classes(node: GraphNode, cut: LayerCut | None) -> str:
    if node.op in ("input", "output"):
        return "box end"
    if cut is None:
        return "box"
    return " ".join(("box", "layer", *(["frozen"] if cut.reason else []), *(["off"] if cut.removed else [])))


def _heat(cut: LayerCut | None) -> str | None:
    """How much was cut, from 0 to 1, as the variable that colours the box."""
    if cut is None or cut.before <= 0:
        return None
    share = 1.0 if cut.removed else 1 - cut.after / cut.before
    return f"--v:{share:.2f}" if share > 0 else None


def _clipped(text: str, room: int, end: bool = False) -> str:
    """Text that fits; names keep their end, which tells them apart."""
    if len(text) <= room:
        return text
    return f"…{text[1 - room :]}" if end else f"{text[: room - 1]}…"
