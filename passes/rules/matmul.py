"""Matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context, Layout, volume
from condensec.passes.rules import rule


@rule("MatMul", "com.microsoft::FusedMatMul")
def matmul(ctx: Context, node: ir.Node) -> None:
    """``[..., M, K] @ [..., K, N]``, numpy broadcasting of the leading axes."""
    a, b = ctx.operand(node, 0), ctx.operand(node, 1)
    la, sa = list(ctx.layout(a)), list(ctx.shape(a))
    lb, sb = list(ctx.layout(b)), list(ctx.shape(b))
    if _flag(node, "transA") and len(la) > 1:
        la[-2:], sa[-2:] = la[:-3:-1], sa[:-3:-1]
    if _flag(node, "transB") and len(lb) > 1:
        lb[-2:], sb[-2:] = lb[:-3:-1], sb[:-3:-1]
    vector_a, vector_b = len(la) == 1, len(lb) == 1
    if vector_a:
        la, sa = [None, *la], [1, *sa]
    if vector_b:
        lb, sb = [*lb, None], [*sb, 1]
    ctx.tie(la[-1], lb[-2], "multiplied with an axis of the data")
    batch = _batch(ctx, la[:-2], sa[:-2], lb[:-2], sb[:-2])
    layout = [*batch, *([] if vector_a else [la[-2]]), *([] if vector_b else [lb[-1]])]
    ctx.set(node.outputs[0], layout)
    _hints(ctx, node, a, b, batch, la[-1], lb[-1])
    sizes = ctx.shape(node.outputs[0])
    rows = volume(sizes) // (sb[-1] or 1)
    dense = ctx.is_constant(b) or ctx.is_constant(a)
    terms: list[Term | int | None] = [*batch, la[-2], lb[-1], la[-1]]
    counts = [*_broadcast_sizes(sa[:-2], sb[:-2]), sa[-2], sb[-1], sa[-1]]
    ctx.cost(
        node,
        terms,
        counts,
        inputs=la[-1] if dense else None,
        outputs=lb[-1] if dense else None,
        positions=rows,
        mask=_mask_point(ctx, node, a, b),
    )


def _mask_point(ctx: Context, node: ir.Node, a: ir.Value, b: ir.Value) -> tuple[int, int]:
    """The contraction axis of the operand that is data (the first, where both are)."""
    index, value = (1, b) if ctx.is_constant(a) else (0, a)
    rank = len(ctx.layout(value))
    last = (index == 0) != _flag(node, "transB" if index else "transA")
    return index, 0 if rank == 1 else rank - 1 if last else rank - 2


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes[name].as_int()) if name in node.attributes else False


def _broadcast_sizes(a: list[int], b: list[int]) -> list[int]:
    rank = max(len(a), len(b))
    a, b = [1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b
    return [max(x, y) for x, y in zip(a, b, strict=True)]


def _batch(ctx: Context, la: Layout, sa: list[int], lb: Layout, sb: list[int]) -> Layout:
    rank = max(len(la), len(lb))
    la, sa = [None] * (rank - len(la)) + la, [1] * (rank - len(sa)) + sa
    lb, sb = [None] * (rank - len(lb)) + lb, [1] * (rank - len(sb)) + sb
    result: Layout = []
    for x, n, y, m in zip(la, sa, lb, sb, strict=True):
        if n == 1 or m == 1:
            result.append(y if n == 1 else x)
        else:
            ctx.tie(x, y)
            result.append(None if x is None or y is None else x)
    return result


def _hints(
    ctx: Context,
    node: ir.Node,
    a: ir.Value,
    b: ir.Value,
    batch: Layout,
    contraction: Term | None,
    columns: Term | None,
) -> None:
    """A product of two activations is attention: name its heads and head dimensions."""
    for index, (value, transposed) in enumerate(((a, _flag(node, "transA")), (b, not _flag(node, "transB")))):
        rank = len(ctx.layout(value))
        ctx.contracts(node, index, 0 if rank == 1 else rank - 2 if transposed else rank - 1)
    constant = ctx.is_constant(a) or ctx.is_constant(b)
    for term in batch[1:] if len(batch) > 1 and not constant else batch:
        if term is not None:
            ctx.axes.hint(term, "expert" if constant else "head")
    for term in () if constant else (contraction, columns):
        if term is not None:
            ctx.axes.hint(term, "head_dim")


@rule("Gemm", "com.microsoft::FusedGemm")
def gemm(ctx: Context, node: ir.Node) -> None:
    """``A[M, K] @ B[K, N] + C``, either side transposed."""
    a, b = ctx.operand(node, 0), ctx.operand(node, 1)
    la, sa, lb, sb = list(ctx.layout(a)), list(ctx.shape(a)), list(ctx.layout(b)), list(ctx.shape(b))
    if _flag(node, "transA"):
        la, sa = la[::-1], sa[::-1]
    if _flag(node, "transB"):
        lb, sb = lb[::-1], sb[::-1]
    ctx.tie(la[1], lb[0], "multiplied with an axis of the data")
    layout: Layout = [la[0], lb[1]]
    if ctx.has(node, 2):
        bias = ctx.operand(node, 2)
        lc, sc = list(ctx.layout(bias)), list(ctx.shape(bias))
        lc, sc = [None] * (2 - len(lc)) + lc, [1] * (2 - len(sc)) + sc
        for axis in (0, 1):
            if sc[axis] > 1:
                ctx.tie(layout[axis], lc[axis])
    ctx.set(node.outputs[0], layout)
    ctx.cost(
        node,
        (la[0], lb[1], la[1]),
        (sa[0], sb[1], sa[1]),
        inputs=la[1],
        outputs=lb[1],
        positions=sa[0],
        mask=(0, 0 if _flag(node, "transA") else 1),
    )


@rule("Einsum")
def einsum(ctx: Context, node: ir.Node) -> None:
    """Axes with the same letter are the same axis."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    inputs = [v for v in node.inputs if v is not None]
    if "..." in equation:
        for value in inputs:
            ctx.freeze_all(value, "Einsum with an ellipsis")
        ctx.set(node.outputs[0], [None] * len(ctx.shape(node.outputs[0])))
        return
    left, _, right = equation.partition("->")
    letters: dict[str, Term | None] = {}
    sizes: dict[str, int] = {}
    for subscripts, value in zip(left.split(","), inputs, strict=True):
        for letter, term, size in zip(subscripts, ctx.layout(value), ctx.shape(value), strict=True):
            if letter in letters and size > 1 and sizes[letter] > 1:
                ctx.tie(letters[letter], term)
            if letter not in letters or sizes[letter] == 1:
                letters[letter], sizes[letter] = term, size
    if "->" not in equation:
        right = "".join(sorted(x for x in set(left) - {","} if left.count(x) == 1))
    ctx.set(node.outputs[0], [letters[x] for x in right])
    if len(inputs) == 1:
        return
    ctx.cost(node, [letters[x] for x in sizes], [sizes[x] for x in sizes])
