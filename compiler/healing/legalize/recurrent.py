"""LSTM, GRU and RNN, unrolled: one set of nodes for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes

MOST_STEPS = 128  # a longer sequence makes a graph that takes longer to build than to train
_KNOWN = ("Sigmoid", "Tanh", "Relu")
State = tuple[str, ...]
Cell = Callable[[str, State, "Layer"], State]


@dataclass(frozen=True)
class Layer:
    """One direction.

    Attributes:
        e: emitter.
        node: the node.
        gates: how many.
        hidden: units.
        batch: samples.
        recurrent: [hidden, gates * hidden], the recurrent weights transposed.
        bias: [gates * hidden] recurrent bias; "" where it's part of the input's.
        peephole: [3, hidden]; "" without one.
        activations: names, in the operator's order.
    """

    e: Emitter
    node: Node
    gates: int
    hidden: int
    batch: int
    recurrent: str
    bias: str
    peephole: str
    activations: tuple[str, ...]

    def parts(self, gates: str, count: int) -> list[str]:
        """[batch, count * hidden] split into its gates."""
        names = [self.e.graph.fresh("gate") for _ in range(count)]
        self.e.multi("Split", [gates, self.e.ints([self.hidden] * count)], names, axis=1)
        return names

    def act(self, which: int, x: str) -> str:
        """One of the activations."""
        return self.e.op(self.activations[which], x)


def _lstm(x: str, state: State, layer: Layer) -> State:
    """Hochreiter & Schmidhuber 1997 with forget gate and peepholes, gates in the order i o f c."""
    e, (h, c) = layer.e, state
    i, o, f, g = layer.parts(e.op("Add", x, e.op("MatMul", h, layer.recurrent)), 4)
    if layer.peephole:
        names = [e.graph.fresh("peephole") for _ in range(3)]
        e.multi("Split", [layer.peephole, e.ints([layer.hidden] * 3)], names, axis=0)
        i = e.op("Add", i, e.op("Mul", names[0], c))
        f = e.op("Add", f, e.op("Mul", names[2], c))
    kept, new = e.op("Mul", layer.act(0, f), c), e.op("Mul", layer.act(0, i), layer.act(1, g))
    c = e.op("Add", kept, new)
    if layer.peephole:
        o = e.op("Add", o, e.op("Mul", names[1], c))
    return e.op("Mul", layer.act(0, o), layer.act(2, c)), c


def _gru(x: str, state: State, layer: Layer) -> State:
    """Cho et al. 2014, gates in the order z r h."""
    e, h, n = layer.e, state[0], layer.hidden
    xz, xr, xh = layer.parts(x, 3)
    names = [e.graph.fresh("recurrent") for _ in range(3)]
    e.multi("Split", [layer.recurrent, e.ints([n] * 3)], names, axis=1)
    bz, br, bh = (e.graph.fresh("bias") for _ in range(3))
    e.multi("Split", [layer.bias, e.ints([n] * 3)], [bz, br, bh], axis=0)
    z = layer.act(0, e.op("Add", e.op("Add", xz, e.op("MatMul", h, names[0])), bz))
    r = layer.act(0, e.op("Add", e.op("Add", xr, e.op("MatMul", h, names[1])), br))
    if layer.node.attribute("linear_before_reset", 0):
        inner = e.op("Mul", r, e.op("Add", e.op("MatMul", h, names[2]), bh))
    else:
        inner = e.op("Add", e.op("MatMul", e.op("Mul", r, h), names[2]), bh)
    candidate = layer.act(1, e.op("Add", xh, inner))
    return (e.op("Add", candidate, e.op("Mul", z, e.op("Sub", h, candidate))),)


def _rnn(x: str, state: State, layer: Layer) -> State:
    """Elman 1990."""
    e = layer.e
    return (layer.act(0, e.op("Add", x, e.op("MatMul", state[0], layer.recurrent))),)


_CELLS: dict[str, tuple[int, Cell, tuple[str, ...]]] = {
    "LSTM": (4, _lstm, ("Sigmoid", "Tanh", "Tanh")),
    "GRU": (3, _gru, ("Sigmoid", "Tanh")),
    "RNN": (1, _rnn, ("Tanh",)),
}


@legalizes("LSTM", "GRU", "RNN")
def recurrent(node: Node, e: Emitter) -> None:
    """The input's products for all steps at once, then step by step; the other direction from the end."""
    x = node.inputs[0]
    by_sample = bool(node.attribute("layout", 0))
    shape = e.shape(x)
    steps, batch = (shape[1], shape[0]) if by_sample else shape[:2]
    _check(node, steps, batch, e)
    hidden = e.shape(node.inputs[2])[2]
    if by_sample:
        x = e.op("Transpose", x, perm=[1, 0, 2])
    flat = e.reshape(x, (steps * batch, shape[2]))
    directions = e.shape(node.inputs[1])[0]
    done = [_direction(node, e, d, flat, (steps, batch, hidden)) for d in range(directions)]
    _join(node, e, done, (steps, batch, hidden))


