"""Stand-ins: nodes that ONNX can infer shapes of, in place of those it can't.

ONNX knows nothing of onnxruntime's fused operators, and says nothing about some of its own. On the copy that
shapes are inferred on, such a node is replaced by ordinary ones that give the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import helper

from condensec.passes.arithmetic import names

Shapes = Mapping[str, tuple[int, ...]]
StandIn = Callable[[onnx.NodeProto, Shapes], "list[onnx.NodeProto] | None"]

_SAME = names(
    "BiasAdd BiasGelu BiasSoftmax FastGelu GatedRMSNorm Gelu GroupNorm GroupNormalization",
    "LayerNormalization MoE QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QMoE QuickGelu",
    "RMSNormalization RotaryEmbedding SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization Trilu",
)
_SUMS = {"SkipGroupNorm": 1, "SkipLayerNormalization": 3, "SkipSimplifiedLayerNormalization": 3}


def replace(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto] | None:
    """Ordinary nodes with the shapes of this one, or None where it needs no stand-in (or there is none)."""
    if node.domain in ("", "ai.onnx") and node.op_type not in (
        "GroupNormalization",
        "SimplifiedLayerNormalization",
    ):
        return None
    if node.op_type in _SAME:
        found = [helper.make_node("Identity", node.input[:1], node.output[:1])]
        total = _SUMS.get(node.op_type)
        if total is not None and len(node.output) > total and node.output[total]:
            found.append(helper.make_node("Identity", node.input[:1], [node.output[total]]))
        return found
    function = _FUNCTIONS.get(node.op_type)
    return function(node, shapes) if function is not None else None


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _keeping(
    node: onnx.NodeProto, kind: str, inputs: Sequence[str], attributes: Sequence[str]
) -> onnx.NodeProto:
    new = helper.make_node(kind, list(inputs), node.output[:1])
    new.attribute.extend(a for a in node.attribute if a.name in attributes)
    return new


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    return [_keeping(node, "Conv", node.input[:2], kept)]


def _product(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    """A matrix product, operands transposed first where asked for."""
    first, second = (0, 3) if node.op_type == "QGemm" else (0, 1)
    nodes, operands = [], []
    for index, flag in ((first, "transA"), (second, "transB")):
        name = node.input[index]
        rank = len(shapes.get(name, (0, 0)))
        if _integer(node, flag) and rank > 1:
            perm = [*range(rank - 2), rank - 1, rank - 2]
            turned = f"{node.output[0]}.condensec.{flag}"
            nodes.append(helper.make_node("Transpose", [name], [turned], perm=perm))
            name = turned
        operands.append(name)
    return [*nodes, helper.make_node("MatMul", operands, node.output[:1])]


def _binary(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return [helper.make_node("Add", [node.input[0], node.input[3]], node.output[:1])]


def _standard(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    """The standard's operator of the same name."""
    return [_keeping(node, node.op_type, node.input, [a.name for a in node.attribute])]


def _product_of_integers(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return [helper.make_node("Add", [node.input[0], node.input[2]], node.output[:1])]


def _reduction(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    """ReduceSum has its axes as an input from opset 13 on; quantized graphs are that young."""
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    keep = next((int(a.i) for a in node.attribute if a.name == "keepdims"), 1)
    name = f"{node.output[0]}.condensec.axes"
    if axes is None:
        return [helper.make_node("ReduceSum", node.input[:1], node.output[:1], keepdims=keep)]
    value = helper.make_tensor(name, onnx.TensorProto.INT64, [len(axes)], axes)
    return [
        helper.make_node("Constant", [], [name], value=value),
        helper.make_node("ReduceSum", [node.input[0], name], node.output[:1], keepdims=keep),
    ]


def _where(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return [helper.make_node("Where", [node.input[0], node.input[1], node.input[4]], node.output[:1])]


def _channels_last(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    """The ordinary operator between two transpositions."""
    rank, name = len(shapes.get(node.input[0], (0, 0, 0, 0))), f"{node.output[0]}.condensec"
    kind = "MaxPool" if "Pool" in node.op_type else "Conv"
    kept = ("auto_pad", "ceil_mode", "dilations", "group", "kernel_shape", "pads", "strides")
    inner = _keeping(node, kind, [f"{name}.first", *node.input[1:2]], kept)
    inner.output[0] = f"{name}.result"
    there, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    return [
        helper.make_node("Transpose", [node.input[0]], [f"{name}.first"], perm=there),
        inner,
        helper.make_node("Transpose", [f"{name}.result"], node.output[:1], perm=back),
    ]


def _concat(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return [_keeping(node, "Concat", node.input[2::3], ("axis",))]


def _pool(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto] | None:
    if _integer(node, "channels_last"):
        return None
    if "Global" in node.op_type:
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output[:1])]
    kept = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    return [_keeping(node, "AveragePool", node.input[:1], kept)]


def _wide(node: onnx.NodeProto, width: int, size: int) -> list[onnx.NodeProto]:
    """The first input with another last axis."""
    constant = f"{node.output[0]}.condensec.weight"
    value = helper.make_tensor(f"{constant}.shape", onnx.TensorProto.INT64, [2], [size, width])
    return [
        helper.make_node("Constant", [], [f"{constant}.size"], value=value),
        helper.make_node("ConstantOfShape", [f"{constant}.size"], [constant]),
        helper.make_node("MatMul", [node.input[0], constant], node.output[:1]),
    ]


def _packed(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto] | None:
    weight = shapes.get(node.input[1])
    if weight is None:
        return None
    sizes = next((list(a.ints) for a in node.attribute if a.name == "qkv_hidden_sizes"), [weight[1] // 3] * 3)
    return _wide(node, sizes[2], weight[0])


def _n_bits(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return _wide(node, _integer(node, "N"), _integer(node, "K"))


def _heads(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto] | None:
    """Queries, keys and values in tensors of their own: the result is as wide as the queries."""
    if len(node.input) > 2 and node.input[1] and node.input[2]:
        return [helper.make_node("Identity", node.input[:1], node.output[:1])]
    return None


def _embedding(node: onnx.NodeProto, shapes: Shapes) -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", [node.input[2], node.input[0]], node.output[:1], axis=0)]


_FUNCTIONS: dict[str, StandIn] = {
    "DequantizeLinear": _standard,
    "QuantizeLinear": _standard,
    "FusedConv": _convolution,
    "FusedMatMul": _product,
    "FusedGemm": _product,
    "TransposeMatMul": _product,
    "QGemm": _product,
    "DynamicQuantizeMatMul": _product,
    "MatMulIntegerToFloat": _product,
    "NhwcConv": _channels_last,
    "NhwcFusedConv": _channels_last,
    "NhwcMaxPool": _channels_last,
    "QLinearAdd": _binary,
    "QLinearWhere": _where,
    "QLinearMul": _binary,
    "MulInteger": _product_of_integers,
    "QLinearReduceMean": _reduction,
    "ReduceSumInteger": _reduction,
    "QLinearConcat": _concat,
    "QLinearAveragePool": _pool,
    "QLinearGlobalAveragePool": _pool,
    "Attention": _packed,
    "MatMulNBits": _n_bits,
    "MultiHeadAttention": _heads,
    "GroupQueryAttention": _heads,
    "EmbedLayerNormalization": _embedding,
}
