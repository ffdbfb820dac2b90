"""Normalizations: in inference mode they are a few means, products and one reciprocal square root."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


def _per_channel(name: str, rank: int, e: Emitter) -> str:
    """A vector of C as [C, 1, ...], to go with data of [N, C, ...]."""
    return e.reshape(name, (e.shape(name)[0], *([1] * (rank - 2)))) if rank > 2 else name


def normalized(x: str, axes: list[int], epsilon: float, e: Emitter, *, center: bool = True) -> str:
    """(x - mean) / sqrt(var + epsilon) over axes; without the mean if not `center`."""
    where = e.ints(axes)
    if center:
        x = e.op("Sub", x, e.op("ReduceMean", x, where, keepdims=1))
    variance = e.op("ReduceMean", e.op("Mul", x, x), where, keepdims=1)
    return e.op("Div", x, e.op("Sqrt", e.op("Add", variance, e.const(epsilon))))


@legalizes("BatchNormalization")
def batch_norm(node: Node, e: Emitter) -> None:
    """Gives x (scale / sqrt(var + eps)) + (bias - mean scale / sqrt(var + eps)), the statistics constant.

    Batch normalizations right after a convolution are folded into its weights before (see `fold`).
    """
    x, scale, bias, mean, var = node.inputs[:5]
    if node.attribute("training_mode", 0):
        raise NotLegal("BatchNormalization in training mode")
    rank = len(e.shape(x))
    factor = e.op("Mul", scale, inverse_deviation(var, node.attribute("epsilon", 1e-5), e))
    shift = e.op("Sub", bias, e.op("Mul", mean, factor))
    scaled = e.op("Mul", x, e.op("Reshape", factor, e.ints(_column(rank))))
    e.op("Add", scaled, e.op("Reshape", shift, e.ints(_column(rank))), out=node.outputs[0])


def _column(rank: int) -> list[int]:
    return [-1] + [1] * max(rank - 2, 0)


def inverse_deviation(variance: str, epsilon: float, e: Emitter) -> str:
    """1 / sqrt(var + epsilon), computed here where the variance is a constant."""
    value = e.graph.constants.get(variance)
    if value is not None:
        return e.const(1.0 / np.sqrt(value.astype(np.float64) + epsilon))
    return e.op("Reciprocal", e.op("Sqrt", e.op("Add", variance, e.const(epsilon))))


@legalizes("InstanceNormalization")
def instance_norm(node: Node, e: Emitter) -> None:
    """Normalized over the spatial axes of each sample and channel."""
    x, scale, bias = node.inputs
    rank = len(e.shape(x))
    unit = normalized(x, list(range(2, rank)), node.attribute("epsilon", 1e-5), e)
    scaled = e.op("Mul", unit, _per_channel(scale, rank, e))
    e.op("Add", scaled, _per_channel(bias, rank, e), out=node.outputs[0])


@legalizes("GroupNormalization")
def group_norm(node: Node, e: Emitter) -> None:
    """Normalized over each group's channels and positions; scale per channel (21) or per group (18)."""
    x, scale, bias = node.inputs
    shape, groups = e.shape(x), node.attribute("num_groups")
    grouped = e.reshape(x, (shape[0], groups, -1))
    unit = normalized(grouped, [2], node.attribute("epsilon", 1e-5), e)
    rank = len(shape)
    if e.shape(scale)[0] == shape[1]:
        unit = e.reshape(unit, shape)
        scaled = e.op("Mul", unit, _per_channel(scale, rank, e))
        e.op("Add", scaled, _per_channel(bias, rank, e), out=node.outputs[0])
    else:
        scaled = e.op("Add", e.op("Mul", unit, _per_channel(scale, 3, e)), _per_channel(bias, 3, e))
        e.reshape(scaled, shape, out=node.outputs[0])


