"""The fp32 graph in a quantized or fp16 graph: what modelled targets' latencies are calculated from.

Their formulas and tables know the nodes of fp32 graphs only. A quantized convolution isn't one of those, and
would be taken for something elementwise, next to free; and this processor has no fp16 kernels, so that
onnxruntime's optimizer fuses little of an fp16 graph and puts Casts around the rest: twice the nodes that run
on a GPU. So a layer's time is that of the same layer in fp32, as its formula sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condensec.unrounded import CLIP, unrounded

if TYPE_CHECKING:
    import onnx_ir as ir

_SIGNED = ("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sub")


def unquantized(model: ir.Model) -> ir.Model:
    """The same graph with weights and activations in fp32.

    The clipping of activations to what they were quantized to is left out, too: integer kernels do it for
    nothing.

    Returns:
        The model itself if nothing in it is QDQ or fp16.
    """
    wide = _widened(model)
    copy = unrounded(wide)
    if copy is None:
        return wide
    for node in list(copy.graph):
        if node.op_type == "DequantizeLinear":
            _fold(copy.graph, node)
        elif (node.name or "").endswith(CLIP):
            _unclip(copy.graph, node)
    return copy


def _unclip(graph: ir.Graph, node: ir.Node) -> None:
    """Take a Clip out; where it stands for the Relu that the quantizer dropped, it becomes that again."""
    import onnx_ir as ir

    source, low, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if source is None or output.is_graph_output():
        return
    producer = source.producer()
    bound = ir.convenience.get_const_tensor(low) if low is not None else None
    if bound is not None and bound.numpy() == 0 and producer is not None and producer.op_type in _SIGNED:
        relu = ir.Node("", "Relu", [source], name=f"{node.name}.relu")
        relu.outputs[0].name, relu.outputs[0].type = f"{output.name}.relu", output.type
        graph.insert_before(node, relu)
        source = relu.outputs[0]
    output.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def _widened(model: ir.Model) -> ir.Model:
    """The same graph with float32 for float16, without the Casts between the two."""
    import onnx_ir as ir

    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    weights = model.graph.initializers.values()
    if not any(v.const_value is not None and v.const_value.dtype is half for v in weights):
        return model
    copy = model.clone()
    values = [*copy.graph.inputs, *copy.graph.initializers.values()]
    values += [output for node in copy.graph for output in node.outputs]
    for value in values:
        if value.dtype is half:
            value.dtype = full
        if value.const_value is not None and value.const_value.dtype is half:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in copy.graph:
        for name, attribute in node.attributes.items():
            if attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype is half:
                array = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
    for node in [node for node in copy.graph if node.op_type == "Cast"]:
        if node.attributes.get_int("to") == half.value:
            node.attributes["to"] = ir.AttrInt64("to", full.value)
        source = node.inputs[0]
        if source is not None and source.dtype is full and node.attributes.get_int("to") == full.value:
            _drop(copy.graph, node, source)
    return copy


def _drop(graph: ir.Graph, cast: ir.Node, source: ir.Value) -> None:
    """Take out a Cast that changes nothing; what it gave keeps its name where that is an output's."""
    output = cast.outputs[0]
    if output.is_graph_output():
        if source.producer() is None or source.is_graph_output():
            return
        output.name, source.name = f"{output.name}.cast", output.name
        graph.outputs[graph.outputs.index(output)] = source
    output.replace_all_uses_with(source)
    graph.remove(cast, safe=True)


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
