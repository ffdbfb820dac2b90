"""Rows of a layer's regression problem: patches of its input beside what should come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from condensec.healing.layers import Layer
from condensec.healing.legalize.conv import explicit_pads

_FLOPS = 2.5e9  # multiply-adds of the normal equations of one layer: about a tenth of a second
_BYTES = 1 << 28  # of the rows of one layer


@dataclass(frozen=True)
class Shape:
    """A layer's weight as a matrix.

    Attributes:
        groups: independent problems (of a grouped or depthwise convolution).
        features: inputs of each.
        outputs: of each.
    """

    groups: int
    features: int
    outputs: int


def shape_of(layer: Layer, weight: np.ndarray) -> Shape:
    """The regression problem of a layer."""
    if layer.node.op == "Conv":
        groups = int(layer.node.attribute("group", 1))
        return Shape(groups, int(np.prod(weight.shape[1:])), weight.shape[0] // groups)
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    outputs, features = weight.shape if turned else weight.shape[::-1]
    return Shape(1, features, outputs)


def as_matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Weight as [groups, features, outputs]."""
    s = shape_of(layer, weight)
    if layer.node.op == "Conv":
        return np.ascontiguousarray(weight.reshape(s.groups, s.outputs, s.features).transpose(0, 2, 1))
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    return (weight.T if turned else weight)[None]


def from_matrix(layer: Layer, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The weight that `as_matrix` would turn into this."""
    if layer.node.op == "Conv":
        return np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(like.shape), np.float32)
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    return np.ascontiguousarray(matrix[0].T if turned else matrix[0], np.float32)


def wanted_rows(shape: Shape) -> int:
    """How many rows to take: well above the number of features, within time and memory."""
    width = shape.features * shape.groups
    by_time = _FLOPS / (shape.features * width)
    by_size = _BYTES / 4 / width
    return int(min(max(by_time, 8 * shape.features), by_size, 30_000))


def picks(layer: Layer, y: list[np.ndarray], rows: int, seed: int) -> list[np.ndarray]:
    """Which output positions to look at: per batch, flat indices over (sample, position)."""
    rng = np.random.default_rng(seed)
    sizes = [_positions(layer, array) for array in y]
    total = sum(sizes)
    share = min(1.0, rows / max(total, 1))
    chosen = []
    for size in sizes:
        count = max(1, round(share * size))
        flat = np.arange(size) if count >= size else rng.choice(size, count, replace=False)
        chosen.append(np.sort(flat))
    return chosen


def _positions(layer: Layer, y: np.ndarray) -> int:
    channels = y.shape[layer.axis]
    return int(y.size // channels)


def channels_last(layer: Layer, array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[rows, channels] of a layer's output at some positions."""
    if layer.axis == -1:
        flat: np.ndarray = array.reshape(-1, array.shape[-1])[index]
        return flat
    moved = np.moveaxis(array, 1, -1)
    taken: np.ndarray = moved[np.unravel_index(index, moved.shape[:-1])]
    return taken


def patches(
    layer: Layer, x: np.ndarray, out: tuple[int, ...], kernel: tuple[int, ...], index: np.ndarray
) -> np.ndarray:
    """[rows, channels * kernel] of a layer's input at some output positions.

    Args:
        layer: Conv (any rank), Gemm or MatMul.
        x: input batch.
        out: shape of the output batch.
        kernel: spatial kernel size; () for Gemm and MatMul.
        index: flat indices over (sample, position).
    """
    if layer.node.op != "Conv":
        flat: np.ndarray = x.reshape(-1, x.shape[-1])[index]
        return flat
    rank = len(kernel)
    strides = layer.node.attribute("strides", [1] * rank)
    dilations = layer.node.attribute("dilations", [1] * rank)
    pads = explicit_pads(layer.node, x.shape[2:], kernel)
    if any(pads):
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    sample, *where = np.unravel_index(index, (out[0], *out[2:]))
    at = tuple(p * s for p, s in zip(where, strides, strict=True))
    holes = tuple(slice(None, None, d) for d in dilations)
    taken = windows[(sample, slice(None), *at)]  # [rows, channels, spans...]
    return np.ascontiguousarray(taken[(slice(None), slice(None), *holes)].reshape(len(index), -1))
