"""A weight as a layer uses it, and as the file stores it: behind Transpose, Squeeze, DequantizeLinear, ...

Only steps that can be undone are followed, so that a new weight can be written back to where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from condensec.healing.graph import Node

Forward = Callable[[np.ndarray], np.ndarray]
_PLAIN = ("Identity", "Cast")
_ONES = ("Squeeze", "Unsqueeze", "Reshape", "Flatten")  # followed where they only add or drop axes of size 1


@dataclass(frozen=True)
class Step:
    """One operator between the stored weight and the used one.

    Attributes:
        forward: what it does.
        backward: the array that `forward` makes into the one given (rounded where that stores integers).
        axes: axis of the result -> axis of the operand; axes of size 1 that came or went aren't in it.
    """

    forward: Forward
    backward: Forward
    axes: Mapping[int, int]


@dataclass(frozen=True)
class View:
    """A stored weight and the steps to the used one.

    Attributes:
        name: of the stored constant.
        steps: in order from there.
    """

    name: str
    steps: tuple[Step, ...] = ()

    def read(self, stored: np.ndarray) -> np.ndarray:
        """The weight as it is used."""
        for step in self.steps:
            stored = step.forward(stored)
        return stored

    def write(self, used: np.ndarray) -> np.ndarray:
        """What has to be stored for it; comes nearest to it where integers are stored."""
        for step in reversed(self.steps):
            used = step.backward(used)
        return used

    def axis(self, used: int) -> int | None:
        """The stored axis that an axis of the used weight is; None if it's none of them."""
        for step in reversed(self.steps):
            if used not in step.axes:
                return None
            used = step.axes[used]
        return used


def follow(
    name: str,
    producers: Mapping[str, onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    alone: Callable[[str], bool],
) -> View | None:
    """The view of a value that is made of one constant alone, if every step can be undone.

    Args:
        name: the value.
        producers: the node that makes each value of the graph.
        weights: its constants.
        alone: whether a value has a single reader.
    """
    chain: list[Node] = []
    while name not in weights:
        if name not in producers or not alone(name):
            return None
        chain.append(Node(producers[name]))
        name = chain[-1].input(0)
    if not alone(name):
        return None
    steps: list[Step] = []
    value = weights[name]
    for node in reversed(chain):
        step = _step(node, value, weights)
        if step is None:
            return None
        steps.append(step)
        value = step.forward(value)
    return View(name, tuple(steps))


def _step(node: Node, value: np.ndarray, weights: Mapping[str, np.ndarray]) -> Step | None:
    same = {axis: axis for axis in range(value.ndim)}
    if node.op == "Identity":
        return Step(_unchanged, _unchanged, same)
    if node.op == "Transpose":
        order = list(node.attribute("perm", list(range(value.ndim))[::-1]))
        back = np.argsort(order)
        return Step(lambda a: a.transpose(order), lambda a: a.transpose(back), dict(enumerate(order)))
    if node.op in _ONES:
        return _without_ones(node, value, weights)
    if node.op == "DequantizeLinear" and not node.attribute("block_size", 0):
        return _dequantized(node, value, weights, same)
    return None


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _without_ones(node: Node, value: np.ndarray, weights: Mapping[str, np.ndarray]) -> Step | None:
    """A reshape that keeps all axes but those of size 1."""
    shape = _new_shape(node, value, weights)
    if shape is None or [d for d in shape if d > 1] != [d for d in value.shape if d > 1]:
        return None
    old = [i for i, d in enumerate(value.shape) if d > 1]
    new = [i for i, d in enumerate(shape) if d > 1]
    before = value.shape
    return Step(lambda a: a.reshape(shape), lambda a: a.reshape(before), dict(zip(new, old, strict=True)))


def _new_shape(node: Node, value: np.ndarray, weights: Mapping[str, np.ndarray]) -> tuple[int, ...] | None:
    if node.op == "Flatten":
        axis = int(node.attribute("axis", 1)) % (value.ndim + 1)
        return (int(np.prod(value.shape[:axis])), int(np.prod(value.shape[axis:])))
    given = weights.get(node.input(1))
    numbers = node.attribute("axes") if given is None else given.reshape(-1).tolist()
    if node.op == "Squeeze":
        gone = [i for i, d in enumerate(value.shape) if d == 1] if numbers is None else numbers
        gone = [int(a) % value.ndim for a in gone]
        return tuple(d for i, d in enumerate(value.shape) if i not in gone)
    if numbers is None:
        return None
    if node.op == "Unsqueeze":
        new = sorted(int(a) % (value.ndim + len(numbers)) for a in numbers)
        shape = list(value.shape)
        for axis in new:
            shape.insert(axis, 1)
        return tuple(shape)
    if node.attribute("allowzero", 0):
        return None
    kept = [value.shape[i] if d == 0 else int(d) for i, d in enumerate(numbers)]
    return value.reshape(kept).shape


def _dequantized(
    node: Node, value: np.ndarray, weights: Mapping[str, np.ndarray], same: Mapping[int, int]
) -> Step | None:
    """(q - zero point) * scale, per tensor or along one axis; back by rounding to the nearest integer."""
    scale, zero = weights.get(node.input(1)), weights.get(node.input(2), np.zeros((), np.float32))
    if scale is None or value.dtype.kind not in "iu" or (node.input(2) and node.inputs[2] not in weights):
        return None
    shape = [1] * value.ndim
    if scale.size > 1:
        shape[int(node.attribute("axis", 1)) % value.ndim] = -1
    wide = scale.astype(np.float32).reshape(shape if scale.size > 1 else ())
    centre = zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    limits, dtype = np.iinfo(value.dtype), value.dtype

    def quantized(a: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(a / wide + centre), limits.min, limits.max).astype(dtype)

    return Step(lambda q: (q.astype(np.float32) - centre) * wide, quantized, same)
