"""Elementwise operators: aligned axes are one."""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.arithmetic import names
from condensec.passes.context import Context
from condensec.passes.rules import rule


@rule(
    *names(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu",
        "Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not",
        "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh",
        "ThresholdedRelu Trilu",
    ),
    "com.microsoft::Gelu",
    "com.microsoft::FastGelu",
    "com.microsoft::QuickGelu",
    "com.microsoft::BiasGelu",
    "com.microsoft::Trilu",
)
def unary(ctx: Context, node: ir.Node) -> None:
    """One tensor in, the same axes out; a bias (FastGelu, BiasGelu) lies on the last axis."""
    source = ctx.operand(node, 0)
    layout = list(ctx.layout(source))
    if node.op_type in ("BiasGelu", "FastGelu") and ctx.has(node, 1):
        bias = ctx.operand(node, 1)
        ctx.tie(layout[-1], ctx.layout(bias)[0])
    if node.op_type == "Trilu":  # a mask over the last two axes
        for term in layout[-2:]:
            ctx.freeze(term, "under a triangular mask")
        layout[-2:] = [None, None]
    for output in node.outputs:
        ctx.set(output, layout)


@rule(
    *names(
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less",
        "LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor",
    ),
)
def broadcasting(ctx: Context, node: ir.Node) -> None:
    """Any number of tensors, numpy broadcasting."""
    ctx.broadcast(node, list(node.inputs), node.outputs[0])


@rule(
    "QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear"
)
def quantize(ctx: Context, node: ir.Node) -> None:
    """Scales and zero-points lie on one axis of the tensor, or are scalars, or blocked along it."""
    source = ctx.operand(node, 0)
    layout = ctx.layout(source)
    rank = len(layout)
    axis = node.attributes["axis"].as_int() % rank if "axis" in node.attributes and rank else min(1, rank - 1)
    for parameter in node.inputs[1:]:
        if parameter is None:
            continue
        sizes = ctx.shape(parameter)
        if len(sizes) == 1 and sizes[0] > 1:
            ctx.tie(layout[axis], ctx.layout(parameter)[0])
        elif len(sizes) > 1:
            for term in (*layout, *ctx.layout(parameter)):
                ctx.freeze(term, "quantized in blocks")
    ctx.set(node.outputs[0], layout)
