"""The masked original: what a cut model has to be equivalent to.

Every removed parameter slice is zero (a running variance or a divisor: one, a quantized weight: its
zero-point), and a norm, softmax or mean over a cut axis is restricted to the kept units. Built from the plan
and the original model alone; nothing of ``condensec.passes`` is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from condensec.errors import PostconditionError
from condensec.folding import fold_weights
from condensec.plan import Plan, RemovedLayer
from condensec.restricted import PREFIX, home, restrict

Array = npt.NDArray[Any]

# Quantized weights: operator -> {weight input: zero-point input}.
_ZERO_POINTS: dict[str, dict[int, int]] = {
    "DequantizeLinear": {0: 2},
    "QLinearConv": {3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "ConvInteger": {1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "QGemm": {0: 2, 3: 5},
    "DynamicQuantizeMatMul": {1: 3},
    "MatMulIntegerToFloat": {0: 4, 1: 5},
    "QAttention": {1: 7},
    "DynamicQuantizeLSTM": {1: 9, 2: 11},
}
_VIEWS = ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def masked(original: ir.Model, plan: Plan) -> ir.Model:
    """The original with every removed parameter slice zeroed, and reductions restricted to kept units.

    Raises:
        PostconditionError: the plan names something the original doesn't have.
    """
    model = original.clone()
    if model.functions:
        ir_passes.InlinePass()(model)
        model.functions.clear()
    fold_weights(model)
    graph = model.graph
    values: dict[str | None, ir.Value] = dict(_named(graph))
    _split_shared(graph, values, plan)
    nodes = list(graph.all_nodes())
    variances = {n.inputs[4] for n in nodes if n.op_type == "BatchNormalization" and len(n.inputs) > 4}
    points = {
        n.inputs[p] for n in nodes for p in _ZERO_POINTS.get(n.op_type, {}).values() if p < len(n.inputs)
    }
    for name, axes in plan.slices.items():
        if name not in values:
            raise PostconditionError(
                f"the plan slices '{name}', which the original model doesn't have", node=name
            )
        value = values[name]
        if value in points:
            continue  # its weights are filled with it, which makes them zero
        _fill(value, axes, np.ones(()) if value in variances or _divides(value) else _zero_point(value))
    for restriction in plan.restrictions:
        restrict(graph, values, restriction)
    for layer in plan.removed_layers:
        _bypass(values, layer)
    return model


def _named(graph: ir.Graph, prefix: str = "") -> Iterable[tuple[str | None, ir.Value]]:
    """All values by their names in plans: ``y[else_branch].w`` for one in a body, see docs/formats.md."""
    for value in (*graph.initializers.values(), *graph.inputs):
        yield f"{prefix}{value.name}", value
    for node in graph:
        for value in node.outputs:
            if value.name:
                yield f"{prefix}{value.name}", value
        first = next((v.name for v in node.outputs if v.name), "")
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _named(attribute.as_graph(), f"{prefix}{first}[{attribute.name}].")


# -- weights ------------------------------------------------------------------------------------------


def _split_shared(graph: ir.Graph, values: dict[str | None, ir.Value], plan: Plan) -> None:
    """Give users of a shared weight that were cut differently a copy each."""
    for copy, split in plan.splits.items():
        source, output = values.get(split.of), values.get(split.output)
        user = output.producer() if output is not None else None
        if source is None or user is None:
            raise PostconditionError(
                f"the plan splits '{split.of}' for '{split.output}', which the original model doesn't have",
                node=split.of,
            )
        tensor = ir.Tensor(_tensor(source).numpy(), dtype=_tensor(source).dtype, name=copy)
        fresh = ir.Value(name=copy, shape=source.shape, type=source.type, const_value=tensor)
        graph.register_initializer(fresh)
        seen = user.inputs[split.input] if split.input < len(user.inputs) else None
        user.replace_input_with(split.input, _seen_anew(user, seen, source, fresh))
        values[copy] = fresh


def _seen_anew(user: ir.Node, seen: ir.Value | None, source: ir.Value, fresh: ir.Value) -> ir.Value:
    """What a user of a weight sees of its copy: the copy itself, or the same views of it (Transpose, ...)."""
    views: list[ir.Node] = []
    while seen is not source:
        view = seen.producer() if seen is not None else None
        if view is None:
            raise PostconditionError(
                f"the plan splits '{source.name}' for '{user.name}', which doesn't use it", node=source.name
            )
        views.append(view)
        seen = source if source in view.inputs else view.inputs[0]
    result, replaced = fresh, source
    for view in reversed(views):
        inputs = [result if v is replaced else v for v in view.inputs]
        name = f"{PREFIX}.{result.name}.{view.op_type}"
        new = ir.Node(view.domain, view.op_type, inputs, list(view.attributes.values()), name=name)
        new.outputs[0].name, new.outputs[0].type = f"{name}.out", view.outputs[0].type
        home(user).insert_before(user, new)
        result, replaced = new.outputs[0], view.outputs[0]
    return result


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise PostconditionError(f"the plan slices '{value.name}', which isn't a constant", node=value.name)
    return tensor


def _divides(value: ir.Value) -> bool:
    """Whether others are divided by it, perhaps seen otherwise: zero would make infinities of them."""
    uses = list(value.uses())
    return bool(uses) and all(
        (use.node.op_type == "Div" and use.idx == 1)
        or (use.node.op_type in _VIEWS and use.idx == 0 and _divides(use.node.outputs[0]))
        for use in uses
    )


def _zero_point(value: ir.Value) -> Array:
    """What a quantized weight holds where it means zero, ready to broadcast; 0 for all others."""
    for use in value.uses():
        position = _ZERO_POINTS.get(use.node.op_type, {}).get(use.idx)
        point = (
            use.node.inputs[position] if position is not None and position < len(use.node.inputs) else None
        )
        tensor = ir.convenience.get_const_tensor(point) if point is not None else None
        if tensor is None:
            continue
        rank = len(_tensor(value).shape)
        array = tensor.numpy()
        if array.ndim == 2 and array.size > 1 and rank == 3:  # of each direction, along the last axis
            return array[:, None]
        if array.ndim != 1 or array.size == 1 or rank < 2:
            return array.reshape(()) if array.size == 1 else array
        axis = _channels(use.node, rank) % rank
        return array.reshape([-1 if i == axis else 1 for i in range(rank)])
    return np.zeros(())


def _channels(node: ir.Node, rank: int) -> int:
    """The axis of a quantized weight that has a zero-point for each index."""
    if "axis" in node.attributes:
        return node.attributes["axis"].as_int()
    turned = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
    if turned or node.op_type in ("QLinearConv", "ConvInteger", "DynamicQuantizeLSTM"):
        return 0
    return 1 if node.op_type == "DequantizeLinear" else rank - 1


def _fill(value: ir.Value, axes: Mapping[int, tuple[int, ...]], fill: Array) -> None:
    tensor = _tensor(value)
    array = tensor.numpy()
    gone = np.zeros(array.shape, np.bool_)
    for axis, kept in axes.items():
        out = np.ones(array.shape[axis], np.bool_)
        out[list(kept)] = False
        gone |= out.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    new = ir.Tensor(np.where(gone, fill.astype(array.dtype), array), dtype=tensor.dtype, name=value.name)
    producer = value.producer()
    if producer is not None:
        for name in list(producer.attributes):
            del producer.attributes[name]
        producer.attributes["value"] = ir.AttrTensor("value", new)
    value.const_value = new


# -- layers -------------------------------------------------------------------------------------------


def _bypass(values: Mapping[str | None, ir.Value], layer: RemovedLayer) -> None:
    """A removed residual block adds nothing: its last node gives back what came in beside the branch."""
    last = values[layer.nodes[-1]].producer() if layer.nodes and layer.nodes[-1] in values else None
    inside = {values[name] for name in layer.nodes if name in values}
    around = [v for v in last.inputs if v is not None and v not in inside] if last is not None else []
    if last is None or len(around) != 1:
        raise PostconditionError(f"the plan removes layer {layer.id}, which the original model doesn't have")
    for use in list(last.outputs[0].uses()):
        use.node.replace_input_with(use.idx, around[0])