@legalizes("LayerNormalization")
def layer_norm(node: Node, e: Emitter) -> None:
    """The gradient reads the bias and the two optional outputs: name them."""
    x, scale = node.inputs[:2]
    if len(node.outputs) == 3 and node.input(2):
        return
    bias = node.input(2) or e.const(np.zeros(e.shape(scale)))
    extra = [name or e.graph.fresh("stat") for name in (*node.outputs[1:], "", "")[:2]]
    e.multi("LayerNormalization", [x, scale, bias], [node.outputs[0], *extra], **node.attributes())


@legalizes("SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def rms_norm(node: Node, e: Emitter) -> None:
    """Gives x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019)."""
    x, scale = node.inputs[:2]
    rank = len(e.shape(x))
    axes = list(range(node.attribute("axis", -1) % rank, rank))
    unit = normalized(x, axes, node.attribute("epsilon", 1e-5), e, center=False)
    e.op("Mul", unit, scale, out=node.outputs[0])


@legalizes("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_layer_norm(node: Node, e: Emitter) -> None:
    """Normalization of x + skip (+ bias); the sum is the fourth output."""
    simplified = node.op.endswith("SkipSimplifiedLayerNormalization")
    x, skip, gamma = node.inputs[:3]
    beta, bias = ("", node.input(3)) if simplified else (node.input(3), node.input(4))
    total = e.op("Add", x, skip)
    if bias:
        total = e.op("Add", total, bias)
    if len(node.outputs) > 3 and node.outputs[3]:
        e.op("Identity", total, out=node.outputs[3])
    axis, epsilon = len(e.shape(x)) - 1, node.attribute("epsilon", 1e-12)
    unit = normalized(total, [axis], epsilon, e, center=not simplified)
    scaled = e.op("Mul", unit, gamma, out=None if beta else node.outputs[0])
    if beta:
        e.op("Add", scaled, beta, out=node.outputs[0])


@legalizes("MeanVarianceNormalization")
def mean_variance_norm(node: Node, e: Emitter) -> None:
    """(x - mean) / (deviation + 1e-9), as the operator's function body has it."""
    x, where = node.inputs[0], e.ints(node.attribute("axes", [0, 2, 3]))
    centered = e.op("Sub", x, e.op("ReduceMean", x, where, keepdims=1))
    deviation = e.op("Sqrt", e.op("ReduceMean", e.op("Mul", centered, centered), where, keepdims=1))
    e.op("Div", centered, e.op("Add", deviation, e.const(1e-9)), out=node.outputs[0])


@legalizes("LpNormalization")
def lp_norm(node: Node, e: Emitter) -> None:
    """Gives x / ||x||_p along one axis."""
    x, where = node.inputs[0], e.ints([node.attribute("axis", -1)])
    if node.attribute("p", 2) == 1:
        norm = e.op("ReduceSum", e.op("Abs", x), where, keepdims=1)
    else:
        norm = e.op("Sqrt", e.op("ReduceSum", e.op("Mul", x, x), where, keepdims=1))
    e.op("Div", x, norm, out=node.outputs[0])


@legalizes("LRN")
def local_response_norm(node: Node, e: Emitter) -> None:
    """Gives x / (bias + alpha/size * sum of squares over neighbouring channels)^beta (Krizhevsky 2012)."""
    x, shape = node.inputs[0], e.shape(node.inputs[0])
    size, channels = node.attribute("size"), shape[1]
    low, high = (size - 1) // 2, size // 2
    index = np.arange(channels)
    offset = index[None, :] - index[:, None]  # [out, in]: out sums in from out-low to out+high
    window = ((offset >= -low) & (offset <= high)).astype(np.float32)
    flat = e.reshape(e.op("Mul", x, x), (shape[0], channels, -1))
    sums = e.reshape(e.op("MatMul", e.const(window), flat), shape)
    scale = e.const(node.attribute("alpha", 1e-4) / size)
    base = e.op("Add", e.op("Mul", sums, scale), e.const(node.attribute("bias", 1.0)))
    # base^-beta = exp(-beta log base): base is at least `bias`, which is positive
    power = e.op("Exp", e.op("Mul", e.op("Log", base), e.const(-node.attribute("beta", 0.75))))
    e.op("Mul", x, power, out=node.outputs[0])
