"""Predicting latency: of a graph that exists, and of widths that are only thought of.

`latency_model` gives the model for a target. All share one idea: a graph's time is the sum of its nodes' in
the form the runtime runs them. On a machine that can be measured the nodes' times come from a table of
isolated nodes (`condensec.hardware.table`), plus what their data costs inside the model
(`condensec.hardware.context`), calibrated so that the dense sum equals the dense measurement. Where a table
was made on the device itself, from that one (`condensec.hardware.devicemodel`). Elsewhere they come from
formulas (`condensec.hardware.analytic`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from condensec.hardware import analytic, bench, isa
from condensec.hardware.context import Surcharge, inside_seconds, kind_of, surcharge
from condensec.hardware.isolate import Isolated, isolate, optimized
from condensec.hardware.nodecost import NodeCost, cost_of, nearest_weighted
from condensec.hardware.protocol import Protocol as Measuring
from condensec.hardware.table import LatencyTable
from condensec.hardware.target import Target
from condensec.hardware.widths import Fused, WidthTimes, fused_into
from condensec.serialized import to_proto

if TYPE_CHECKING:
    import onnx

    from condensec.serialized import ModelSource

__all__ = ["LatencyModel", "LatencyTable", "NodeCost", "latency_model", "node_times"]

Shapes = Mapping[str, tuple[int, ...]]
_DENSE = Measuring(pairs=30, min_seconds=0.5, max_seconds=5.0)
# suffixes onnxruntime's fusions append to names: "_nchwc" to an output's, the other to a node's
_SLOWEST_BYTE = 2e-10  # 5 GB/s: what is missing beyond that isn't a matter of memory
_SUFFIXES = ("_nchwc", "/MatMulAddFusion")


class LatencyModel(Protocol):
    """What choosing widths needs to know of a target.

    Attributes:
        verified: how the numbers are obtained, see `condensec.hardware.target.VERIFICATIONS`.
        dense_seconds: seconds of the model it was made for.
    """

    verified: str
    dense_seconds: float

    def predict(self, model: ModelSource, shapes: Shapes | None = None) -> float:
        """Seconds one run of this graph takes."""

    def node_seconds(self, cost: NodeCost) -> float:
        """Seconds of one weighted node at these widths, with what follows it and is as wide."""


def latency_model(
    target: Target, model: ModelSource, shapes: Shapes | None = None, *, table: LatencyTable | None = None
) -> LatencyModel:
    """The latency model of a target for a model.

    Args:
        target: where it will run.
        model: the dense model.
        shapes: input name -> shape, for dynamic dims. Default: batch 1 and what `make_feeds` takes.
        table: where measured nodes are kept; default: the user's cache.

    Raises:
        ModelError, DataError, PostconditionError: the model doesn't load or run.
        ConfigError: the target's table can't be read.
    """
    if target.table:
        from condensec.hardware import devicetable
        from condensec.hardware.devicemodel import DeviceModel

        return DeviceModel(target, model, shapes, devicetable.read(Path(target.table)))
    here = isa.detect()
    x86 = here in isa.ORDER["x86"] and target.isa in isa.ORDER["x86"]
    if target.latency == "table" and (target.isa == here or x86):
        return TableModel(target, model, shapes, table or LatencyTable())
    return AnalyticModel(target, model, shapes)


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
    """What all kinds of model share: a dense graph, its parts, and what follows each weighted node.

    Attributes:
        parts: nodes of the graph the runtime runs.
        originals: weighted nodes of the original graph by name.
        feeds: inputs of one call.
        part_times: uncalibrated seconds of the parts.
    """

    level: bool | str = "extended"
    scale = 1.0  # factor of every time
    surcharge = Surcharge()  # and what data costs on top

    def __init__(self, target: Target, model: ModelSource, shapes: Shapes | None) -> None:
        self.target, self.shapes = target, shapes
        feeds = bench.make_feeds(model, shapes, strict=False)
        graph = to_proto(model)
        _name_nodes(graph)
        originals = [(cost_of(one), one) for one in isolate(graph, feeds)]
        self.originals = {cost.name: (cost, one) for cost, one in originals if cost is not None}
        self._rates: dict[str, float] = {}
        self.parts = _owned(graph, isolate(optimized(graph, self.level), feeds), self.originals)
        self._own = {part.owner: part for part in self.parts if part.own and part.owner}
        self.feeds = feeds

    def _times(self, nodes: Sequence[Isolated]) -> list[float]:
        raise NotImplementedError

    def own_seconds(self, cost: NodeCost, dense: NodeCost, node: Isolated) -> float:
        """Uncalibrated seconds of a weighted node alone at the widths of ``cost``."""
        raise NotImplementedError

    def _settle(self, measured: float | None = None) -> None:
        """Sum up the dense graph, and calibrate so that the sum is what was measured, if anything was."""
        nodes = [part.isolated for part in self.parts]
        times = self._times(nodes)
        if measured is not None and not self.surcharge.rates:  # what is missing goes by the bytes
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
        size = 4 * (weights + cost.positions * (cost.in_channels + cost.out_channels))
        own += self.surcharge.at(self._kernel(cost), size)
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


class TableModel(GraphModel):
    """Measured isolated nodes, on this machine.

    Args:
        target: an x86 or host target. Off its own ISA, block sizes are the target's but times are this
            machine's: then the result is "modelled".
        model: the dense model.
        shapes: of the inputs.
        table: where measured nodes are kept.
    """

    level = True

    def __init__(
        self, target: Target, model: ModelSource, shapes: Shapes | None, table: LatencyTable | None = None
    ) -> None:
        super().__init__(target, model, shapes)
        self.table = table or LatencyTable()
        self.verified = "measured" if target.isa == isa.detect() else "modelled"
        self._widths: dict[str, WidthTimes] = {}
        measured = bench.measure(model, self.feeds, protocol=_DENSE)
        spread = measured.cpu if self.table.threads == 1 else measured.wall
        nodes = [part.isolated for part in self.parts]
        inside = inside_seconds(optimized(model), self.feeds, self.table.threads, spread.median)
        self.surcharge = surcharge(nodes, self._times(nodes), inside)
        self._settle(spread.min)

    def _kernel(self, cost: NodeCost) -> str:
        off = cost.in_channels % (hard := self.target.alignment(cost.kind)) or cost.out_channels % hard
        dense = self.originals[cost.name][0]
        image = cost.in_channels == dense.in_channels < hard and not cost.out_channels % hard
        return "" if off and not image else super()._kernel(cost)

    def _times(self, nodes: Sequence[Isolated]) -> list[float]:
        times = self.table.times(nodes)
        self.table.save()
        return times

    def own_seconds(self, cost: NodeCost, dense: NodeCost, node: Isolated) -> float:
        """Measured at a few widths, interpolated between."""
        widths = self._widths.get(cost.name)
        if widths is None:
            hard = self.target.alignment(dense.kind)
            block = self.target.grid if dense.kind != "matmul" else 1
            part = self._own.get(cost.name)
            fused = Fused() if part is None else fused_into(part.isolated)
            widths = self._widths[cost.name] = WidthTimes(node, dense, self.table, hard, block, fused)
        return widths.at(cost)


class AnalyticModel(GraphModel):
    """Formulas for hardware that isn't here."""

    level = "extended"  # the fusions every machine gets, without this one's memory layout

    def __init__(self, target: Target, model: ModelSource, shapes: Shapes | None) -> None:
        super().__init__(target, model, shapes)
        self.verified = target.verified
        self._formula = analytic.formula(target)
        self._settle()

    def _times(self, nodes: Sequence[Isolated]) -> list[float]:
        return [self._formula.seconds(node, cost_of(node)) for node in nodes]

    def own_seconds(self, cost: NodeCost, dense: NodeCost, node: Isolated) -> float:
        """By formula."""
        return self._formula.weighted(cost)


def node_times(model: ModelSource, shapes: Shapes | None = None) -> dict[str, float]:
    """Seconds of each weighted node of a model on this machine, with what follows it ("" = the rest)."""
    from condensec.hardware.target import get

    return TableModel(get("host"), model, shapes).node_times()


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
