"""Weights in the order that blocked convolutions read them, written as operators.

Two transpositions that each move one axis run four times as fast as one that moves several.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx

from condensec.healing.gradient_graph.writing import Shape, Writer, chain, reshaped

DOMAIN = "com.microsoft.nchwc"  # of the operators that read it
Nodes = list[onnx.NodeProto]


def whole(count: int, block: int) -> int:
    """Channels filled up to whole blocks."""
    return -(-count // block) * block


def filled(name: str, shape: Shape, block: int, nodes: Nodes, writer: Writer, axes: int = 1) -> str:
    """A weight with zeros up to whole blocks along its first axes."""
    missing = [whole(n, block) - n if i < axes else 0 for i, n in enumerate(shape)]
    if not any(missing):
        return name
    return chain(nodes, writer, "Pad", name, writer.ints(*([0] * len(shape)), *missing))


def forward(
    name: str, shape: Shape, block: int, nodes: Nodes, writer: Writer, *, single: bool = False
) -> str:
    """[M, C, k, k] as [M/b, C/b, k k, b of C, b of M].

    Args:
        name: the weight.
        shape: its shape.
        block: channels a block.
        nodes: get the operators.
        writer: names and constants.
        single: C isn't in blocks ([M/b, C, k k, b of M]): depthwise, or few input channels.
    """
    outputs, inputs, *kernel = shape
    weight = filled(name, shape, block, nodes, writer, axes=1 if single else 2)
    outputs, taps = whole(outputs, block), prod(kernel)
    inputs = inputs if single else whole(inputs, block)
    rows = writer.ints(outputs // block, block, inputs * taps)
    weight = chain(nodes, writer, "Reshape", weight, rows)
    weight = chain(nodes, writer, "Transpose", weight, perm=[0, 2, 1])
    if not single:
        split = writer.ints(outputs // block, inputs // block, block, taps, block)
        weight = chain(nodes, writer, "Reshape", weight, split)
        weight = chain(nodes, writer, "Transpose", weight, perm=[0, 1, 3, 2, 4])
    return reshaped(nodes, writer, weight, outputs, inputs, *kernel)


def turned(name: str, shape: Shape, block: int, nodes: Nodes, writer: Writer) -> str:
    """The kernel turned round, inputs and outputs exchanged: [C/b, M/b, k k reversed, b of M, b of C]."""
    outputs, inputs, *kernel = shape
    weight = filled(name, shape, block, nodes, writer, axes=2)
    outputs, inputs, taps = whole(outputs, block), whole(inputs, block), prod(kernel)
    split = writer.ints(outputs, inputs // block, block, taps)
    weight = chain(nodes, writer, "Reshape", weight, split)
    weight = chain(nodes, writer, "Transpose", weight, perm=[0, 1, 3, 2])
    split = writer.ints(outputs // block, block, inputs // block, taps, block)
    weight = chain(nodes, writer, "Reshape", weight, split)
    weight = chain(nodes, writer, "Transpose", weight, perm=[2, 0, 3, 1, 4])
    weight = _reversed(weight, taps, 2, nodes, writer)
    return reshaped(nodes, writer, weight, inputs, outputs, *kernel)


def turned_depthwise(name: str, shape: Shape, block: int, nodes: Nodes, writer: Writer) -> str:
    """The kernels of a depthwise convolution turned round: [C/b, k k reversed, b]."""
    channels, _, *kernel = shape
    weight = filled(name, shape, block, nodes, writer)
    channels, taps = whole(channels, block), prod(kernel)
    weight = reshaped(nodes, writer, weight, channels // block, block, taps)
    weight = chain(nodes, writer, "Transpose", weight, perm=[0, 2, 1])
    weight = _reversed(weight, taps, 1, nodes, writer)
    return reshaped(nodes, writer, weight, channels, 1, *kernel)


def _reversed(name: str, taps: int, axis: int, nodes: Nodes, writer: Writer) -> str:
    if taps == 1:
        return name
    back = writer.const(np.arange(taps)[::-1], np.int64)
    return chain(nodes, writer, "Gather", name, back, axis=axis)
