"""Reductions of the masked original that see kept units only: norms, softmax, means, TopK, routed experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.errors import PostconditionError
from condensec.plan import Restriction

Array = npt.NDArray[Any]

# Norms give back the shape they take: operator -> inputs that lie on the last axes of the data.
_NORMS: dict[str, tuple[int, ...]] = {
    "Softmax": (),
    "LogSoftmax": (),
    "LpNormalization": (),
    "MeanVarianceNormalization": (),
    "InstanceNormalization": (),
    "DynamicQuantizeLinear": (),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "GatedRMSNorm": (1, 2),
    "SkipLayerNormalization": (1, 2, 3, 4),
    "SkipSimplifiedLayerNormalization": (1, 2, 3),
    "EmbedLayerNormalization": (3, 4, 5, 6),
    "GroupNormalization": (),
    "GroupNorm": (),
    "SkipGroupNorm": (3,),
}
# Inputs whose first axis goes along, where it is as long: parameters of channels, weights of experts.
_FIRST: dict[str, tuple[int, ...]] = {
    "GroupNormalization": (1, 2),
    "GroupNorm": (1, 2),
    "SkipGroupNorm": (1, 2, 4),
    "MoE": (2, 3, 4, 5, 6, 7),
    "QMoE": (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
}
# Output that gives back what was added, in full width too.
_SUMS = {
    "SkipGroupNorm": 1,
    "SkipLayerNormalization": 3,
    "SkipSimplifiedLayerNormalization": 3,
    "EmbedLayerNormalization": 2,
}
PREFIX = "condensec.restrict"  # of the names of nodes that are added


def restrict(graph: ir.Graph, values: Mapping[str | None, ir.Value], restriction: Restriction) -> None:
    """Let one reduction see only the kept indices of one axis of one input."""
    output, source = values.get(restriction.output), values.get(restriction.input)
    node = output.producer() if output is not None else None
    if node is None or source is None:
        raise PostconditionError(
            f"'{restriction.output}' isn't computed in the original model", node=restriction.output
        )
    kept = np.array(restriction.kept, np.int64)
    position = next((i for i, v in enumerate(node.inputs) if v is source or _origin(v) is source), None)
    if position is None:
        raise PostconditionError(
            f"'{restriction.output}' doesn't read '{restriction.input}'", node=restriction.output
        )
    parameters = _NORMS.get(node.op_type)
    axis = restriction.axis - restriction.rank  # parameters have fewer axes, and lie on the last ones
    for index in (position, *(parameters or ())):
        before = node.inputs[index] if index < len(node.inputs) else None
        if before is not None:
            node.replace_input_with(index, _gather(graph, node, before, kept, axis))
    for index in _FIRST.get(node.op_type, ()):
        before = node.inputs[index] if index < len(node.inputs) else None
        if before is not None and before.shape is not None and before.shape[0] == restriction.size:
            node.replace_input_with(index, _gather(graph, node, before, kept, 0))
    if node.op_type == "TopK" and len(node.outputs) > 1:
        _count_all(graph, node, kept)
    if parameters is None:
        return
    _spread(graph, node, node.outputs[0], restriction, kept)
    extra = _SUMS.get(node.op_type)
    if extra is not None and len(node.outputs) > extra and node.outputs[extra].uses():
        _spread(graph, node, node.outputs[extra], restriction, kept)


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value an inserted Gather reads, for nodes that are restricted on several axes."""
    while value is not None:
        producer = value.producer()
        if producer is None or not (producer.name or "").startswith(PREFIX):
            return value
        value = producer.inputs[1 if producer.op_type == "Where" else 0]
    return None


def _node(graph: ir.Graph, kind: str, inputs: list[ir.Value], axis: int | None = None) -> ir.Node:
    attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
    name = f"{PREFIX}.{len(graph.initializers)}.{kind}"
    node = ir.Node("", kind, inputs, attributes, name=name)
    node.outputs[0].name = f"{name}.out"
    return node


def _constant(graph: ir.Graph, array: Array) -> ir.Value:
    tensor = ir.Tensor(array, name=f"{PREFIX}.constant.{len(graph.initializers)}")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _gather(graph: ir.Graph, node: ir.Node, value: ir.Value, kept: Array, axis: int) -> ir.Value:
    new = _node(graph, "Gather", [value, _constant(graph, kept)], axis)
    new.outputs[0].type = value.type
    home(node).insert_before(node, new)
    return new.outputs[0]


def _spread(graph: ir.Graph, node: ir.Node, output: ir.Value, restriction: Restriction, kept: Array) -> None:
    """Bring a result back to full width, with zeros at the cut indices."""
    width, axis = restriction.size, restriction.axis - restriction.rank
    positions = np.zeros(width, np.int64)
    positions[kept] = np.arange(len(kept))
    there = np.zeros(width, np.bool_)
    there[kept] = True
    there = there.reshape([width, *[1] * (-axis - 1)])
    users = list(output.uses())
    wide = _node(graph, "Gather", [output, _constant(graph, positions)], axis)
    new = [wide]
    if node.op_type == "DynamicQuantizeLinear":  # it gives a number for zero, too
        zero = node.outputs[2]
    else:
        new.append(_node(graph, "Sub", [wide.outputs[0], wide.outputs[0]]))  # of the output's type
        zero = new[-1].outputs[0]
    zeroed = _node(graph, "Where", [_constant(graph, there), wide.outputs[0], zero])
    new.append(zeroed)
    for made in new:
        made.outputs[0].type = output.type
    home(node).insert_after(node, new)
    _instead(graph, node, output, zeroed.outputs[0], users)


def home(node: ir.Node) -> ir.Graph:
    """The graph a node is in: the main one, or a body."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _instead(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value, users: Iterable[Any]) -> None:
    """Another value for some users of a node's output, and where its body gives it back."""
    for use in users:
        use.node.replace_input_with(use.idx, new)
    body = home(node)
    if body is not graph:
        body.outputs[:] = [new if value is old else value for value in body.outputs]


def _count_all(graph: ir.Graph, node: ir.Node, kept: Array) -> None:
    """Positions among the kept indices become positions among all."""
    users = list(node.outputs[1].uses())
    position = _node(graph, "Gather", [_constant(graph, kept), node.outputs[1]], 0)
    position.outputs[0].type = node.outputs[1].type
    home(node).insert_after(node, position)
    _instead(graph, node, node.outputs[1], position.outputs[0], users)
