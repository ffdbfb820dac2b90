"""Training of a graph that is quantized already: its weights as floats, rounded in every step.

A QDQ graph stores integers behind a DequantizeLinear. In the copy that is trained the same weight is a float
behind QuantizeLinear and DequantizeLinear with the scale that the file has: it computes what the file does,
and a float can be trained (fake quantization, Jacob et al. 2018, arXiv:1712.05877; the gradient passes
rounding straight through, Bengio et al. 2013, arXiv:1308.3432: `condensec.healing.legalize.quantized`). What
was trained is rounded to integers on the way back. Scales and zero-points stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.unrounded import constant

Array = npt.NDArray[Any]
_RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True)
class Grid:
    """How a weight is stored.

    Attributes:
        scale: ready to broadcast against the weight.
        point: zero-point, likewise.
        dtype: of the file.
    """

    scale: Array
    point: Array
    dtype: ir.DataType

    def floats(self, stored: Array) -> Array:
        """What the integers mean."""
        return ((stored.astype(np.float32) - self.point.astype(np.float32)) * self.scale).astype(np.float32)

    def integers(self, weight: Array) -> Array:
        """The nearest integers, saturated."""
        low, high = _RANGES[self.dtype]
        wide = np.rint(weight.astype(np.float64) / self.scale.astype(np.float64)) + self.point
        stored: Array = np.clip(wide, low, high).astype(self.dtype.numpy())
        return stored


def grids(model: ir.Model) -> dict[str, Grid]:
    """Weights behind a DequantizeLinear with constant scale, by name; not those that others read, too."""
    found = {}
    for node in model.graph:
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is None or not stored.is_initializer() or len(stored.uses()) != 1:
            continue
        grid = _grid(node, stored)
        if grid is not None:
            found[stored.name or ""] = grid
    return found


def _grid(node: ir.Node, stored: ir.Value) -> Grid | None:
    tensor = stored.const_value
    scale, point = (constant(node, index) for index in (1, 2))
    if tensor is None or scale is None or tensor.dtype not in _RANGES or scale.dtype is not ir.DataType.FLOAT:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and point is None:
        return None
    rank = len(tensor.shape)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = [-1 if i == (axis % rank if rank else 0) else 1 for i in range(rank)]
    arrays = []
    for array in (scale.numpy(), np.zeros(1, np.int32) if point is None else point.numpy()):
        if array.ndim > 1:
            return None  # quantized in blocks
        arrays.append(array.reshape(()) if array.size == 1 else array.reshape(shape))
    if not np.all(arrays[0] > 0):
        return None
    return Grid(arrays[0], arrays[1], tensor.dtype)


def with_float_weights(model: ir.Model) -> tuple[ir.Model, Mapping[str, Grid]]:
    """A copy that computes the same with floats in place of integer weights, under their names.

    Biases of 32 bits are simply floats: their steps are smaller than what training changes.
    """
    found = grids(model)
    copy = model.clone()
    for node in list(copy.graph):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        grid = found.get(stored.name or "") if stored is not None and stored.is_initializer() else None
        if grid is None or stored is None or stored.const_value is None:
            continue
        name = stored.name or ""
        array = grid.floats(stored.const_value.numpy())
        stored.const_value = ir.Tensor(array, name=name)
        stored.type = ir.TensorType(ir.DataType.FLOAT)
        kind = "Identity" if grid.dtype is ir.DataType.INT32 else "QuantizeLinear"
        inputs = [stored] if kind == "Identity" else [stored, *node.inputs[1:]]
        attributes = [] if kind == "Identity" else list(node.attributes.values())
        new = ir.Node("", kind, inputs, attributes, name=f"{node.name or name}.condensec.{kind}")
        new.outputs[0].name = f"{name}.condensec.{kind}"
        copy.graph.insert_before(node, new)
        if kind == "Identity":
            for use in list(node.outputs[0].uses()):
                use.node.replace_input_with(use.idx, new.outputs[0])
            copy.graph.remove(node, safe=True)
        else:
            node.replace_input_with(0, new.outputs[0])
    return copy, found


def as_stored(weights: Mapping[str, Array], found: Mapping[str, Grid]) -> dict[str, Array]:
    """Trained weights as the file has them: integers where it has integers."""
    return {name: found[name].integers(a) if name in found else a for name, a in weights.items()}


def integer_weights(model: ir.Model) -> list[str]:
    """Names of weights in integers that healing can't reach: those of QLinear and Integer operators."""
    reached = set(grids(model))
    return [
        value.name or ""
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        and len(value.const_value.shape) > 1
        and value.name not in reached
    ]
