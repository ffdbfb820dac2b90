"""Values that a report holds beside its main figures: Pareto points, times of single nodes, the graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParetoPoint:
    """One model of several, each the best found for its size (``--pareto N``).

    Attributes:
        n: its number, from 1.
        ratio: latency as a share of the original's, if it is known.
        macs: multiply-accumulates of one sample.
        params: number of weight elements.
        metric: on validation samples, in the metric's own unit.
        verified: how `ratio` was got; one of the four words of `condensec.report.model`.
        file: the model, relative to the output folder.
    """

    n: int
    ratio: float | None = None
    macs: int = 0
    params: int = 0
    metric: float | None = None
    verified: str = "measured"
    file: str = ""


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