def _check(node: Node, steps: int, batch: int, e: Emitter) -> None:
    """Raises NotLegal for what isn't unrolled."""
    if steps > MOST_STEPS:
        raise NotLegal(f"{node.op} over {steps} steps, more than {MOST_STEPS}")
    lengths = node.input(4)
    if lengths:
        value = e.graph.constants.get(lengths)
        if value is None or not np.all(value == steps):
            raise NotLegal(f"{node.op} with sequences of different lengths")
    if node.attribute("clip") is not None or node.attribute("input_forget", 0):
        raise NotLegal(f"{node.op} with clip or input_forget")
    odd = [a for a in node.attribute("activations", []) if _text(a) not in _KNOWN]
    if odd:
        raise NotLegal(f"{node.op} with activation {_text(odd[0])}")


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _direction(
    node: Node, e: Emitter, d: int, flat: str, sizes: tuple[int, int, int]
) -> tuple[list[str], State]:
    """(output of each step in order of time, last state) of one direction."""
    steps, batch, hidden = sizes
    gates, cell, usual = _CELLS[node.op]
    width = gates * hidden
    weight = _own(node.inputs[1], d, (width, -1), e)
    matrix = _own(node.inputs[2], d, (width, hidden), e)
    products = e.op("MatMul", flat, e.op("Transpose", weight, perm=[1, 0]))
    bias = ""
    if node.input(3):
        both = [e.graph.fresh("bias"), e.graph.fresh("bias")]
        e.multi("Split", [_own(node.inputs[3], d, (2 * width,), e), e.ints([width, width])], both, axis=0)
        bias = both[1]
        products = e.op("Add", products, both[0] if node.op == "GRU" else e.op("Add", *both))
    elif node.op == "GRU":
        bias = e.const(np.zeros(width))
    names = [_text(a) for a in node.attribute("activations", [])] or list(usual) * 2
    layer = Layer(
        e, node, gates, hidden, batch, e.op("Transpose", matrix, perm=[1, 0]), bias,
        _own(node.inputs[7], d, (3 * hidden,), e) if node.input(7) else "",
        tuple(names[d * len(usual) : (d + 1) * len(usual)]),
    )  # fmt: skip
    inputs = [e.graph.fresh("step") for _ in range(steps)]
    if steps == 1:
        inputs = [products]
    else:
        e.multi("Split", [products, e.ints([batch] * steps)], inputs, axis=0)
    backward = node.attribute("direction", "forward") == "reverse" or d == 1
    state = _start(node, e, d, (batch, hidden))
    outputs = []
    for x in reversed(inputs) if backward else inputs:
        state = cell(x, state, layer)
        outputs.append(state[0])
    return outputs[::-1] if backward else outputs, state


def _own(name: str, d: int, shape: tuple[int, ...], e: Emitter) -> str:
    """One direction's part of a parameter."""
    if e.shape(name)[0] > 1:
        name = e.op("Slice", name, e.ints([d]), e.ints([d + 1]), e.ints([0]))
    return e.reshape(name, shape)


def _start(node: Node, e: Emitter, d: int, shape: tuple[int, int]) -> State:
    """The first state of a direction."""
    found = []
    for position in (5, 6)[: 2 if node.op == "LSTM" else 1]:
        name = node.input(position)
        if not name:
            found.append(e.const(np.zeros(shape)))
            continue
        if node.attribute("layout", 0):
            name = e.op("Transpose", name, perm=[1, 0, 2])
            part = e.op("Slice", name, e.ints([d]), e.ints([d + 1]), e.ints([0]))
            found.append(e.reshape(part, shape))
        else:
            found.append(_own(name, d, shape, e))
    return tuple(found)


def _join(node: Node, e: Emitter, done: list[tuple[list[str], State]], sizes: tuple[int, int, int]) -> None:
    """Outputs in the operator's layout: [steps, directions, batch, hidden], or the batch first."""
    steps, batch, hidden = sizes
    by_sample = bool(node.attribute("layout", 0))
    if node.outputs[0]:
        rows = [e.reshape(h, (1, 1, batch, hidden)) for t in range(steps) for h in (d[0][t] for d in done)]
        flat = e.op("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]
        y = e.reshape(flat, (steps, len(done), batch, hidden), out=None if by_sample else node.outputs[0])
        if by_sample:
            e.op("Transpose", y, perm=[2, 0, 1, 3], out=node.outputs[0])
    for i, name in enumerate(node.outputs[1:]):
        if not name:
            continue
        last = [e.reshape(d[1][i], (1, batch, hidden)) for d in done]
        joined = e.op("Concat", *last, axis=0) if len(last) > 1 else last[0]
        if by_sample:
            e.op("Transpose", joined, perm=[1, 0, 2], out=name)
        else:
            e.op("Identity", joined, out=name)
