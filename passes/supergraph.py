"""One super-graph for all the measuring.

A copy of the model in which every contraction over a prunable axis is multiplied by a mask that is a graph
input. One session then answers every "what if these units were gone" without building a graph. Zeroing a
unit where it is contracted has the effect of cutting it, except inside norms (which still see it).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.closing import close_bodies
from condensec.passes.context import Kept
from condensec.passes.groups import Analysis
from condensec.passes.sites import sites


@dataclass(frozen=True)
class MaskPoint:
    """One mask input: the axis it masks, and its shape for broadcasting."""

    name: str
    term: Term
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class SuperGraph:
    """The masked model and its mask inputs."""

    model: ir.Model
    points: tuple[MaskPoint, ...]

    def masks(self, kept: Kept) -> dict[str, npt.NDArray[Any]]:
        """Mask arrays by input name: one where a unit stays, zero where it goes."""
        return {
            p.name: kept.axes.alive(p.term, kept.masks).astype(p.dtype).reshape(p.shape) for p in self.points
        }


def build(
    analysis: Analysis,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    groups: Collection[str] | None = None,
) -> SuperGraph:
    """Insert the masks.

    Args:
        analysis: the model and its groups.
        weights: these (uncut shapes) replace the model's own.
        groups: masks for these alone; None = all.
    """
    model = analysis.model.clone()
    nodes = {node.name: node for node in model.graph}
    wanted = {a.id for g in analysis.groups if groups is None or g.id in groups for a in g.atoms}
    points: list[MaskPoint] = []
    masked: dict[tuple[str, int], ir.Value] = {}
    for site in sites(analysis):
        if not any(a.id in wanted for a in analysis.axes.atoms(site.term)):
            continue
        node, source = nodes[site.cost.node.name], site.source
        if site.key not in masked:
            dtype = source.dtype or ir.DataType(analysis.world.dtypes.get(source.name or "", 1) or 1)
            rank = len(analysis.context.layout(source))
            sizes = tuple(site.term.size if i == site.axis else 1 for i in range(rank))
            points.append(MaskPoint(f"condensec.mask.{len(points)}", site.term, sizes, dtype.numpy()))
            masked[site.key] = _insert(model.graph, node, site.index, points[-1])
        node.replace_input_with(site.index, masked[site.key])
    for name, array in (weights or {}).items():
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            value.const_value = ir.Tensor(
                np.ascontiguousarray(array), dtype=value.const_value.dtype, name=name
            )
    return SuperGraph(close_bodies(model), tuple(points))


def _insert(graph: ir.Graph, node: ir.Node, index: int, point: MaskPoint) -> ir.Value:
    """Multiply one input of a node by a new mask input; returns the product."""
    data = node.inputs[index]
    assert data is not None
    dtype = ir.DataType.from_numpy(point.dtype)
    mask = ir.Value(name=point.name, shape=ir.Shape(point.shape), type=ir.TensorType(dtype))
    graph.inputs.append(mask)
    product = ir.Node("", "Mul", [data, mask], name=f"{point.name}.mul")
    product.outputs[0].name = f"{point.name}.out"
    product.outputs[0].type = ir.TensorType(dtype)
    producer = data.producer()
    if producer is None:
        graph.insert_before(graph[0], product)
    else:
        graph.insert_after(producer, product)
    return product.outputs[0]
