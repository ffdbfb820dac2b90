"""Where a model's time goes on a target: a table of its nodes, at its own widths and a few smaller ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condensec import io
from condensec.hardware import isa
from condensec.hardware.devicetable import DeviceTable
from condensec.hardware.graphmodel import GraphModel, Shapes, TimedModel
from condensec.hardware.latency import latency_model
from condensec.hardware.nodecost import NodeCost
from condensec.hardware.nodekey import NodeKey, key_of, own_key
from condensec.hardware.pack import packed, pieces, widths, write_script
from condensec.hardware.points import Points
from condensec.hardware.target import Target
from condensec.hardware.widths import fused_into
from condensec.runner import runtime_version


@dataclass(frozen=True)
class NodeTime:
    """One weighted node of the model, with what follows it.

    Attributes:
        name: the node's name; "" for what precedes the first one.
        op: operator type, or empty.
        seconds: calibrated.
        share: of the whole model.
    """

    name: str
    op: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """A model's nodes on a target.

    Attributes:
        table: the nodes' times, uncalibrated, with the whole model's where it was measured.
        nodes: calibrated times, longest first.
        seconds: of the whole model.
        verified: how the figures were got.
    """

    table: DeviceTable
    nodes: tuple[NodeTime, ...]
    seconds: float
    verified: str

    def to_json(self) -> dict[str, Any]:
        """The table's document, with the calibrated nodes."""
        nodes = [{"name": n.name, "op": n.op, "ms": 1e3 * n.seconds, "share": n.share} for n in self.nodes]
        return {**self.table.to_json(), "latency_ms": 1e3 * self.seconds, "nodes": nodes}


def profile(target: Target, path: Path, shapes: Shapes | None = None) -> Profile:
    """Build the table of a model for a target: measured if it's this machine, else as the target's are known.

    Raises:
        ModelError, DataError, PostconditionError: the model doesn't load or run.
    """
    model = latency_model(target, path, shapes)
    assert isinstance(model, TimedModel)
    total = max(model.dense_seconds, 1e-30)
    nodes = [
        NodeTime(name, model.originals[name][0].op if name else "", seconds, seconds / total)
        for name, seconds in model.node_times().items()
    ]
    whole = model.dense_seconds if model.verified == "measured" else None
    about = {"name": path.name, "sha256": io.sha256(path), "value": whole}
    table = DeviceTable(
        target.name, model.verified, Points(_points(model)), "seconds", _device(target), about
    )
    ordered = tuple(sorted(nodes, key=lambda node: (-node.seconds, node.name)))
    return Profile(table, ordered, model.dense_seconds, model.verified)


def script(target: Target, path: Path, out: Path, shapes: Shapes | None = None) -> int:
    """Write the stand-alone script that times a model's nodes on the target itself.

    Returns:
        How many nodes are packed inside.

    Raises:
        ConfigError: the file can't be written.
        ModelError, DataError, PostconditionError: the model doesn't load or run.
    """
    graph = GraphModel(target, path, shapes)
    made = pieces(graph)
    write_script(out, packed(made, graph.feeds, target.name, path.name, io.sha256(path)))
    return len(made)


def _points(model: TimedModel) -> dict[NodeKey, float]:
    found: dict[NodeKey, float] = {}
    for part, seconds in zip(model.parts, model.part_times, strict=True):
        known = model.originals.get(part.owner or "") if part.own else None
        if known is None:
            found.setdefault(key_of(part.isolated), seconds)
            continue
        dense, node = known
        hard, fused = model.target.alignment(dense.kind), fused_into(part.isolated)
        key = own_key(node, fused.activation, fused.summed, hard)
        for cost in _costs(dense, hard, model.target.grid):
            found.setdefault(key.at(cost, hard), model.own_seconds(cost, dense, node))
        found[key] = seconds
    return found


def _costs(dense: NodeCost, hard: int, grid: int) -> list[NodeCost]:
    """The node at a few widths; at its own only, where others can't be measured."""
    grouped = dense.groups > 1 and dense.kind != "depthwise"
    if not dense.in_channels or grouped or "Transpose" in dense.op:
        return []
    made = []
    for ins, outs in widths(dense, hard, grid):
        groups = outs if dense.kind == "depthwise" else 1
        macs = dense.positions * ins * outs // groups * dense.kernel_elems
        made.append(replace(dense, in_channels=ins, out_channels=outs, groups=groups, macs=macs))
    return made


def _device(target: Target) -> dict[str, Any]:
    return {"isa": isa.detect(), "target_isa": target.isa, "onnxruntime": runtime_version(), "threads": 1}
