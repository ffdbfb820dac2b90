"""Predicting latency: of a graph that exists, and of widths that are only thought of.

`latency_model` gives the model for a target. All share one idea: a graph's time is the sum of its nodes' in
the form the runtime runs them (`condensec.hardware.graphmodel`). On a machine that can be measured the
nodes' times come from a table of isolated nodes (`condensec.hardware.table`), plus what their data costs
inside the model (`condensec.hardware.context`), calibrated so that the dense sum equals the dense
measurement. Where a table was made on the device itself, from that one (`condensec.hardware.devicemodel`).
Elsewhere they come from formulas (`condensec.hardware.analytic`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from condensec.hardware import analytic, bench, isa
from condensec.hardware.context import inside_seconds, surcharge
from condensec.hardware.graphmodel import GraphModel, Shapes, TimedModel
from condensec.hardware.isolate import Isolated, optimized
from condensec.hardware.nodecost import NodeCost, cost_of
from condensec.hardware.protocol import Protocol as Measuring
from condensec.hardware.table import LatencyTable
from condensec.hardware.target import Target
from condensec.hardware.widths import Fused, WidthTimes, fused_into

if TYPE_CHECKING:
    from condensec.serialized import ModelSource

__all__ = ["GraphModel", "LatencyModel", "LatencyTable", "NodeCost", "Shapes", "latency_model", "node_times"]

_DENSE = Measuring(pairs=30, min_seconds=0.5, max_seconds=5.0)


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


class TableModel(TimedModel):
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
        alone = self._times(nodes)
        # a neighbour that takes cache while the profile runs makes data look dearer than it is
        self.surcharge = surcharge(nodes, alone, inside).within(nodes, spread.min - sum(alone))
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


class AnalyticModel(TimedModel):
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
