"""Predicting latency from a table of another device (`condensec.hardware.devicetable`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from condensec.hardware.devicetable import DeviceTable
from condensec.hardware.graphmodel import Shapes, TimedModel
from condensec.hardware.nodecost import NodeCost, cost_of
from condensec.hardware.nodekey import key_of, own_key
from condensec.hardware.target import Target
from condensec.hardware.widths import Fused, fused_into

if TYPE_CHECKING:
    from condensec.hardware.isolate import Isolated
    from condensec.serialized import ModelSource


class DeviceModel(TimedModel):
    """A model's time on a device from a table of nodes that was made there.

    Args:
        target: the target the table stands for.
        model: the dense model.
        shapes: of the inputs.
        table: the nodes' times.
    """

    level = "extended"  # the fusions every machine gets, without this one's memory layout

    def __init__(self, target: Target, model: ModelSource, shapes: Shapes | None, table: DeviceTable) -> None:
        super().__init__(target, model, shapes)
        self.table, self.verified = table, table.how
        self._unit = 1.0 if table.unit == "seconds" else 1 / target.peak.vectors
        self._fused = {name: fused_into(part.isolated) for name, part in self._own.items()}
        whole = table.whole(_sha256(model))
        self._settle(None if whole is None else whole * self._unit)

    def _times(self, nodes: Sequence[Isolated]) -> list[float]:
        return [self._unit * self.table.points.time(key_of(node, self._hard(node))) for node in nodes]

    def own_seconds(self, cost: NodeCost, dense: NodeCost, node: Isolated) -> float:
        """From the table: known, or interpolated."""
        hard = self.target.alignment(dense.kind)
        fused = self._fused.get(cost.name, Fused())
        key = own_key(node, fused.activation, fused.summed, hard)
        return self._unit * self.table.points.time(key.at(cost, hard)) if cost.macs else 0.0

    def _hard(self, node: Isolated) -> int:
        cost = cost_of(node)
        return 1 if cost is None else self.target.alignment(cost.kind)


def _sha256(model: ModelSource) -> str:
    from condensec import io

    return io.sha256(Path(model)) if isinstance(model, str | Path) else ""
