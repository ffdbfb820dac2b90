"""Quantized operators: of the standard, and those of onnxruntime."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Layout, volume
from condensec.passes.rules import rule
from condensec.passes.rules.conv import Places, convolution
from condensec.passes.rules.matmul import matrix_product
from condensec.passes.rules.movement import join


def _per_channel(ctx: Context, node: ir.Node, index: int, term: Term | None) -> None:
    """A scale or zero-point: one number, or one a channel."""
    if ctx.has(node, index):
        parameter = ctx.operand(node, index)
        sizes = ctx.shape(parameter)
        if volume(sizes) > 1:
            if len(sizes) == 1:
                ctx.tie(ctx.layout(parameter)[0], term)
            else:
                ctx.freeze_all(parameter, "quantized in blocks")
                ctx.freeze(term, "quantized in blocks")


@rule("QLinearConv", "com.microsoft::QLinearConv")
def qlinear_conv(ctx: Context, node: ir.Node) -> None:
    """``x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias``."""
    last = "channels_last" in node.attributes and bool(node.attributes["channels_last"].as_int())
    convolution(ctx, node, Places(0, 3, 8, masked=False, channels_last=last))
    outputs = ctx.layout(ctx.operand(node, 3))[0]
    for index in (4, 5):
        _per_channel(ctx, node, index, outputs)


@rule("ConvInteger")
def conv_integer(ctx: Context, node: ir.Node) -> None:
    """``x, w, x_zero, w_zero``."""
    convolution(ctx, node, Places(0, 1, masked=False))
    _per_channel(ctx, node, 3, ctx.layout(ctx.operand(node, 1))[0])


@rule("QLinearMatMul", "com.microsoft::QLinearMatMul")
def qlinear_matmul(ctx: Context, node: ir.Node) -> None:
    """``a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero``."""
    matrix_product(ctx, node, 0, 3)
    for index in (4, 5):
        _per_channel(ctx, node, index, ctx.layout(ctx.operand(node, 3))[-1])


@rule("MatMulInteger", "com.microsoft::MatMulInteger16")
def matmul_integer(ctx: Context, node: ir.Node) -> None:
    """``a, b, a_zero, b_zero``."""
    matrix_product(ctx, node, 0, 1)
    _per_channel(ctx, node, 3, ctx.layout(ctx.operand(node, 1))[-1])


@rule("com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat")
def matmul_to_float(ctx: Context, node: ir.Node) -> None:
    """``a, b, b_scale, b_zero, bias``, or ``a, b, a_scale, b_scale, a_zero, b_zero, bias``."""
    matrix_product(ctx, node, 0, 1)
    columns = ctx.layout(ctx.operand(node, 1))[-1]
    if node.op_type == "DynamicQuantizeMatMul":  # its range is that of the whole tensor
        for term in ctx.layout(ctx.operand(node, 0)):
            ctx.needs_zeros(node, term, 0)
    for index in (2, 3, 4) if node.op_type == "DynamicQuantizeMatMul" else (3, 5, 6):
        _per_channel(ctx, node, index, columns)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(ctx: Context, node: ir.Node) -> None:
    """Scale and zero-point follow from the smallest and largest element; zero always counts as one."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    ctx.set(node.outputs[0], layout)
    for output in node.outputs[1:]:
        ctx.set(output, [])
    for axis in range(len(layout)):  # where cut units aren't zero, they'd change the range
        ctx.contracts(node, 0, axis, (0,))


_ONE = (
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QLinearGlobalAveragePool",
    "QLinearAveragePool",
)


@rule(*(f"com.microsoft::{name}" for name in _ONE))
def qlinear_unary(ctx: Context, node: ir.Node) -> None:
    """One tensor in, the same channels out."""
    data = ctx.operand(node, 0)
    layout, output = ctx.layout(data), node.outputs[0]
    if node.op_type == "QLinearSoftmax":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        ctx.freeze(layout[axis], "softmax of quantized numbers")
    if "Pool" not in node.op_type:
        ctx.set(output, layout)
        return
    last = "channels_last" in node.attributes and bool(node.attributes["channels_last"].as_int())
    channel = len(layout) - 1 if last else 1
    for axis, term in enumerate(layout):
        if axis not in (0, channel):
            ctx.freeze(term, f"{node.op_type} pools over this axis")
    ctx.set(output, [t if axis in (0, channel) else None for axis, t in enumerate(layout)])


