"""Reductions without a gradient kernel: maxima through TopK, the rest through ReduceSum."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


def reduced_axes(node: Node, e: Emitter) -> list[int]:
    """Axes of a Reduce node, non-negative, sorted; all of them if none are given.

    Raises:
        NotLegal: they aren't constant.
    """
    rank = len(e.shape(node.inputs[0]))
    if not node.input(1):
        return [] if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
    value = e.graph.constants.get(node.inputs[1])
    if value is None:
        raise NotLegal(f"{node.op} over axes that are computed")
    axes = sorted(int(a) % rank for a in value.reshape(-1))
    return axes or ([] if node.attribute("noop_with_empty_axes", 0) else list(range(rank)))


def largest(x: str, axes: list[int], e: Emitter, out: str, out_shape: tuple[int, ...]) -> None:
    """Maximum over axes: they are moved to the end, joined, and TopK takes one.

    The gradient goes to one of the largest, as in every framework's max pooling.
    """
    shape = e.shape(x)
    kept = [a for a in range(len(shape)) if a not in axes]
    moved = x if kept + axes == list(range(len(shape))) else e.op("Transpose", x, perm=kept + axes)
    rows = int(np.prod([shape[a] for a in kept]))
    flat = e.reshape(moved, (rows, int(np.prod([shape[a] for a in axes]))))
    values, index = e.graph.fresh("max"), e.graph.fresh("max.index")
    e.multi("TopK", [flat, e.ints([1])], [values, index], axis=1, largest=1)
    e.reshape(values, out_shape, out=out)


@legalizes("ReduceMax", "ReduceMin")
def reduce_extreme(node: Node, e: Emitter) -> None:
    """The largest over the axes; the smallest is minus the largest of -x."""
    axes, x, out = reduced_axes(node, e), node.inputs[0], node.outputs[0]
    shape = e.shape(out)
    if not axes:
        e.op("Identity", x, out=out)
    elif node.op == "ReduceMax":
        largest(x, axes, e, out, shape)
    else:
        negated = e.op("Neg", x)
        e.graph.shapes[negated], e.graph.types[negated] = e.shape(x), e.graph.type(x)
        top = e.graph.fresh("top")
        largest(negated, axes, e, top, shape)
        e.op("Neg", top, out=out)


@legalizes("GlobalMaxPool")
def global_max_pool(node: Node, e: Emitter) -> None:
    """The largest over all spatial axes."""
    shape = e.shape(node.inputs[0])
    largest(node.inputs[0], list(range(2, len(shape))), e, node.outputs[0], e.shape(node.outputs[0]))


@legalizes("ReduceL1", "ReduceSumSquare", "ReduceLogSum", "ReduceProd")
def reduce_by_sum(node: Node, e: Emitter) -> None:
    """Gives sum |x|; sum x^2; log sum x; a product has no such form."""
    x, where = node.inputs[0], e.ints(reduced_axes(node, e))
    keep, out = node.attribute("keepdims", 1), node.outputs[0]
    if node.op == "ReduceL1":
        e.op("ReduceSum", e.op("Abs", x), where, keepdims=keep, out=out)
    elif node.op == "ReduceSumSquare":
        e.op("ReduceSum", e.op("Mul", x, x), where, keepdims=keep, out=out)
    elif node.op == "ReduceLogSum":
        e.op("Log", e.op("ReduceSum", x, where, keepdims=keep), out=out)
    else:
        raise NotLegal("ReduceProd has no gradient")


@legalizes("ReduceL2")
def reduce_l2(node: Node, e: Emitter) -> None:
    """sqrt(sum x^2): the built-in gradient exists, this form also serves every axis layout."""
    x, where = node.inputs[0], e.ints(reduced_axes(node, e))
    total = e.op("ReduceSum", e.op("Mul", x, x), where, keepdims=node.attribute("keepdims", 1))
    e.op("Sqrt", total, out=node.outputs[0])


@legalizes("CumSum")
def cumulative_sum(node: Node, e: Emitter) -> None:
    """A product with a triangular matrix of ones along the axis."""
    x, axis = node.inputs[0], e.graph.constants.get(node.inputs[1])
    if axis is None:
        raise NotLegal("CumSum along an axis that is computed")
    shape = e.shape(x)
    a = int(axis.reshape(())) % len(shape)
    n = shape[a]
    ones = np.tril(np.ones((n, n), np.float32), -1 if node.attribute("exclusive", 0) else 0)
    matrix = ones.T if node.attribute("reverse", 0) else ones  # out_i = sum_j matrix[i, j] x_j
    rows, columns = int(np.prod(shape[:a])), int(np.prod(shape[a + 1 :]))
    summed = e.op("MatMul", e.const(matrix), e.reshape(x, (rows, n, columns)))
    e.reshape(summed, shape, out=node.outputs[0])
