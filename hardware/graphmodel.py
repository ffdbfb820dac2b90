"""A dense graph, its nodes in the form a runtime runs them, and its time as their sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.hardware import bench
from condensec.hardware.context import Surcharge, kind_of
from condensec.hardware.isolate import Isolated, isolate, optimized
from condensec.hardware.nodecost import NodeCost, cost_of, nearest_weighted
from condensec.hardware.target import Target
from condensec.serialized import to_proto

if TYPE_CHECKING:
    import onnx

    from condensec.serialized import ModelSource

Shapes = Mapping[str, tuple[int, ...]]
_SLOWEST_BYTE = 2e-10  # 5 GB/s: what is missing beyond that isn't a matter of memory
# suffixes onnxruntime's fusions append to names: "_nchwc" to an output's, the other to a node's
_SUFFIXES = ("_nchwc", "/MatMulAddFusion")


@dataclass(frozen=True)
class Part:
    """One node of the optimised dense graph.

    Attributes:
        isolated: the node.
        owner: the weighted node of the original graph it is, or follows.
        own: True if it's that weighted node itself.
    """

    isolated: Isolated
    owner: str | None
    own: bool


class GraphModel:
    """A dense graph and its parts, without times.

    Attributes:
        parts: nodes of the graph the runtime runs.
        originals: weighted nodes of the original graph by name.
        feeds: inputs of one call.
    """

    level: bool | str = "extended"

    def __init__(self, target: Target, model: ModelSource, shapes: Shapes | None) -> None:
        self.target, self.shapes = target, shapes
        feeds = bench.make_feeds(model, shapes, strict=False)
        graph = to_proto(model)
        _name_nodes(graph)
        originals = [(cost_of(one), one) for one in isolate(graph, feeds)]
        self.originals = {cost.name: (cost, one) for cost, one in originals if cost is not None}
        self.parts = _owned(graph, isolate(optimized(graph, self.level), feeds), self.originals)
        self._own = {part.owner: part for part in self.parts if part.own and part.owner}
        self.feeds = feeds


class TimedModel(GraphModel, ABC):
    """What all kinds of model share: the sum of the parts, and what follows each weighted node.

    A kind sets ``verified`` and calls `_settle` at the end of its ``__init__``.

    Attributes:
        verified: how the numbers are obtained.
        dense_seconds: calibrated seconds of the dense graph.
        part_times: uncalibrated seconds of the parts.
    """

    scale = 1.0  # factor of every time
    surcharge = Surcharge()  # and what data costs on top
    verified: str

    def __init__(self, target: Target, model: ModelSource, shapes: Shapes | None) -> None:
        super().__init__(target, model, shapes)
        self._rates: dict[str, float] = {}

    @abstractmethod
    def _times(self, nodes: Sequence[Isolated]) -> list[float]:
        """Uncalibrated seconds of nodes as they are."""

    @abstractmethod
    def own_seconds(self, cost: NodeCost, dense: NodeCost, node: Isolated) -> float:
        """Uncalibrated seconds of a weighted node alone at the widths of ``cost``."""

    def _settle(self, measured: float | None = None) -> None:
        """Sum up the dense graph, and calibrate so that the sum is what was measured, if anything was."""
        nodes = [part.isolated for part in self.parts]
        times = self._times(nodes)
        if measured is not None and not self.surcharge.weights:  # what is missing goes by the bytes
            missing = max(0.0, measured - sum(times)) / max(1, sum(node.bytes for node in nodes))
            self.surcharge = Surcharge(every=min(missing, _SLOWEST_BYTE))
        times = [t + self.surcharge.of(node) for t, node in zip(times, nodes, strict=True)]
        if measured is not None:
            self.scale = measured / max(sum(times), 1e-9)
        self.dense_seconds = self.scale * sum(times)
        self._following: dict[str, float] = {}
        for part, seconds in zip(self.parts, times, strict=True):
            if part.owner is not None and not part.own:
                self._following[part.owner] = self._following.get(part.owner, 0.0) + seconds
        self.part_times = times

    def predict(self, model: ModelSource, shapes: Shapes | None = None) -> float:
        """Seconds one run of this graph takes."""
        feeds = bench.make_feeds(model, shapes or self.shapes, strict=False)
        nodes = isolate(optimized(model, self.level), feeds)
        return self.scale * (sum(self._times(nodes)) + sum(map(self.surcharge.of, nodes)))

    def node_seconds(self, cost: NodeCost) -> float:
        """Seconds of one weighted node at these widths, with what follows it and is as wide."""
        known = self.originals.get(cost.name)
        if known is None:
            return self.scale * cost.macs * self._rate(cost.op)
        dense, node = known
        own = self.own_seconds(cost, dense, node)
        weights = cost.in_channels * cost.out_channels * cost.kernel_elems / max(1, cost.groups)
        moved = 4 * cost.positions * (cost.in_channels + cost.out_channels)
        own += self.surcharge.at(self._kernel(cost), 4 * weights, moved)
        follows = self._following.get(cost.name, 0.0) * cost.out_channels / max(1, dense.out_channels)
        return self.scale * (own + follows)

    def _kernel(self, cost: NodeCost) -> str:
        """The kind of kernel that runs a node at these widths."""
        part = self._own.get(cost.name)
        return "" if part is None else kind_of(part.isolated)

    def node_times(self) -> dict[str, float]:
        """Seconds of the dense graph by the original weighted node they belong to ("" = none)."""
        total: dict[str, float] = {}
        for part, seconds in zip(self.parts, self.part_times, strict=True):
            total[part.owner or ""] = total.get(part.owner or "", 0.0) + self.scale * seconds
        return total

    def _rate(self, op: str) -> float:
        """Seconds a MAC of the dense graph's nodes of this operator (of all, if it has none)."""
        if op not in self._rates:
            costs = [(cost_of(p.isolated), s) for p, s in zip(self.parts, self.part_times, strict=True)]
            pairs = [(c.macs, s) for c, s in costs if c is not None and op in ("", c.op)]
            if not pairs and op:
                self._rates[op] = self._rate("")
            else:
                self._rates[op] = sum(s for _, s in pairs) / max(1, sum(m for m, _ in pairs))
        return self._rates[op]


def _name_nodes(graph: onnx.ModelProto) -> None:
    """Name nodes that have no name after their first output, as the analysis does."""
    for node in graph.graph.node:
        if not node.name and node.output:
            node.name = f"{node.op_type}_{node.output[0]}"


def _owned(graph: Any, nodes: Sequence[Isolated], originals: Iterable[str]) -> list[Part]:
    """Who each node of the optimised graph belongs to."""
    names = [_original_name(graph, node, set(originals)) for node in nodes]
    sizes = {
        value: int(np.prod(shape))
        for node in nodes
        for value, shape in zip(filter(None, node.node.output), node.outputs, strict=True)
    }
    owners = nearest_weighted(nodes, names, sizes)
    return [Part(n, owner, name is not None) for n, owner, name in zip(nodes, owners, names, strict=True)]


def _original_name(graph: Any, node: Isolated, originals: set[str]) -> str | None:
    """Name of the weighted node of the original graph that a weighted node of the optimised graph is."""
    if cost_of(node) is None:
        return None
    name = node.node.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    name = name.removeprefix("fused ")
    if name in originals:
        return name
    producers = {output: n for n in graph.graph.node for output in n.output}
    for value in (*node.node.output, name):
        current = producers.get(value)
        for _ in range(8):  # up through what was fused into it: bias, norm, activation, residual sum
            if current is None:
                break
            if current.name in originals:
                return str(current.name)
            current = next((producers[i] for i in current.input if i in producers), None)
    return None
