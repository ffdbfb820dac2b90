"""Convolutions: padding spelled out, transposed convolution as a convolution of spread-out data."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


def explicit_pads(node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """Pads of a convolution or pooling node, `auto_pad` worked out.

    Args:
        node: has strides, dilations, pads or auto_pad.
        size: spatial input size.
        kernel: spatial kernel size.
    """
    rank = len(size)
    strides = node.attribute("strides", [1] * rank)
    dilations = node.attribute("dilations", [1] * rank)
    mode = node.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(node.attribute("pads", [0] * 2 * rank))
    if mode == "VALID":
        return [0] * 2 * rank
    begin, end = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


@legalizes("Conv")
def conv(node: Node, e: Emitter) -> None:
    """The gradient kernel ignores `auto_pad` (its result is wrong): give the pads."""
    if node.attribute("auto_pad", "NOTSET") == "NOTSET":
        return
    shape, kernel = e.shape(node.inputs[0])[2:], e.shape(node.inputs[1])[2:]
    rest = {k: v for k, v in node.attributes().items() if k not in ("auto_pad", "pads")}
    pads = explicit_pads(node, shape, kernel)
    e.op("Conv", *node.inputs, out=node.outputs[0], pads=pads, **rest)


@legalizes("ConvTranspose")
def conv_transpose(node: Node, e: Emitter) -> None:
    """Zeros between the inputs (stride), then an ordinary convolution with the flipped, swapped kernel."""
    x, w, bias = node.inputs[0], node.inputs[1], node.input(2)
    shape, wshape, out_shape = e.shape(x), e.shape(w), e.shape(node.outputs[0])
    rank, group = len(shape) - 2, node.attribute("group", 1)
    kernel, size = wshape[2:], shape[2:]
    strides = node.attribute("strides", [1] * rank)
    dilations = node.attribute("dilations", [1] * rank)
    # Where the output starts and ends on the full grid (n-1)*s + (k-1)*d + 1 gives the crop: the pads.
    full = [
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
    ]
    begin = _crop(node, full, out_shape[2:])
    spread = _spread(x, shape, strides, e)
    low = [(k - 1) * d - b for k, d, b in zip(kernel, dilations, begin, strict=True)]
    grid = [(n - 1) * s + 1 for n, s in zip(size, strides, strict=True)]
    high = [
        o + (k - 1) * d - g - lo
        for o, k, d, g, lo in zip(out_shape[2:], kernel, dilations, grid, low, strict=True)
    ]
    if any(p < 0 for p in low + high):  # a convolution can't crop: Pad can
        spread = e.op("Pad", spread, e.ints([0, 0, *low, 0, 0, *high]))
        low = high = [0] * rank
    flipped = _flipped(w, wshape, group, e)
    inputs = [spread, flipped, *([bias] if bias else [])]
    e.op("Conv", *inputs, out=node.outputs[0], group=group, dilations=dilations, pads=[*low, *high])


def _crop(node: Node, full: list[int], out: tuple[int, ...]) -> list[int]:
    """How much of the full result's beginning the operator leaves out, per axis."""
    rank = len(full)
    mode = node.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET" and node.attribute("output_shape") is None:
        return list(node.attribute("pads", [0] * 2 * rank))[:rank]
    extra = node.attribute("output_padding", [0] * rank)
    total = [max(f + p - o, 0) for f, p, o in zip(full, extra, out, strict=True)]
    return [t - t // 2 if mode == "SAME_LOWER" else t // 2 for t in total]


def _spread(x: str, shape: tuple[int, ...], strides: list[int], e: Emitter) -> str:
    """Put stride-1 zeros between neighbours along each spatial axis."""
    current = list(shape)
    for axis, stride in enumerate(strides, start=2):
        if stride == 1:
            continue
        n = current[axis]
        column = e.reshape(x, (*current[: axis + 1], 1, *current[axis + 1 :]))
        pads = np.zeros((2, len(current) + 1), np.int64)
        pads[1, axis + 1] = stride - 1
        wide = e.op("Pad", column, e.ints(pads.reshape(-1)))
        current[axis] = n * stride
        joined = e.reshape(wide, current)
        current[axis] = (n - 1) * stride + 1
        x = e.op("Slice", joined, e.ints([0]), e.ints([current[axis]]), e.ints([axis]))
    return x


def _flipped(w: str, shape: tuple[int, ...], group: int, e: Emitter) -> str:
    """[Cin, Cout/g, k...] -> [Cout, Cin/g, k...], every kernel reversed."""
    cin, per_group, *kernel = shape
    rank = len(kernel)
    grouped = e.reshape(w, (group, cin // group, per_group, *kernel))
    swapped = e.op("Transpose", grouped, perm=[0, 2, 1, *range(3, 3 + rank)])
    flat = e.reshape(swapped, (group * per_group, cin // group, *kernel))
    for axis, k in enumerate(kernel, start=2):
        if k > 1:
            flat = e.op("Gather", flat, e.const(np.arange(k)[::-1], np.int64), axis=axis)
    return flat


@legalizes("com.microsoft.FusedConv")
def fused_conv(node: Node, e: Emitter) -> None:
    """Conv (+ a second summand) + activation, as separate nodes."""
    activation = node.attribute("activation", "")
    if activation not in ("", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"):
        raise NotLegal(f"FusedConv with activation {activation}")
    rest = {
        k: v
        for k, v in node.attributes().items()
        if k not in ("activation", "activation_params", "alpha", "beta")
    }
    y = e.op("Conv", *[n for n in node.inputs[:3] if n], **rest)
    if node.input(3):
        y = e.op("Add", y, node.inputs[3])
    parameters = node.attribute("activation_params", [])
    if activation == "Clip":
        e.op("Clip", y, e.const(parameters[0]), e.const(parameters[1]), out=node.outputs[0])
    elif activation:
        names = {"LeakyRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"]}.get(activation, [])
        e.op(activation, y, out=node.outputs[0], **dict(zip(names, parameters, strict=False)))
    else:
        e.op("Identity", y, out=node.outputs[0])
