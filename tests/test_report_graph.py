"""The drawing of the graph: which nodes share a box, where boxes stand, and what they say."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
from graph_builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from models import residual_cnn, save, transformer_encoder
from report_tools import full_report, large_report

import condensec
from condensec.report import GraphNode, LayerCut, html
from condensec.report.drawing import BOX, PITCH, graph_drawing
from condensec.report.layered import Layout, _monotone, layered
from condensec.stages import diagram as stage
from condensec.stages.diagram import diagram

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = ("a.conv", "b.conv", "fc")


def residual() -> ir.Model:
    """Two convolutions with a shortcut, and a Reshape to sizes that the graph computes."""
    b = Builder(0)
    x = b.conv_bn_relu("a", b.input("x", ["N", 3, 8, 8]), 3, 4)
    y = b.op("Add", "sum", x, b.conv_bn_relu("b", x, 4, 4))
    pooled = b.op("GlobalAveragePool", "pool", y)
    batch = b.op("Gather", "batch", b.op("Shape", "shape", pooled), b.ints("zero", 0), axis=0)
    size = b.op("Concat", "size", batch, b.ints("four", 4), axis=0)
    b.gemm("fc", b.op("Reshape", "flat", pooled, size), 4, 3, "logits")
    return ir.from_proto(b.build("residual", 3))


def test_what_follows_a_layer_one_by_one_stands_in_its_box():
    boxes = diagram(residual(), LAYERS)
    assert [(box.name, box.op, box.inputs, box.folded) for box in boxes] == [
        ("x", "input", (), ()),
        ("a.conv", "Conv", (0,), ("BatchNormalization", "Relu")),
        ("b.conv", "Conv", (1,), ("BatchNormalization", "Relu")),
        ("sum", "Add", (1, 2), ("GlobalAveragePool",)),
        ("flat", "Reshape", (3,), ()),  # Shape takes the pooled values, too
        ("fc", "Gemm", (4,), ()),
        ("logits", "output", (5,), ()),
    ]


def test_a_layer_is_never_folded_and_nothing_else_has_to_be_one():
    names = [box.name for box in diagram(residual(), ())]
    assert "b.conv" in names  # it shares its input with the shortcut
    assert "fc" not in names


def test_a_graph_nobody_could_read_is_not_drawn(monkeypatch):
    monkeypatch.setattr(stage, "MOST_BOXES", 6)
    assert diagram(residual(), LAYERS) == ()


@pytest.mark.parametrize("make", [residual_cnn, transformer_encoder])
def test_every_layer_of_a_real_report_has_its_box(make, tmp_path):
    path = save(make(), tmp_path)
    report = condensec.compress(path, keep=0.5, criterion="magnitude", dry_run=True)
    boxes = {box.name: box for box in report.graph}
    assert report.layers
    assert {layer.name for layer in report.layers} <= set(boxes)
    assert len(boxes) == len(report.graph) < report.model.nodes
    drawing = str(graph_drawing(report))
    assert drawing.count('class="box layer') == len(report.layers)


def random_graph(draw: st.DrawFn) -> list[list[int]]:
    count = draw(st.integers(1, 25))
    return [sorted(draw(st.sets(st.integers(0, box - 1), max_size=3))) if box else [] for box in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_stand_below_their_inputs_and_apart(data):
    inputs = random_graph(data.draw)
    layout = layered(inputs)
    assert layout.boxes == len(inputs)
    assert all(layout.rank[below] == layout.rank[above] + 1 for above, below in layout.edges)
    for above, below in ((s, b) for b, sources in enumerate(inputs) for s in sources):
        assert layout.rank[below] > layout.rank[above]
        assert reached(layout, above, below)
    for rank in range(layout.height):
        row = sorted((layout.x[i], i < layout.boxes) for i in range(len(layout.x)) if layout.rank[i] == rank)
        for (x1, box1), (x2, box2) in itertools.pairwise(row):
            assert x2 - x1 >= (1.0 if box1 and box2 else 0.25) - 1e-6


def reached(layout: Layout, above: int, below: int) -> bool:
    """Whether edges lead from a box to another through bends alone."""
    reach = {above}
    for one, two in sorted(layout.edges, key=lambda edge: layout.rank[edge[0]]):
        if one in reach and (one == above or one >= layout.boxes):
            reach.add(two)
    return below in reach


def test_a_chain_is_straight_and_a_far_reader_shares_one_line():
    chain = layered([[], [0], [1], [2]])
    assert len(set(chain.x)) == 1
    assert chain.height == 4
    mask = layered([[], [], [0, 1], [0, 2], [0, 3], [0, 4]])  # box 0 is read by every layer
    assert len(mask.x) - mask.boxes == 3  # one bend a rank, not one for each reader: 1 + 2 + 3


def test_edges_that_need_not_cross_do_not():
    layout = layered([[], [], [1], [0]])
    assert (layout.x[0] < layout.x[1]) == (layout.x[3] < layout.x[2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=1, max_size=6))
def test_the_nearest_ascending_sequence(pairs):
    values, weights = np.array(pairs).T
    found = _monotone(values, weights)
    assert np.all(np.diff(found) >= -1e-9)
    loss = float(np.sum(weights * (found - values) ** 2))
    rng = np.random.default_rng(0)
    for _ in range(50):  # no ascending neighbour is nearer
        other = np.sort(found + rng.normal(0, 0.1, len(found)))
        assert loss <= float(np.sum(weights * (other - values) ** 2)) + 1e-9


def drawn(boxes: tuple[GraphNode, ...], layers: tuple[LayerCut, ...]) -> ElementTree.Element:
    report = replace(full_report(), graph=boxes, layers=layers)
    return ElementTree.fromstring(str(graph_drawing(report)))


def test_a_box_says_and_shows_what_was_cut():
    cut = LayerCut("c", "Conv", 64, 16, 1000, 250, "g1")
    frozen = LayerCut("d", "Conv", 8, 8, 10, 10, reason="graph output 'y'")
    gone = LayerCut("e", "Conv", 8, 0, 10, 0, removed=True)
    boxes = (
        GraphNode("c", "Conv"),
        GraphNode("d", "Conv", (0,)),
        GraphNode("e", "Conv", (1,)),
        GraphNode("f", "Add", (2,)),
    )
    root = drawn(boxes, (cut, frozen, gone))
    found = [g for g in root.iter("g") if "box" in (g.get("class") or "")]
    assert [g.get("style") for g in found] == ["--v:0.75", None, "--v:1.00", None]
    assert [g.get("class") for g in found] == ["box layer", "box layer frozen", "box layer off", "box"]
    said = [g[0].text or "" for g in found]
    assert said[0] == "c: Conv; 16 of 64 units stay, 250 of 1.00 k MACs, group g1"
    assert "graph output 'y'" in said[1]
    assert "removed" in said[2]
    bars = [[p.get("class") for p in g.iter("path")] for g in found]
    assert bars == [["gone", "kept"], ["gone", "kept"], ["gone"], []]
    full, kept = (float(re.findall(r"h(\d+)", p.get("d") or "")[0]) for p in found[0].iter("path"))
    assert kept / full == pytest.approx(0.25, abs=0.01)


def test_every_edge_begins_and_ends_at_a_box():
    root = drawn((GraphNode("a", "Conv"), GraphNode("b", "Conv", (0,)), GraphNode("c", "Add", (0, 1))), ())
    tops = {(int(r.get("x", 0)) + BOX[0] // 2, int(r.get("y", 0))) for r in root.iter("rect")}
    (path,) = (p for p in root.iter("path") if p.get("class") == "wire")
    parts = re.findall(r"M(\d+) (\d+)(v\d+)?(?:V(\d+)|C[^MVC]* (\d+) (\d+))", path.get("d") or "")
    starts = {(int(x), int(y) - BOX[1]) for x, y, bend, *_ in parts if not bend}
    ends = {(int(x2 or x), int(y2 or down)) for x, _, _, down, x2, y2 in parts}
    assert starts == {top for top in tops if top[1] < max(y for _, y in tops)}
    assert max(tops, key=lambda top: top[1]) in ends
    assert PITCH[0] > BOX[0]


def test_names_are_clipped_at_their_beginning_and_escaped():
    name = "model/" + "<b>" * 20 + "/end"
    root = drawn((GraphNode(name, "Conv"),), ())
    texts = [t.text or "" for t in root.iter("text")]
    assert texts[1].startswith("…")
    assert texts[1].endswith("<b>/end")
    assert not list(root.iter("b"))


def test_only_the_pages_own_script_may_run():
    text = html.render(full_report())
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;;" in text
    bare = html.render(replace(full_report(), graph=()))
    assert "<script" not in bare
    assert "script-src" not in bare


def test_a_graph_of_500_boxes_stays_small():
    page = html.render(large_report(500))
    assert page.count('class="box layer') == 500
    assert len(page.encode()) < 1_000_000
