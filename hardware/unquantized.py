"""The fp32 graph in a QDQ graph: what modelled targets' latencies are calculated from.

Their formulas and tables know fp32 (and fp16) kernels only. A quantized convolution isn't one of those, and
would be taken for something elementwise, next to free. So its time is that of the same layer in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condensec.unrounded import unrounded

if TYPE_CHECKING:
    import onnx_ir as ir


def unquantized(model: ir.Model) -> ir.Model:
    """The same graph with weights in fp32 and activations that are only clipped; itself if nothing is QDQ."""
    copy = unrounded(model)
    if copy is None:
        return model
    for node in list(copy.graph):
        if node.op_type == "DequantizeLinear":
            _fold(copy.graph, node)
    return copy


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a dequantized initializer by its numbers."""
    import onnx_ir as ir

    tensors = [value.const_value if value is not None else None for value in node.inputs]
    held, scale = tensors[0], tensors[1] if len(tensors) > 1 else None
    output = node.outputs[0]
    if held is None or scale is None or output.is_graph_output():
        return
    zero = tensors[2].numpy() if len(tensors) > 2 and tensors[2] is not None else np.zeros((), np.int32)
    axis = node.attributes.get_int("axis", 1)
    array = _dequantized(held.numpy(), scale.numpy(), zero, axis if axis is not None else 1)
    name = f"{output.name}.float"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.register_initializer(value)
    ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)


def _dequantized(
    held: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int
) -> NDArray[np.float32]:
    """``(held - zero) * scale``, with a scale an entry of ``axis`` where there are several."""
    if scale.size > 1:
        shape = [-1 if i == axis % held.ndim else 1 for i in range(held.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    found: NDArray[np.float32] = ((held.astype(np.float32) - zero) * scale).astype(np.float32)
    return found
