"""Rows of a layer's regression problem: patches of its input beside what should come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from condensec.healing.layers import Layer
from condensec.healing.legalize.conv import explicit_pads

_FLOPS = 2.5e9  # multiply-adds of the normal equations of one layer: about a tenth of a second
_BYTES = 1 << 28  # of the rows of one layer
MOST_ROWS = 30_000  # of one layer


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
    if layer.node.op == "ConvTranspose":
        return Shape(1, weight.shape[0] * int(np.prod(weight.shape[2:])), weight.shape[1])
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    outputs, features = weight.shape if turned else weight.shape[::-1]
    return Shape(1, features, outputs)


def as_matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Weight as [groups, features, outputs]."""
    s = shape_of(layer, weight)
    if layer.node.op == "Conv":
        return np.ascontiguousarray(weight.reshape(s.groups, s.outputs, s.features).transpose(0, 2, 1))
    if layer.node.op == "ConvTranspose":
        return np.ascontiguousarray(np.moveaxis(weight, 1, -1).reshape(1, s.features, s.outputs))
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    return (weight.T if turned else weight)[None]


def from_matrix(layer: Layer, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The weight that `as_matrix` would turn into this."""
    if layer.node.op == "Conv":
        return np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(like.shape), np.float32)
    if layer.node.op == "ConvTranspose":
        spread = matrix[0].reshape(like.shape[0], *like.shape[2:], like.shape[1])
        return np.ascontiguousarray(np.moveaxis(spread, -1, 1), np.float32)
    turned = layer.node.op == "Gemm" and layer.node.attribute("transB", 0)
    return np.ascontiguousarray(matrix[0].T if turned else matrix[0], np.float32)


def wanted_rows(shape: Shape, most: int = MOST_ROWS) -> int:
    """How many rows to take: well above the number of features, within time and memory.

    Args:
        shape: of the layer.
        most: of any layer; one with many features takes twice as many as it has all the same.
    """
    width = shape.features * shape.groups
    by_time = _FLOPS / (shape.features * width)
    by_size = _BYTES / 4 / width
    return int(min(max(by_time, 8 * shape.features), by_size, max(most, 2 * shape.features)))


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


def count(layer: Layer, array: np.ndarray) -> int:
    """Rows of what a layer reads or gives; samples where it slides over positions."""
    conv = layer.node.op in ("Conv", "ConvTranspose")
    return len(array) if conv else array.size // max(1, array.shape[-1])


def patches(
    layer: Layer, x: np.ndarray, out: tuple[int, ...], kernel: tuple[int, ...], index: np.ndarray
) -> np.ndarray:
    """[rows, channels * kernel] of a layer's input at some output positions.

    Args:
        layer: Conv or ConvTranspose (any rank), Gemm or MatMul.
        x: input batch.
        out: shape of the output batch.
        kernel: spatial kernel size; () for Gemm and MatMul.
        index: flat indices over (sample, position).
    """
    if layer.node.op == "ConvTranspose":
        return _spread_patches(layer, x, out, kernel, index)
    if layer.node.op != "Conv":
        flat: np.ndarray = x.reshape(-1, x.shape[-1])[index]
        return flat
    rank = len(kernel)
    strides = layer.node.attribute("strides", [1] * rank)
    dilations = layer.node.attribute("dilations", [1] * rank)
    pads = explicit_pads(layer.node, x.shape[2:], kernel)
    if any(pads):
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    sample, *where = np.unravel_index(index, (out[0], *out[2:]))
    at = [p * s for p, s in zip(where, strides, strict=True)]
    taken = _windows(x, kernel, dilations, sample, at)
    return np.ascontiguousarray(taken.reshape(len(index), -1))


def _windows(
    x: np.ndarray, kernel: tuple[int, ...], dilations: list[int], sample: np.ndarray, at: list[np.ndarray]
) -> np.ndarray:
    """[rows, channels, kernel...]: what a kernel sees from some places on."""
    rank = len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    holes = tuple(slice(None, None, d) for d in dilations)
    places: tuple[Any, ...] = (sample, slice(None), *at)
    taken: np.ndarray = windows[places]
    return taken[(slice(None), slice(None), *holes)]


def _spread_patches(
    layer: Layer, x: np.ndarray, out: tuple[int, ...], kernel: tuple[int, ...], index: np.ndarray
) -> np.ndarray:
    """Patches of a transposed convolution: the input with zeros between its places, the kernel reversed."""
    rank = len(kernel)
    strides = layer.node.attribute("strides", [1] * rank)
    dilations = layer.node.attribute("dilations", [1] * rank)
    begin = list(layer.node.attribute("pads", [0] * 2 * rank))[:rank]
    spread = np.zeros(
        (*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype
    )
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    # The output at p sees spread[p + begin - reach ...]: room for it at both ends.
    room = [
        (r, max(0, o + b - n) + r) for r, o, b, n in zip(reach, out[2:], begin, spread.shape[2:], strict=True)
    ]
    spread = np.pad(spread, [(0, 0), (0, 0), *room])
    sample, *where = np.unravel_index(index, (out[0], *out[2:]))
    taken = _windows(spread, kernel, dilations, sample, [p + b for p, b in zip(where, begin, strict=True)])
    backwards = (slice(None), slice(None), *(slice(None, None, -1) for _ in kernel))
    return np.ascontiguousarray(taken[backwards].reshape(len(index), -1))
