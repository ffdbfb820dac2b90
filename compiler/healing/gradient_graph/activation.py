"""Gradients of activations, in operators that run vectorized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from condensec.healing.gradient_graph.writing import Writer, chain

_FAR = 1e18  # bounds beyond: the product of two distances could overflow
_HUGE = np.finfo(np.float32).max


def relu_gradient(node: onnx.NodeProto, writer: Writer) -> list[onnx.NodeProto]:
    """The output's gradient times Clip(y * 3.4e38, 0, 1), y the activation's own output.

    `ReluGrad` selects element by element, and which way is a coin toss to the processor: nine to fourteen
    times as slow. The factor is 0 for y = 0 and 1 for every normal y > 0 (all from 3e-39 up).
    """
    found: list[onnx.NodeProto] = []
    gradient, y = node.input
    large = chain(found, writer, "Mul", y, writer.const(_HUGE))
    mask = chain(found, writer, "Clip", large, writer.const(0), writer.const(1))
    chain(found, writer, "Mul", gradient, mask, out=node.output[0])
    if y in writer.shapes:
        writer.shapes |= dict.fromkeys((large, mask, node.output[0]), writer.shapes[y])
    return found


def clip_masks(nodes: Sequence[onnx.NodeProto], writer: Writer) -> tuple[list[onnx.NodeProto], int]:
    """Where a `Clip` passes its gradient, from its output y: Clip((high - y) (y - low) 3.4e38, 0, 1).

    The builder compares the input with both bounds. From the output, the input needs not be kept, and the
    activation can run within the operator before; and floats stay in blocks of channels where there are
    any. On a bound itself, where the gradient isn't defined, this gives 0 and the builder 1.

    Returns:
        The nodes, and how many masks were replaced. What made the old ones is left to be dropped.
    """
    producers = {name: node for node in nodes for name in node.output}
    clipped = {tuple(n.input): n.output[0] for n in nodes if n.op_type == "Clip" and len(n.input) == 3}
    found: list[onnx.NodeProto] = []
    count = 0
    for node in nodes:
        bounds = _bounds(node, producers)
        y = clipped.get(bounds) if bounds else None
        if (
            bounds is None
            or y is None
            or not all(abs(writer.scalars.get(b, np.inf)) < _FAR for b in bounds[1:])
        ):
            found.append(node)
            continue
        _, low, high = bounds
        above = y if writer.scalars[low] == 0 else chain(found, writer, "Sub", y, low)
        below = chain(found, writer, "Sub", high, y)
        inside = chain(found, writer, "Mul", above, below)
        large = chain(found, writer, "Mul", inside, writer.const(_HUGE))
        chain(found, writer, "Clip", large, writer.const(0), writer.const(1), out=node.output[0])
        if y in writer.shapes:
            made = (above, below, inside, large, node.output[0])
            writer.shapes |= dict.fromkeys(made, writer.shapes[y])
        count += 1
    return found, count


def _bounds(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> tuple[str, str, str] | None:
    """(input, low, high) of the Clip whose mask a node casts to float; None if it is something else."""
    both = producers.get(node.input[0]) if node.op_type == "Cast" else None
    if both is None or both.op_type != "And":
        return None
    sides = {p.op_type: p for name in both.input if (p := producers.get(name)) is not None}
    if sorted(sides) != ["GreaterOrEqual", "LessOrEqual"]:
        return None
    low, high = sides["GreaterOrEqual"], sides["LessOrEqual"]
    return None if low.input[0] != high.input[0] else (low.input[0], low.input[1], high.input[1])
