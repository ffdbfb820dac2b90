"""What a rule sees of the graph, and how it declares ties, freezes and rewrites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.axes import Axes, Term
from condensec.passes.bodies import home
from condensec.passes.world import World

Layout = list[
    "Term | None"
]  # one entry an axis; None: an axis of the data (batch, sequence, space), never cut
Array = npt.NDArray[Any]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class Kept:
    """What stays, asked by a rewrite: sizes, indices and positions after the cut."""

    def __init__(self, axes: Axes, masks: dict[int, npt.NDArray[np.bool_]]) -> None:
        self.axes = axes
        self.masks = masks
        self.sizes = {identifier: int(mask.sum()) for identifier, mask in masks.items()}

    def indices(self, term: Term) -> npt.NDArray[np.int64]:
        """Kept indices of an axis, ascending."""
        return np.flatnonzero(self.axes.alive(term, self.masks))

    def size(self, term: Term) -> int:
        """Number of kept indices of an axis."""
        return self.axes.count(term, self.sizes)

    def position(self, term: Term, index: int) -> int:
        """Where a boundary at ``index`` moves to: the number of kept indices before it."""
        return int(self.axes.alive(term, self.masks)[:index].sum())


@dataclass(frozen=True)
class AttributeRewrite:
    """An attribute that holds sizes: ``new(kept)`` is its value after the cut."""

    node: ir.Node
    name: str
    new: Callable[[Kept], int | float | list[int]]


@dataclass(frozen=True)
class InputRewrite:
    """An input that holds sizes, positions or indices: ``new(kept, old)`` is its value after the cut.

    ``old`` is the constant as stored, or, for shape arithmetic, its value in the sample world.
    """

    node: ir.Node
    index: int
    new: Callable[[Kept, Array], Array]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one node as a product of axes and numbers.

    Attributes:
        node: the node.
        factors: terms and numbers whose product is the MAC count in the sample world.
        inputs: axis of input channels or features, where there is one.
        outputs: axis of output channels or features.
        groups: axis (or number) of convolution groups.
        kernel: positions of a convolution's kernel.
        positions: output positions of one sample (pixels, tokens).
        mask: (input, axis) where zeroing cut units has the effect of the cut, or None.
    """

    node: ir.Node
    factors: tuple[Term | int, ...]
    inputs: Term | None = None
    outputs: Term | None = None
    groups: Term | int = 1
    kernel: int = 1
    positions: int = 1
    mask: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reduction:
    """A norm, softmax, mean or contraction of two activations over an axis that may be cut."""

    node: ir.Node
    index: int
    axis: int
    term: Term
    contraction: bool = False
    fused: bool = False
    operands: tuple[int, ...] = (0, 1)


