"""Matrix products: MatMul and Gemm."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Layout, UnknownShape, volume
from condensec.passes.rules import rule


@dataclass(frozen=True)
class Side:
    """One operand as the product sees it: transposed where asked for, and with two axes at least.

    Attributes:
        value: the operand.
        index: which input of the node it is.
        layout: ``[..., rows, columns]``.
        shape: the sizes.
        vector: whether it had one axis only.
        axes: where rows and columns are in the operand; None for the one a vector hasn't.
    """

    value: ir.Value
    index: int
    layout: Layout
    shape: list[int]
    vector: bool
    axes: tuple[int | None, int | None]


def side(ctx: Context, node: ir.Node, index: int, transposed: bool, left: bool) -> Side:
    """Read an operand."""
    value = ctx.operand(node, index)
    layout, shape = list(ctx.layout(value)), list(ctx.shape(value))
    rank = len(shape)
    if rank == 1:
        if left:
            return Side(value, index, [None, *layout], [1, *shape], True, (None, 0))
        return Side(value, index, [*layout, None], [*shape, 1], True, (0, None))
    axes = (rank - 2, rank - 1)
    if transposed:
        layout[-2:], shape[-2:], axes = layout[:-3:-1], shape[:-3:-1], (rank - 1, rank - 2)
    return Side(value, index, layout, shape, False, axes)


@rule("MatMul", "com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def matmul(ctx: Context, node: ir.Node) -> None:
    """``[..., M, K] @ [..., K, N]``, numpy broadcasting of the leading axes."""
    if _flag(node, "transBatchA") or _flag(node, "transBatchB"):
        raise UnknownShape(f"{node.op_type} '{node.name}' transposes its leading axes")
    matrix_product(ctx, node, 0, 1, masked=True)


def matrix_product(ctx: Context, node: ir.Node, first: int, second: int, *, masked: bool = False) -> None:
    """A product of two inputs; ``masked``: zeroing floats where they're contracted is like a cut."""
    a = side(ctx, node, first, _flag(node, "transA"), True)
    b = side(ctx, node, second, _flag(node, "transB"), False)
    ctx.tie(a.layout[-1], b.layout[-2], "multiplied with an axis of the data")
    batch = _batch(ctx, a, b)
    ctx.set(
        node.outputs[0],
        [*batch, *([] if a.vector else [a.layout[-2]]), *([] if b.vector else [b.layout[-1]])],
    )
    for operand, axis in ((a, a.axes[1]), (b, b.axes[0])):
        if axis is not None:
            ctx.contracts(node, operand.index, axis, (first, second))
    _hints(ctx, a, b, batch)
    _cost(ctx, node, a, b, batch, masked)


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes[name].as_int()) if name in node.attributes else False


def _padded(a: Side, b: Side) -> tuple[Layout, list[int], Layout, list[int]]:
    """The leading axes of both, as many of each."""
    rank = max(len(a.shape), len(b.shape)) - 2
    la, sa, lb, sb = a.layout[:-2], a.shape[:-2], b.layout[:-2], b.shape[:-2]
    return (
        [None] * (rank - len(la)) + la,
        [1] * (rank - len(sa)) + sa,
        [None] * (rank - len(lb)) + lb,
        [1] * (rank - len(sb)) + sb,
    )


def _batch(ctx: Context, a: Side, b: Side) -> Layout:
    result: Layout = []
    for x, n, y, m in zip(*_padded(a, b), strict=True):
        if n == 1 or m == 1:
            result.append(y if n == 1 else x)
        else:
            ctx.tie(x, y)
            result.append(None if x is None or y is None else x)
    return result


def _hints(ctx: Context, a: Side, b: Side, batch: Layout) -> None:
    """A product of two activations is attention: name its heads and head dimensions."""
    constant = _weight(ctx, a.value) or _weight(ctx, b.value)
    for term in batch[1:] if len(batch) > 1 and not constant else batch:
        if term is not None:
            ctx.axes.hint(term, "expert" if constant else "head")
    for term in () if constant else (a.layout[-1], b.layout[-1]):
        if term is not None:
            ctx.axes.hint(term, "head_dim")


def _weight(ctx: Context, value: ir.Value) -> bool:
    """Whether a value is a weight, or rows of one that the data chose (an expert's)."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Gather" else None
    return ctx.is_constant(value) or (source is not None and ctx.is_constant(source))


def _cost(ctx: Context, node: ir.Node, a: Side, b: Side, batch: Layout, masked: bool) -> None:
    _, sa, _, sb = _padded(a, b)
    leading = [max(x, y) for x, y in zip(sa, sb, strict=True)]
    summed = a.layout[-1] if a.layout[-1] is not None else b.layout[-2]
    terms: list[Term | int | None] = [*batch, a.layout[-2], b.layout[-1], summed]
    weight_left = ctx.is_constant(a.value) and not ctx.is_constant(b.value)
    dense = weight_left or ctx.is_constant(b.value)
    data = b if weight_left else a
    axis = data.axes[0] if weight_left else data.axes[1]
    outputs = a.layout[-2] if weight_left else b.layout[-1]
    ctx.cost(
        node,
        terms,
        [*leading, a.shape[-2], b.shape[-1], a.shape[-1]],
        inputs=summed if dense else None,
        outputs=outputs if dense else None,
        positions=volume(leading) * (b.shape[-1] if weight_left else a.shape[-2]),
        mask=(data.index, axis) if masked and axis is not None else None,
    )


@rule("Gemm", "com.microsoft::FusedGemm")
def gemm(ctx: Context, node: ir.Node) -> None:
    """``A[M, K] @ B[K, N] + C``, either side transposed."""
    matrix_product(ctx, node, 0, 1, masked=True)
    layout = ctx.layout(node.outputs[0])
    if ctx.has(node, 2):
        bias = ctx.operand(node, 2)
        terms, sizes = ctx.layout(bias), ctx.shape(bias)
        for axis, (term, size) in enumerate(zip(terms, sizes, strict=True), start=2 - len(sizes)):
            if size > 1:
                ctx.tie(layout[axis], term)
