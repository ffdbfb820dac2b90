"""Einsum: transposes, a matrix product, a reshape; more than two operands two by two."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


@legalizes("Einsum")
def einsum(node: Node, e: Emitter) -> None:
    """Labels in both operands and the output are the batch, in both but not the output the contraction."""
    terms, out = _parse(node, [len(e.shape(n)) for n in node.inputs])
    if len(terms) > 2:
        _two_by_two(node, terms, out, e)
        return
    if any(len(set(t)) < len(t) for t in (*terms, out)):
        raise NotLegal("Einsum with a repeated label (a diagonal)")
    sizes = {
        c: d for t, n in zip(terms, node.inputs, strict=True) for c, d in zip(t, e.shape(n), strict=True) if d
    }
    names = [_summed(node.inputs[i], i, terms, out, e) for i in range(len(terms))]
    if len(names) == 1:
        term = names[0][1]
        _transposed(names[0][0], [term.index(c) for c in out], e, node.outputs[0])
        return
    (a, ta), (b, tb) = names
    batch = [c for c in out if c in ta and c in tb]
    inner = [c for c in ta if c in tb and c not in out]
    left = [c for c in ta if c not in tb]
    right = [c for c in tb if c not in ta]

    def size(labels: list[str]) -> int:
        return int(np.prod([sizes[c] for c in labels]))

    rows = _arranged(a, ta, batch + left + inner, (size(batch), size(left), size(inner)), e)
    columns = _arranged(b, tb, batch + inner + right, (size(batch), size(inner), size(right)), e)
    order = batch + left + right
    product = e.reshape(e.op("MatMul", rows, columns), [sizes[c] for c in order])
    _transposed(product, [order.index(c) for c in out], e, node.outputs[0])


def _two_by_two(node: Node, terms: list[str], out: str, e: Emitter) -> None:
    """The first two operands, with the labels that are still needed; then that with the others."""
    rest = "".join(terms[2:]) + out
    between = "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in rest))
    first = e.op("Einsum", *node.inputs[:2], equation=f"{terms[0]},{terms[1]}->{between}")
    equation = ",".join([between, *terms[2:]]) + f"->{out}"
    e.op("Einsum", first, *node.inputs[2:], equation=equation, out=node.outputs[0])


def _parse(node: Node, ranks: list[int]) -> tuple[list[str], str]:
    """Operand labels and output labels; an ellipsis gets labels of its own."""
    equation = node.attribute("equation").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    used = set(equation)
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in used]
    widths = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t]
    dots = "".join(spare[: max(widths, default=0)])
    if len(set(widths)) > 1:
        raise NotLegal("Einsum whose ellipses differ in rank")
    if not arrow:
        labels = [c for c in "".join(terms) if c != "."]
        out = ("..." if "..." in left else "") + "".join(
            sorted(c for c in set(labels) if labels.count(c) == 1)
        )
    return [t.replace("...", dots) for t in terms], out.replace("...", dots)


def _summed(name: str, position: int, terms: list[str], out: str, e: Emitter) -> tuple[str, str]:
    """Sum out the labels that only this operand has."""
    term = terms[position]
    others = "".join(t for i, t in enumerate(terms) if i != position)
    alone = [i for i, c in enumerate(term) if c not in out and c not in others]
    if alone:
        name = e.op("ReduceSum", name, e.ints(alone), keepdims=0)
    return name, "".join(c for i, c in enumerate(term) if i not in alone)


def _arranged(name: str, term: str, order: list[str], shape: tuple[int, ...], e: Emitter) -> str:
    return e.reshape(_transposed(name, [term.index(c) for c in order], e), shape)


def _transposed(name: str, perm: list[int], e: Emitter, out: str | None = None) -> str:
    """Transpose, or only a new name where the order stays."""
    if perm == sorted(perm):
        return e.op("Identity", name, out=out)
    return e.op("Transpose", name, perm=perm, out=out)
