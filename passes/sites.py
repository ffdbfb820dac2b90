"""Sites: where prunable units are contracted, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.bodies import enters, home
from condensec.passes.context import Cost
from condensec.passes.groups import Analysis

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Site:
    """One input of one node that sums over prunable units.

    Attributes:
        cost: the node's cost; ``cost.node`` is the node in the analysed model.
        index: which input of the node.
        axis: which axis of it.
        term: the layout of that axis.
    """

    cost: Cost
    index: int
    axis: int
    term: Term

    @property
    def source(self) -> ir.Value:
        """The value that is contracted."""
        value = self.cost.node.inputs[self.index]
        assert value is not None
        return value

    @property
    def key(self) -> tuple[str, int]:
        """Value name and axis; sites that read the same axis of one value share it."""
        return self.source.name or "", self.axis

    @property
    def observable(self) -> bool:
        """Whether the value can be an output of the model: it isn't inside a body of an If, Loop or Scan."""
        node = self.source.producer()
        return node is None or not (home(node) or enters(node))


def sites(analysis: Analysis) -> Iterator[Site]:
    """All sites of a model in graph order."""
    free = {a.id for g in analysis.groups for a in g.atoms}
    for cost in analysis.context.costs:
        if cost.mask is None:
            continue
        index, axis = cost.mask
        source = cost.node.inputs[index]
        assert source is not None
        term = analysis.context.layout(source)[axis]
        if term is not None and any(a.id in free for a in analysis.axes.atoms(term)):
            yield Site(cost, index, axis, term)


def consumer(analysis: Analysis, site: Site) -> Array:
    """The weights a site's indices are multiplied with: ``[n, rows]``, one row of numbers for each index.

    Where the other factor is no stored weight (attention's products of two activations, recurrent cells),
    every index counts the same: ones, ``[n, 1]``.
    """
    node, size = site.cost.node, site.term.size
    plain = np.ones((size, 1), np.float32)
    if node.op_type not in (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "FusedConv",
        "FusedMatMul",
        "FusedGemm",
    ):
        return plain
    other = node.inputs[1 - site.index] if site.index in (0, 1) else None
    weight = None if other is None else _stored(other)
    if weight is None:
        return plain
    if "Conv" in node.op_type:
        found = _of_convolution(node, weight, size)
    else:
        flag = "transB" if site.index == 0 else "transA"
        turned = flag in node.attributes and bool(node.attributes[flag].as_int())
        if weight.ndim != 2:
            return plain
        found = weight.T if turned == (site.index == 0) else weight
    return found if len(found) == size else plain


def _stored(value: ir.Value) -> Array | None:
    """A weight as floats: stored as such, or as integers behind a DequantizeLinear."""
    node = value.producer()
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy().astype(np.float32, copy=False)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    parts = []
    for source in node.inputs:
        if source is None or not source.is_initializer() or source.const_value is None:
            return None
        parts.append(source.const_value.numpy().astype(np.float32))
    stored, rank = parts[0], parts[0].ndim
    axis = node.attributes["axis"].as_int() % rank if "axis" in node.attributes and rank else min(1, rank)
    shape = [-1 if i == axis else 1 for i in range(rank)]
    if any(p.size > 1 and (p.ndim != 1 or p.size != stored.shape[axis]) for p in parts[1:]):
        return None  # in blocks
    scale, *point = (p.reshape(()) if p.size == 1 else p.reshape(shape) for p in parts[1:])
    return np.asarray((stored - point[0]) * scale if point else stored * scale)


def _of_convolution(node: ir.Node, weight: Array, size: int) -> Array:
    """``[C, rows]`` of a kernel: an input channel's weights towards the outputs of its group."""
    if node.op_type == "ConvTranspose":
        return weight.reshape(len(weight), -1)
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    inner = weight.shape[1]
    apart = weight.reshape(groups, len(weight) // groups, inner, -1)
    return np.moveaxis(apart, 2, 1).reshape(groups * inner, -1)
