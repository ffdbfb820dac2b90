"""Rotary position embedding: pairs of features turned by an angle that grows with the position."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


def rotated(x: str, cos: str, sin: str, heads: int, dim: int, interleaved: bool, e: Emitter) -> str:
    """Turn [batch, heads, length, dim] (Su et al. 2021).

    Args:
        x: the value.
        cos: [batch or 1, 1, length, turned / 2]; features beyond `turned` stay as they are.
        sin: the same.
        heads: of x.
        dim: of a head.
        interleaved: pairs are neighbours; otherwise a feature's partner is half of the turned width on.
        e: emitter.
    """
    turned = 2 * _width(cos, e)
    body, rest = x, ""
    if turned < dim:
        body, rest = e.graph.fresh("turned"), e.graph.fresh("rest")
        e.multi("Split", [x, e.ints([turned, dim - turned])], [body, rest], axis=3)
    first, second = e.graph.fresh("first"), e.graph.fresh("second")
    if interleaved:
        pairs = e.op("Reshape", body, e.ints([0, 0, 0, turned // 2, 2]))
        columns = [e.graph.fresh("even"), e.graph.fresh("odd")]
        e.multi("Split", [pairs, e.ints([1, 1])], columns, axis=4)
        first, second = (e.op("Squeeze", c, e.ints([4])) for c in columns)
    else:
        e.multi("Split", [body, e.ints([turned // 2] * 2)], [first, second], axis=3)
    real = e.op("Sub", e.op("Mul", first, cos), e.op("Mul", second, sin))
    imaginary = e.op("Add", e.op("Mul", first, sin), e.op("Mul", second, cos))
    if interleaved:
        columns = [e.op("Unsqueeze", part, e.ints([4])) for part in (real, imaginary)]
        joined = e.op("Reshape", e.op("Concat", *columns, axis=4), e.ints([0, 0, 0, turned]))
    else:
        joined = e.op("Concat", real, imaginary, axis=3)
    return e.op("Concat", joined, rest, axis=3) if rest else joined


def _width(name: str, e: Emitter) -> int:
    """Last size of a value, of one just emitted too (its last Reshape says it)."""
    shape = e.graph.shape(name)
    if shape is not None:
        return shape[-1]
    proto = next(node for node in reversed(e.nodes) if name in node.output)
    return int(e.graph.constants[proto.input[1]][-1])


@legalizes("com.microsoft.RotaryEmbedding")
def microsoft_rotary(node: Node, e: Emitter) -> None:
    """[batch, length, hidden] or [batch, heads, length, dim]; positions are given, or an offset is."""
    if node.attribute("is_packed_batching", 0):
        raise NotLegal("RotaryEmbedding of packed batches")
    x, positions, cos, sin = node.inputs[:4]
    shape = e.shape(x)
    half = e.shape(cos)[1]
    if len(shape) == 4:
        batch, heads, length, dim = shape
    else:
        batch, length, hidden = shape
        heads = int(node.attribute("num_heads", 0)) or hidden // (2 * half)
        dim = hidden // heads
        x = e.op("Transpose", e.reshape(x, (batch, length, heads, dim)), perm=[0, 2, 1, 3])
    if e.shape(positions) == (batch, length):
        index = positions
    else:
        steps = e.const(np.arange(length), np.int64)
        index = e.reshape(e.op("Add", steps, positions), (1, length))
    rows = 1 if index != positions else batch
    tables = [e.reshape(e.op("Gather", t, index, axis=0), (rows, 1, length, half)) for t in (cos, sin)]
    interleaved = bool(node.attribute("interleaved", 0))
    y = rotated(x, tables[0], tables[1], heads, dim, interleaved, e)
    if len(shape) == 4:
        e.op("Identity", y, out=node.outputs[0])
    else:
        e.reshape(e.op("Transpose", y, perm=[0, 2, 1, 3]), shape, out=node.outputs[0])
