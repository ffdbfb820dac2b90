"""A quantized graph without the rounding of its activations: what a cut's proof compares where steps flip.

Two orders of the same sums differ in the last bit; where an activation is quantized, that may become a whole
step, and a few layers later anything. `QuantizeLinear` and `DequantizeLinear` of an activation together are
``clip(round(x / s) + z, low, high)`` scaled back: here they become the clipping alone, which passes small
differences on as small ones. Weights, their scales, zero-points and biases stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
CLIP = ".condensec.clip"  # how names of the Clips end
_CLIP_OPSET = 11  # the first whose Clip takes its bounds as inputs
_RANGES = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}


def unrounded(model: ir.Model) -> ir.Model | None:
    """A copy in which pairs of QuantizeLinear and DequantizeLinear on activations only clip.

    Pairs with a scale for each channel stay, as do those in bodies of If, Loop and Scan.

    Returns:
        None where there is no such pair.
    """
    if model.opset_imports.get("", 0) < _CLIP_OPSET:
        return None
    if all(node.op_type != "QuantizeLinear" for node in model.graph):
        return None
    copy = model.clone()
    count = 0
    for node in list(copy.graph):
        if node.op_type == "QuantizeLinear" and _replace(copy.graph, node):
            count += 1
    return copy if count else None


def _replace(graph: ir.Graph, node: ir.Node) -> bool:
    source, bounds = node.inputs[0], _bounds(node)
    users = [use.node for use in node.outputs[0].uses()]
    if source is None or source.is_initializer() or bounds is None or node.outputs[0].is_graph_output():
        return False
    if not users or any(u.op_type != "DequantizeLinear" or _bounds(u) != bounds for u in users):
        return False
    for number, user in enumerate(users):
        old = user.outputs[0]
        name, old.name = old.name, f"{old.name}.rounded"
        prefix = f"{node.name or name}.condensec.{number}"
        limits = [_constant(graph, f"{prefix}.{i}", bound) for i, bound in enumerate(bounds[:2])]
        clip = ir.Node("", "Clip", [source, *limits], name=f"{prefix}{CLIP}")
        clip.outputs[0].name, clip.outputs[0].type, clip.outputs[0].shape = name, old.type, old.shape
        graph.insert_before(user, clip)
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, clip.outputs[0])
        graph.outputs[:] = [clip.outputs[0] if value is old else value for value in graph.outputs]
        graph.remove(user, safe=True)
    graph.remove(node, safe=True)
    return True


def _bounds(node: ir.Node) -> tuple[float, float, float, float] | None:
    """Smallest and largest number that comes out, scale and zero-point; None for several scales."""
    scale, point = (constant(node, index) for index in (1, 2))
    if scale is None or point is None or scale.size != 1 or point.size != 1:
        return None
    if scale.dtype is not ir.DataType.FLOAT or point.dtype not in _RANGES:
        return None
    low, high = _RANGES[point.dtype]
    step, zero = float(scale.numpy().reshape(())), float(point.numpy().reshape(()))
    return (low - zero) * step, (high - zero) * step, step, zero


def constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    """A constant input of a node; None where there is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else ir.convenience.get_const_tensor(value)


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    tensor = ir.Tensor(np.array(number, np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(value)
    return value
