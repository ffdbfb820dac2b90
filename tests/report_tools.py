"""The sample report with every part a report can have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from condensec.report import GraphNode, NodeTime, ParetoPoint, Report, read_report

SAMPLE = Path(__file__).parent / "data" / "report.json"


def full_report() -> Report:
    """The sample with a graph (a chain of its layers with shortcuts), times of nodes, and sizes."""
    report = read_report(SAMPLE)
    boxes = [GraphNode("x", "input")]
    for place, layer in enumerate(report.layers, 1):
        shortcut = (place - 3,) if place % 3 == 0 else ()
        boxes.append(GraphNode(layer.name, layer.op, (*shortcut, place - 1), ("Relu",)))
    boxes.append(GraphNode("logits", "output", (len(boxes) - 1,)))
    times = tuple(
        NodeTime(layer.name, layer.op, 1.0 / (place + 1), 0.5 / (place + 1))
        for place, layer in enumerate(report.layers)
    )
    shares = ((0.9, 0.995), (0.6, 0.992), (0.4, 0.96))
    sizes = tuple(
        ParetoPoint(
            n, x, int(x * report.before.macs), int(x * report.before.params), y, "measured", f"p/{n}.onnx"
        )
        for n, (x, y) in enumerate(shares, 1)
    )
    targets = {**report.targets, "host": replace(report.targets["host"], nodes=times)}
    return replace(report, graph=tuple(boxes), targets=targets, pareto=sizes)


def large_report(boxes: int) -> Report:
    """The sample with a graph of that many boxes and as many layers of 512 units."""
    report = full_report()
    layers = tuple(
        replace(
            layer,
            name=f"model/layers.{i}/attention/projection/Conv",
            before=512,
            after=256 + i % 256,
            kept=(),
        )
        for i, layer in enumerate((report.layers * (boxes // len(report.layers) + 1))[:boxes])
    )
    graph = [GraphNode("x", "input")]
    for place, layer in enumerate(layers, 1):
        more = (max(0, place - 4),) if place % 4 == 0 else ()
        graph.append(
            GraphNode(layer.name, layer.op, tuple(sorted({*more, place - 1})), ("BatchNormalization", "Relu"))
        )
    return replace(report, layers=layers, graph=tuple(graph))
