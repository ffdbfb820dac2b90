"""Sum, Mean and other elementwise operators."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


@legalizes("Sum", "Mean")
def sum_or_mean(node: Node, e: Emitter) -> None:
    """A chain of Add, divided by the count for Mean."""
    total, count = node.inputs[0], len(node.inputs)
    scale = node.op == "Mean" and count > 1
    for i, name in enumerate(node.inputs[1:], start=2):
        total = e.op("Add", total, name, out=node.outputs[0] if i == count and not scale else None)
    if scale:
        e.op("Mul", total, e.const(1 / count), out=node.outputs[0])
    elif count == 1:
        e.op("Identity", total, out=node.outputs[0])


@legalizes("Pow")
def power(node: Node, e: Emitter) -> None:
    """A constant exponent is differentiable as it is; a varying one is not."""
    base, exponent = node.inputs
    value = e.graph.constants.get(exponent)
    if value is None:
        # x^y = exp(y log x), for the positive x that a varying real exponent asks for
        e.op("Exp", e.op("Mul", exponent, e.op("Log", base)), out=node.outputs[0])
    elif value.dtype != np.float32:
        e.op("Pow", base, e.const(value), out=node.outputs[0])


@legalizes("Mod")
def modulo(node: Node, e: Emitter) -> None:
    """Its gradient isn't defined at the steps and is left out."""
    raise NotLegal("Mod has no gradient")


@legalizes("Dropout")
def dropout(node: Node, e: Emitter) -> None:
    """Inference mode: nothing is dropped."""
    e.op("Identity", node.inputs[0], out=node.outputs[0])


@legalizes("MatMul")
def matmul_vector(node: Node, e: Emitter) -> None:
    """With a vector on one side: as a matrix of one row or column; the gradient of the 1-D form is wrong."""
    a, b = node.inputs
    rank_a, rank_b = len(e.shape(a)), len(e.shape(b))
    if rank_a > 1 and rank_b > 1:
        return
    left = a if rank_a > 1 else e.reshape(a, (1, *e.shape(a)))
    right = b if rank_b > 1 else e.reshape(b, (*e.shape(b), 1))
    e.reshape(e.op("MatMul", left, right), e.shape(node.outputs[0]), out=node.outputs[0])


@legalizes("CastLike")
def cast_like(node: Node, e: Emitter) -> None:
    """Cast to the type of the other operand."""
    e.op("Cast", node.inputs[0], out=node.outputs[0], to=e.graph.type(node.inputs[1]))