@dataclass
class Context:
    """The state rules work on. Rules declare; they never touch a weight."""

    axes: Axes
    world: World
    opset: int
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    rewrites: list[AttributeRewrite | InputRewrite] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    constants: set[ir.Value] = field(default_factory=set)
    vanishing: set[ir.Value] = field(default_factory=set)
    positions: dict[ir.Value, Term] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)  # body -> how often it runs, where that is known

    # -- reading --------------------------------------------------------------------------------

    def operand(self, node: ir.Node, index: int) -> ir.Value:
        """An input that the operator can't do without.

        Raises:
            UnknownShape: it isn't there; the node's axes are frozen then.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            raise UnknownShape(f"{node.op_type} '{node.name}' has no input {index}")
        return value

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Sizes of a value in the sample world.

        Raises:
            UnknownShape: they couldn't be found; the node's axes are frozen then.
        """
        sizes = self.world.shape(value) if value is not None else None
        if sizes is None:
            raise UnknownShape(f"the shape of '{value.name if value else '?'}' can't be worked out")
        return sizes

    def layout(self, value: ir.Value) -> Layout:
        """The layout of a value: terms for axes that may be cut, None for data axes."""
        found = self.layouts.get(value)
        if found is None:
            found = self._constant_layout(value)
            self.layouts[value] = found
        return found

    def _constant_layout(self, value: ir.Value) -> Layout:
        sizes = self.world.shape(value) or ()
        if not value.is_initializer() or value.name in self.world.derived:
            return [None] * len(sizes)
        return [self.axes.atom(size) if size > 1 else None for size in sizes]

    def constant(self, node: ir.Node, index: int) -> Array | None:
        """The array of a constant or shape-arithmetic input, or None."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.world.known(value)

    def ints(self, node: ir.Node, index: int, attribute: str) -> list[int] | None:
        """Integers that older opsets keep in an attribute and newer ones in an input."""
        if attribute in node.attributes:
            attr = node.attributes[attribute]
            return [attr.as_int()] if attr.type == ir.AttributeType.INT else list(attr.as_ints())
        array = self.constant(node, index)
        return None if array is None else [int(x) for x in np.asarray(array).reshape(-1)]

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is a weight, or computed from weights alone."""
        return value.is_initializer() or value in self.constants

    def vanishes(self, value: ir.Value) -> bool:
        """Whether a value is zero at every cut unit of the masked original; weights are."""
        return value.is_initializer() or value in self.vanishing

    def fills(self, node: ir.Node) -> bool:
        """Whether a node makes a tensor of one number, as large as it's asked to: its axes may be cut."""
        name = node.outputs[0].name or ""
        known = self.world.values.get(name)
        floating = self.world.dtypes.get(name) in _FLOATS if known is None else known.dtype.kind == "f"
        return floating and (
            node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and self._single(node))
        )

    def _single(self, node: ir.Node) -> bool:
        return volume(self.shape(node.inputs[0])) == 1

    def has(self, node: ir.Node, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(node.inputs) and node.inputs[index] is not None

    def declared(self) -> tuple[int, int, int]:
        """How much has been declared so far; see `forget`."""
        return len(self.rewrites), len(self.costs), len(self.reductions)

    # -- declaring ------------------------------------------------------------------------------

    def set(self, value: ir.Value, layout: Sequence[Term | None]) -> None:
        """Give an output its layout."""
        self.layouts[value] = list(layout)

    def same(self, a: Term | None, b: Term | None) -> bool:
        """Whether two axes are one and the same by now."""
        if a is None or b is None:
            return a is b
        return self.axes.resolve(a) == self.axes.resolve(b)

    def tie(self, a: Term | None, b: Term | None, reason: str = "tied to an axis of the data") -> None:
        """Two axes are the same. A data axis freezes the other side."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.freeze(a if b is None else b, reason)
            return
        self.axes.unify(a, b)

    def freeze(self, term: Term | None, reason: str) -> None:
        """No unit of the axis may be removed."""
        if term is not None:
            self.axes.freeze(term, reason)

    def freeze_all(self, value: ir.Value | None, reason: str) -> None:
        """Freeze every axis of a value."""
        if value is not None:
            for term in self.layout(value):
                self.freeze(term, reason)

    def freeze_but(self, value: ir.Value, axes: Sequence[int], reason: str) -> None:
        """Freeze every axis of a value but some (non-negative)."""
        for axis, term in enumerate(self.layout(value)):
            if axis not in axes:
                self.freeze(term, reason)

    def reduces(self, node: ir.Node, index: int, axis: int, part: Term | None = None) -> None:
        """The node normalizes, averages or takes a softmax over this axis of this input.

        Args:
            node: the node.
            index: which input.
            axis: which axis of it.
            part: the axis with those factors fixed that nothing is summed over (the groups of a group norm).
        """
        value = node.inputs[index]
        assert value is not None
        term = self.layout(value)[axis] if part is None else part
        if term is not None:
            self.axes.reduced(term)
            if axis == len(self.layout(value)) - 1:  # features of tokens; channels of an image come earlier
                self.axes.hint(term, "hidden")
            self.reductions.append(Reduction(node, index, axis, term))

    def contracts(self, node: ir.Node, index: int, axis: int, operands: tuple[int, ...] = (0, 1)) -> None:
        """The node sums products of its operands over this axis of this input.

        Exact where one of them is zero at cut units; else the oracle restricts the sum to kept ones.
        """
        value = node.inputs[index]
        assert value is not None
        term = self.layout(value)[axis]
        if term is not None:
            self.reductions.append(Reduction(node, index, axis, term, contraction=True, operands=operands))

    def needs_zeros(self, node: ir.Node, term: Term | None, *operands: int) -> None:
        """Inside a fused operator, where the oracle can't look, units of this axis have to vanish when cut.

        The axis is frozen unless one of the operands (the first two) is zero at cut units.
        """
        if term is not None:
            inputs = operands or (0, 1)
            self.reductions.append(Reduction(node, 0, 0, term, contraction=True, fused=True, operands=inputs))

    def attribute(self, node: ir.Node, name: str, new: Callable[[Kept], int | float | list[int]]) -> None:
        """An attribute follows the cut."""
        self.rewrites.append(AttributeRewrite(node, name, new))

    def input(self, node: ir.Node, index: int, new: Callable[[Kept, Array], Array]) -> None:
        """An input that holds sizes, positions or indices follows the cut."""
        self.rewrites.append(InputRewrite(node, index, new))

    def term(self, term: Term | None, size: int) -> Term:
        """The term, or a fixed one for a data axis of known size."""
        return term if term is not None else self.axes.fixed(size, "an axis of the data", data=True)

    def cost(
        self, node: ir.Node, factors: Sequence[Term | int | None], sizes: Sequence[int], **extra: Any
    ) -> None:
        """Declare the node's multiply-accumulates; a None factor counts with its sample size."""
        filled = tuple(s if f is None else f for f, s in zip(factors, sizes, strict=True))
        times = self.repeats.get(home(node), 1)
        self.costs.append(Cost(node, filled if times == 1 else (times, *filled), **extra))

    def forget(self, declared: tuple[int, int, int]) -> None:
        """Take back what a rule declared before it failed. Ties stay: they only ever tie more."""
        del self.rewrites[declared[0] :]
        del self.costs[declared[1] :]
        del self.reductions[declared[2] :]

    def broadcast(self, node: ir.Node, values: Sequence[ir.Value | None], output: ir.Value) -> None:
        """Elementwise with numpy broadcasting: aligned axes are the same, axes of size 1 tie nothing."""
        there = [v for v in values if v is not None]
        sizes = [self.shape(v) for v in there]
        rank = max((len(s) for s in sizes), default=0)
        result: Layout = [None] * rank
        data = [False] * rank
        for value, shape in zip(there, sizes, strict=True):
            layout = self.layout(value)
            for axis, (term, size) in enumerate(zip(layout, shape, strict=True), start=rank - len(shape)):
                if size == 1:
                    continue
                if term is None:
                    data[axis] = True
                elif result[axis] is None:
                    result[axis] = term
                else:
                    self.tie(result[axis], term)
        for axis in range(rank):
            if data[axis]:
                self.freeze(result[axis], "added to or scaled with an axis of the data")
                result[axis] = None
        self.set(output, result)


class UnknownShape(Exception):
    """A shape that couldn't be worked out; the node is frozen with this reason."""


def volume(sizes: Sequence[int]) -> int:
    """Product of sizes."""
    return prod(sizes)