@rule("com.microsoft::QLinearAdd", "com.microsoft::QLinearMul")
def qlinear_binary(ctx: Context, node: ir.Node) -> None:
    """``a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero``, broadcasting."""
    ctx.broadcast(node, [ctx.operand(node, 0), ctx.operand(node, 3)], node.outputs[0])


@rule("com.microsoft::MulInteger")
def mul_integer(ctx: Context, node: ir.Node) -> None:
    """``a, a_zero, b, b_zero``, broadcasting; zero-points are scalars."""
    second = 2 if ctx.has(node, 3) or len(node.inputs) > 2 else 1
    ctx.broadcast(node, [ctx.operand(node, 0), ctx.operand(node, second)], node.outputs[0])


@rule("com.microsoft::QLinearReduceMean", "com.microsoft::ReduceSumInteger")
def integer_reduction(ctx: Context, node: ir.Node) -> None:
    """The named axes collapse. A unit that is cut is no zero among quantized numbers: they can't be cut."""
    layout = ctx.layout(ctx.operand(node, 0))
    keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    named = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else range(len(layout))
    axes = {axis % len(layout) for axis in named} if layout else set()
    for axis in axes:
        ctx.freeze(layout[axis], f"{node.op_type} runs over this axis")
    left: Layout = [None if axis in axes else term for axis, term in enumerate(layout)]
    ctx.set(node.outputs[0], left if keep else [t for a, t in enumerate(left) if a not in axes])


@rule("com.microsoft::QLinearWhere")
def qlinear_where(ctx: Context, node: ir.Node) -> None:
    """``condition, a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero``, broadcasting."""
    ctx.broadcast(node, [ctx.operand(node, i) for i in (0, 1, 4)], node.outputs[0])


@rule("com.microsoft::QLinearConcat")
def qlinear_concat(ctx: Context, node: ir.Node) -> None:
    """``y_scale, y_zero, (x, x_scale, x_zero)...``."""
    join(ctx, node, [ctx.operand(node, i) for i in range(2, len(node.inputs), 3)])


@rule("com.microsoft::QGemm")
def qgemm(ctx: Context, node: ir.Node) -> None:
    """``a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero``."""
    matrix_product(ctx, node, 0, 3)
    transposed = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
    columns = ctx.layout(ctx.operand(node, 3))[0 if transposed else 1]
    for index in (4, 5, 6):
        _per_channel(ctx, node, index, columns)


@rule("com.microsoft::MatMulNBits")
def matmul_n_bits(ctx: Context, node: ir.Node) -> None:
    """``a [..., K]``; ``b [N, blocks, bytes]``, scales and zero-points ``[N * blocks]``: N can be cut."""
    data, weight, output = ctx.operand(node, 0), ctx.operand(node, 1), node.outputs[0]
    rows = ctx.layout(weight)[0]
    count = ctx.shape(weight)[0]
    ctx.freeze(ctx.layout(data)[-1], "features of a weight packed in blocks")
    for term in ctx.layout(weight)[1:]:
        ctx.freeze(term, "features of a weight packed in blocks")
    for index in (2, 3, 5):  # scales, zero-points, bias
        if not ctx.has(node, index) or rows is None:
            continue
        parameter = ctx.operand(node, index)
        each = volume(ctx.shape(parameter)) // count
        packed: Term = rows
        if each > 1:
            packed = ctx.axes.product([rows, ctx.axes.fixed(each, "blocks of a packed weight")])
        if len(ctx.shape(parameter)) == 1:
            ctx.tie(ctx.layout(parameter)[0], packed)
        else:
            ctx.tie(ctx.layout(parameter)[0], rows)
            ctx.freeze(ctx.layout(parameter)[1], "blocks of a packed weight")
    if ctx.has(node, 4):
        ctx.freeze_all(ctx.operand(node, 4), "features of a weight packed in blocks")
    if rows is not None:
        ctx.attribute(node, "N", lambda kept: kept.size(rows))
    ctx.set(output, [*ctx.layout(data)[:-1], rows])
    positions = volume(ctx.shape(data)[:-1])
    features = ctx.shape(data)[-1]
    ctx.cost(node, (None, rows, None), (positions, count, features), outputs=rows, positions=positions)
