"""Gradients of Gelu: y = x f / 2 with f = 1 + erf(x / sqrt(2)), as one factor of the output's gradient.

The builder differentiates operator by operator, and passes the output's gradient along both ways through the
product. Its values are the largest of a transformer, and every operator less is one less way through memory:

    dx = t (f + x E),   E = sqrt(2 / pi) exp(-x^2 / 2),   t = dy / 2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import pi, sqrt

import onnx

from condensec.healing.gradient_graph.writing import Writer, chain


def gelu_gradient(node: onnx.NodeProto, writer: Writer) -> list[onnx.NodeProto]:
    """The formula in place of `GeluGrad`, which takes half as long again.

    The builder writes it for the approximation by tanh, too, and it gives the exact one's gradient there.
    """
    found: list[onnx.NodeProto] = []
    gradient, x = node.input
    half = chain(found, writer, "Mul", gradient, writer.const(0.5))
    inner = chain(found, writer, "Mul", x, writer.const(sqrt(0.5)))
    f = chain(found, writer, "Add", chain(found, writer, "Erf", inner), writer.const(1))
    _factor(found, writer, (half, f, x), (0.5, sqrt(2 / pi)), node.output[0])
    return found


def erf_products(nodes: Sequence[onnx.NodeProto], writer: Writer) -> tuple[list[onnx.NodeProto], int]:
    """Gradients of x (1 + erf(x / r)), for any r: t f + t x c exp(-(x / r)^2) / r as t (f + x E).

    Returns:
        The nodes, and how many were replaced. What made the old ones is left to be dropped.
    """
    reader = _Reader(nodes, writer)
    found: list[onnx.NodeProto] = []
    count = 0
    for node in nodes:
        match = reader.match(node)
        if match is None:
            found.append(node)
            continue
        factors, constants = match
        _factor(found, writer, factors, constants, node.output[0])
        count += 1
    return found, count


def _factor(
    found: list[onnx.NodeProto],
    writer: Writer,
    factors: tuple[str, str, str],
    constants: tuple[float, float],
    name: str,
) -> None:
    """T (f + x c exp(-s x^2)), of (t, f, x) and (s, c)."""
    (t, f, x), (steep, scale) = factors, constants
    square = chain(found, writer, "Mul", x, x)
    bell = chain(found, writer, "Exp", chain(found, writer, "Mul", square, writer.const(-steep)))
    bell = chain(found, writer, "Mul", bell, writer.const(scale))
    slope = chain(found, writer, "Add", f, chain(found, writer, "Mul", x, bell))
    chain(found, writer, "Mul", t, slope, out=name)


class _Reader:
    """Finds the builder's operators again, from the last one back."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], writer: Writer) -> None:
        self._producers = {name: node for node in nodes for name in node.output}
        self._scalars = writer.scalars

    def match(self, node: onnx.NodeProto) -> tuple[tuple[str, str, str], tuple[float, float]] | None:
        """((t, f, x), (1 / r^2, c / r)) of the sum of both gradients; None if it is something else."""
        if node.op_type != "Sum" or len(node.input) != 2:
            return None
        for plain, through in (node.input, reversed(node.input)):
            for scaled, ratio in self._scaled(through):  # by 1 / r
                for bell, given in self._factors(scaled):
                    inner = self._bell(bell)
                    if inner is None:
                        continue
                    (a, scale) = inner
                    for x, share in self._scaled(a):
                        for t, other in self._factors(given):
                            if other != x or share != ratio:
                                continue
                            f = next((f for s, f in self._factors(plain) if s == t), None)
                            if f is not None:
                                return (t, f, x), (share * share, scale * ratio)
        return None

    def _bell(self, name: str) -> tuple[str, float] | None:
        """(a, c) of c exp(-a^2)."""
        for value, scale in self._scaled(name):
            negative = self._argument(value, "Exp")
            square = self._argument(negative, "Neg") if negative else None
            a = next((a for a, b in self._factors(square) if a == b), None) if square else None
            if a is not None:
                return a, scale
        return None

    def _argument(self, name: str, kind: str) -> str | None:
        node = self._maker(name)
        return self._named(node.input[0]) if node is not None and node.op_type == kind else None

    def _factors(self, name: str) -> Iterator[tuple[str, str]]:
        """Both orders of the factors of a product."""
        node = self._maker(name)
        if node is not None and node.op_type == "Mul":
            a, b = (self._named(i) for i in node.input)
            yield from ((a, b), (b, a))

    def _scaled(self, name: str) -> Iterator[tuple[str, float]]:
        """(value, number) it is the product of."""
        node = self._maker(name)
        if node is not None and node.op_type == "Div" and node.input[1] in self._scalars:
            yield self._named(node.input[0]), 1 / self._scalars[node.input[1]]
        for value, number in self._factors(name):
            if number in self._scalars:
                yield value, self._scalars[number]

    def _maker(self, name: str) -> onnx.NodeProto | None:
        return self._producers.get(self._named(name))

    def _named(self, name: str) -> str:
        """Through the builder's many `Identity`."""
        while (node := self._producers.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return name
