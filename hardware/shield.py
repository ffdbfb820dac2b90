"""Keeping fp32 layers of a QDQ graph fp32: onnxruntime would quantize them by itself, and badly.

Since 1.20 a basic rewrite (WeightBiasQuantization) takes a Conv, ConvTranspose or Gemm with float weights
between a DequantizeLinear and a QuantizeLinear (a Relu or Clip before the latter aside) for one whose weights
were forgotten, and gives them 8 bits, one scale for all channels. A layer that was left in fp32 because it
loses most then loses more than it did in int8: EfficientNet-Lite0 with its worst layer in fp32 had a squared
error of 0.306 instead of 0.054. It only does so where the activation's scale is a single number, so what fp32
layers read is dequantized with the same number repeated for every channel: the same result, and left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from condensec.hardware.nodecost import attributes

if TYPE_CHECKING:
    import onnx

_TAKEN = ("Conv", "ConvTranspose", "Gemm")


def shield(proto: onnx.ModelProto) -> int:
    """Give every such layer a DequantizeLinear of its own with a scale for each channel, in place.

    Returns:
        How many layers were shielded.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    shielded = 0
    for node in list(graph.node):
        source = producers.get(node.input[0]) if node.op_type in _TAKEN else None
        weight = tensors.get(node.input[1]) if source is not None else None
        if source is None or weight is None or weight.data_type != TensorProto.FLOAT:
            continue
        settings = [tensors.get(name) for name in source.input[1:]]
        if source.op_type != "DequantizeLinear" or any(t is None or np.prod(t.dims) != 1 for t in settings):
            continue
        prefix = f"{node.name or node.output[0]}.shield"
        names = [f"{prefix}.{part}" for part in ("scale", "zero")[: len(settings)]]
        for name, tensor in zip(names, settings, strict=True):
            assert tensor is not None
            value = numpy_helper.to_array(tensor).reshape(())
            graph.initializer.append(
                numpy_helper.from_array(np.full(_inputs(node, weight), value, value.dtype), name)
            )
        own = helper.make_node(
            "DequantizeLinear", [source.input[0], *names], [f"{prefix}.out"], name=prefix, axis=_axis(node)
        )
        graph.node.insert(list(graph.node).index(node), own)
        node.input[0] = own.output[0]
        shielded += 1
    _drop_unread(graph)
    return shielded


def _axis(node: onnx.NodeProto) -> int:
    """The axis of what a layer reads that its weight sums over."""
    return 0 if node.op_type == "Gemm" and attributes(node).get("transA", 0) else 1


def _inputs(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """Entries of that axis."""
    if node.op_type == "Conv":
        return int(weight.dims[1] * attributes(node).get("group", 1))
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1 if attributes(node).get("transB", 0) else 0])


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove DequantizeLinear nodes that nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    read |= {name for node in graph.node for a in node.attribute for name in _captured(a)}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] not in read]:
        graph.node.remove(node)


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    """Everything that the bodies of a node read."""
    found: set[str] = set()
    for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
        for node in body.node:
            found |= {*node.input} | {name for a in node.attribute for name in _captured(a)}
        found |= {value.name for value in body.output}
    return found
