"""Fake quantization: what QuantizeLinear and DequantizeLinear do together, with a gradient for training."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


@legalizes("DequantizeLinear")
def fake_quantized(node: Node, e: Emitter) -> None:
    """``clip(round(x / s), low - z, high - z) * s``: the gradient is that of the clipping.

    The rounding here is the worker's straight-through one (`condensec.healing.worker.engine`).
    """
    index = e.graph.producers().get(node.inputs[0])
    before = None if index is None else Node(e.graph.nodes[index])
    if before is None or before.op != "QuantizeLinear":
        raise NotLegal("integers behind DequantizeLinear have no gradient")
    scale, point = _parameters(node, e), _parameters(before, e)
    if (
        scale is None
        or point is None
        or any(not np.array_equal(a, b) for a, b in zip(scale, point, strict=True))
    ):
        raise NotLegal("QuantizeLinear and DequantizeLinear have other scales")
    x = before.inputs[0]
    rank = len(e.shape(x))
    axis = int(before.attribute("axis", 1)) % max(rank, 1)
    step, zero = (
        a.reshape(()) if a.size == 1 else a.reshape([-1 if i == axis else 1 for i in range(rank)])
        for a in scale
    )
    if str(zero.dtype) not in _RANGES:
        raise NotLegal(f"quantized to {zero.dtype}")
    low, high = _RANGES[str(zero.dtype)]
    factor = e.const(step)
    steps = e.op("Div", x, factor)
    if zero.size == 1:
        bounds = [e.const(float(low) - float(zero)), e.const(float(high) - float(zero))]
        inside = e.op("Clip", steps, *bounds)
    else:
        bounds = [e.const(low - zero.astype(np.float32)), e.const(high - zero.astype(np.float32))]
        inside = e.op("Min", e.op("Max", steps, bounds[0]), bounds[1])
    e.op("Mul", e.op("Round", inside), factor, out=node.outputs[0])


def _parameters(node: Node, e: Emitter) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and zero-point, where they are constants."""
    scale, point = e.graph.constants.get(node.input(1)), e.graph.constants.get(node.input(2))
    if scale is None or scale.ndim > 1 or (node.input(2) and point is None):
        return None
    return scale.astype(np.float32), np.zeros(1, np.uint8) if point is None else point
