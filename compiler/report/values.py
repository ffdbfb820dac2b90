"""Values that a report holds beside its main figures: Pareto points, times of single nodes, the graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParetoPoint:
    """One model along the front of ``--pareto``.

    Attributes:
        n: number, the largest model first.
        ratio: its latency over the original's on `target`, if it is known.
        macs, params: of the model.
        metric: of the emitted graph, on the samples of `condensec.report.Report.after`.
        verified: how the ratio was got; one of the four words of `condensec.report.model`.
        file: the emitted graph, relative to the output folder; the healed one is beside its folder.
        target: whose latency and graph these are: the first one asked for.
        ci95: 95% interval of `ratio`.
        metric_validation: what the guard saw.
        bytes: size of the file.
    """

    n: int
    ratio: float | None = None
    macs: int = 0
    params: int = 0
    metric: float | None = None
    verified: str = "measured"
    file: str = ""
    target: str = ""
    ci95: tuple[float, float] | None = None
    metric_validation: float | None = None
    bytes: int = 0


@dataclass(frozen=True)
class NodeTime:
    """What one node takes in a run of the original and of the emitted graph.

    Attributes:
        name: of the node as the runtime runs it (fused nodes go by the first one's name).
        op: operator type.
        before_ms, after_ms: milliseconds a call; None where the graph has no such node.
    """

    name: str
    op: str
    before_ms: float | None = None
    after_ms: float | None = None


@dataclass(frozen=True)
class GraphNode:
    """One box of the diagram of the graph.

    Attributes:
        name: of its first node; ``input`` and ``output`` boxes have the value's name.
        op: operator type of its first node, or ``input``, ``output``.
        inputs: boxes whose outputs it takes, by their place in the list; all come before it.
        folded: operator types of the nodes that follow it one by one and are drawn within its box.
    """

    name: str
    op: str
    inputs: tuple[int, ...] = ()
    folded: tuple[str, ...] = ()
