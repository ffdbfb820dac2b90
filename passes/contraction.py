"""Weights as the matrices they are multiplied with: one row an output, columns along the contraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
_CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


@dataclass(frozen=True)
class Place:
    """One weight where it is contracted with an activation.

    The matrix view is ``[groups, rows, columns]``: an output is a row times the columns of its input. Along
    the columns the contraction axis runs fastest (kernel positions outside, input channels inside), so ``m``
    consecutive columns are ``m`` consecutive input channels: TensorRT's axis for 2:4.

    Attributes:
        weight: name of the initializer.
        node: that contracts it.
        source: name of the activation it meets.
        axis: the contraction axis of the weight.
        size: of that axis.
        groups: of a convolution, else 1 (or the number of matrices in a stack).
        shape: of the weight.
    """

    weight: str
    node: ir.Node
    source: str
    axis: int
    size: int
    groups: int
    shape: tuple[int, ...]

    @property
    def convolution(self) -> bool:
        """Whether the node slides over positions."""
        return self.node.op_type in ("Conv", "FusedConv")

    def matrix(self, array: Array) -> Array:
        """``[groups, rows, columns]`` of a weight; a copy."""
        kind, shape = self.node.op_type, self.shape
        if kind == "ConvTranspose":  # [I, O/g, k...]: rows are (output, kernel position)
            apart = array.reshape(self.groups, shape[0] // self.groups, -1)
            return np.ascontiguousarray(np.moveaxis(apart, 1, 2))
        if kind in _CONVOLUTIONS:  # [O, I/g, k...]: columns are (kernel position, input)
            apart = np.moveaxis(array, 1, -1)
            return np.ascontiguousarray(apart.reshape(self.groups, shape[0] // self.groups, -1))
        apart = np.moveaxis(array, self.axis, -1)
        return np.array(apart.reshape(self.groups, -1, self.size))

    def array(self, matrix: Array) -> Array:
        """The weight of a matrix."""
        kind, shape = self.node.op_type, self.shape
        if kind == "ConvTranspose":
            return np.ascontiguousarray(np.moveaxis(matrix, 2, 1)).reshape(shape)
        if kind in _CONVOLUTIONS:
            apart = matrix.reshape(shape[0], *shape[2:], shape[1])
            return np.ascontiguousarray(np.moveaxis(apart, -1, 1))
        rest = [n for i, n in enumerate(shape) if i != self.axis]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(*rest, self.size), -1, self.axis))


def places(model: ir.Model) -> tuple[list[Place], dict[str, str]]:
    """Weights of a model that are contracted with an activation.

    Returns:
        One place a weight, in graph order; and why other matrices can't be set to zero in a pattern, by name.
    """
    found: dict[str, Place] = {}
    skipped: dict[str, str] = {}
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.const_value is None:
                continue
            shape = tuple(int(n) for n in value.const_value.shape.numpy())
            name = value.name or ""
            if len(shape) < 2 or prod(shape) == 0 or not value.const_value.dtype.is_floating_point():
                continue
            place = _place(node, index, name, shape)
            if place is None:
                if max(shape) < prod(shape):
                    skipped.setdefault(name, f"{node.op_type} '{node.name}' doesn't contract it")
            elif name in found and (found[name].axis, found[name].groups) != (place.axis, place.groups):
                skipped[name] = "its users contract different axes of it"
            else:
                found.setdefault(name, place)
    return [p for name, p in found.items() if name not in skipped], skipped


def _place(node: ir.Node, index: int, name: str, shape: tuple[int, ...]) -> Place | None:
    if index > 1 or len(node.inputs) < 2:
        return None
    other = node.inputs[1 - index]
    if other is None or other.is_initializer() or node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    source = other.name or ""
    if node.op_type in _CONVOLUTIONS and index == 1:
        groups = _number(node, "group", 1)
        axis = 0 if node.op_type == "ConvTranspose" else 1
        size = shape[0] // groups if axis == 0 else shape[1]
        return Place(name, node, source, axis, size, groups, shape)
    if node.op_type not in _PRODUCTS:
        return None
    turned = _number(node, "transB" if index else "transA", 0)
    axis = len(shape) - 1 if bool(index) == bool(turned) else len(shape) - 2
    return Place(name, node, source, axis, shape[axis], prod(shape[:-2]), shape)


def _number(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def columns(place: Place, value: Array, most: int) -> Array | None:
    """The inputs a weight's columns meet: ``[groups, samples, columns]``, thinned out to about ``most``.

    None where they can't be had in this form (stacks of matrices, more than two positions' axes).
    """
    if place.convolution:
        return _patches(place, value, most)
    if place.node.op_type == "ConvTranspose":
        rows = np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
        return np.moveaxis(_thin(rows, most).reshape(-1, place.groups, place.size), 1, 0)
    if place.groups != 1 or value.ndim < 2:
        return None
    first = place.node.inputs[0]
    right = first is None or first.name != place.source
    turned = _number(place.node, "transB" if right else "transA", 0)
    axis = -1 if right == bool(turned) else -2
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    return None if rows.shape[1] != place.size else _thin(rows, most)[None]


def _thin(rows: Array, most: int) -> Array:
    step = max(1, len(rows) // max(most, 1))
    return rows[:: step + (step > 1 and step % 2 == 0)]  # odd: not in step with rows of pixels


def _patches(place: Place, value: Array, most: int) -> Array | None:
    """Unfolded input of a convolution ``[groups, positions, kernel * inputs]``."""
    kernel = place.shape[2:]
    rank = len(kernel)
    if value.ndim != rank + 2:
        return None
    node = place.node
    strides = _numbers(node, "strides", [1] * rank)
    dilations = _numbers(node, "dilations", [1] * rank)
    pads = _padding(node, value.shape[2:], kernel, strides, dilations)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    padded = np.pad(value, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    every = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    windows = windows[(*every, *(slice(None, None, d) for d in dilations))]
    counts = [windows.shape[0], *windows.shape[2 : 2 + rank]]
    total = prod(counts)
    step = max(1, total // max(most, 1))
    chosen = np.unravel_index(np.arange(0, total, step + (step > 1 and step % 2 == 0)), counts)
    moved = np.moveaxis(windows, 1, -1)  # [N, positions..., kernel..., C]
    rows = moved[chosen].reshape(len(chosen[0]), prod(kernel), place.groups, place.size)
    return np.ascontiguousarray(np.moveaxis(rows, 2, 0)).reshape(place.groups, len(rows), -1)


def _numbers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return [int(n) for n in node.attributes[name].as_ints()] if name in node.attributes else default


def _padding(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[int]:
    """Begins, then ends; ``auto_pad`` spelled out as the ONNX specification of Conv does."""
    rank = len(kernel)
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if auto == "VALID":
        return [0] * 2 * rank
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return _numbers(node, "pads", [0] * 2 * rank)
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins + ends


def arrays(model: ir.Model, found: list[Place]) -> Mapping[str, Array]:
    """The weights of some places."""
    tensors = {p.weight: model.graph.initializers[p.weight].const_value for p in found}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
