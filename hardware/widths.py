"""How long a node would take at other widths: measured at a few, interpolated between.

A convolution's time is close to bilinear in its input and output channels (a + b·in + c·out + d·in·out), in
whole blocks of the runtime's layout. So it's measured at about four widths an axis and interpolated. Widths
off the hard alignment fall off the runtime's fast path: that factor is measured, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from condensec.hardware.isolate import Argument, Isolated, isolate, optimized
from condensec.hardware.nodecost import NodeCost, attributes

if TYPE_CHECKING:
    import onnx

    from condensec.hardware.table import LatencyTable

_SHARES = (0.25, 0.5, 0.75)
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})


@dataclass
class WidthTimes:
    """Seconds of one node at any widths, uncalibrated.

    Attributes:
        node: the node as it is in the model, unoptimised.
        dense: its cost there.
        table: measures and remembers.
        hard: channel multiple that keeps the runtime's fast path.
        block: channels the runtime works on at once; counts between are as slow as the next multiple.
    """

    node: Isolated
    dense: NodeCost
    table: LatencyTable
    hard: int
    block: int
    _grid: np.ndarray | None = field(default=None, repr=False)
    _cliff: float | None = field(default=None, repr=False)
    _dense_seconds: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._ins = knots(self.dense.in_channels, self.hard, self.block)
        self._outs = knots(self.dense.out_channels, self.hard, self.block)

    @property
    def dense_seconds(self) -> float:
        """Seconds at the model's own widths."""
        if self._dense_seconds is None:
            self._dense_seconds = self._measure([(self.dense.in_channels, self.dense.out_channels)])[0]
        return self._dense_seconds

    def at(self, cost: NodeCost) -> float:
        """Seconds at the widths of ``cost``."""
        full = self.dense
        if cost.macs >= full.macs and cost.out_channels == full.out_channels:
            return self.dense_seconds
        if cost.macs == 0:
            return 0.0
        grouped = full.kind == "conv" and full.groups > 1
        if not full.in_channels or grouped or "Transpose" in full.op:
            return self.dense_seconds * cost.macs / full.macs
        seconds = self._interpolate(self._rounded(cost.in_channels), self._rounded(cost.out_channels))
        if self._aligned(cost) or not self._aligned(full):
            return seconds
        return seconds * self.cliff

    @property
    def cliff(self) -> float:
        """Factor for widths off the alignment, measured one channel below the model's own."""
        if self._cliff is None:
            less = max(1, self.dense.in_channels - 1), max(1, self.dense.out_channels - 1)
            self._cliff = max(1.0, self._measure([less])[0] / max(self.dense_seconds, 1e-9))
        return self._cliff

    def _aligned(self, cost: NodeCost) -> bool:
        # the image itself (3 channels) may come in any number
        first = cost.in_channels == self.dense.in_channels < self.hard
        return cost.out_channels % self.hard == 0 and (first or cost.in_channels % self.hard == 0)

    def _rounded(self, channels: int) -> int:
        return channels if self.dense.kind == "matmul" else -(-channels // self.block) * self.block

    def _interpolate(self, ins: int, outs: int) -> float:
        if self._grid is None:
            if self.dense.kind == "depthwise":
                self._grid = np.array([self._measure([(c, c) for c in self._outs])])
            else:
                points = [(i, o) for i in self._ins for o in self._outs]
                self._grid = np.array(self._measure(points)).reshape(len(self._ins), len(self._outs))
        column = [_between(self._outs, row, outs) for row in self._grid]
        return max(0.0, column[0] if len(column) == 1 else _between(self._ins, column, ins))

    def _measure(self, points: Sequence[tuple[int, int]]) -> list[float]:
        seconds = []
        for ins, outs in points:
            parts = _parts(self.node, self.dense, ins, outs)
            seconds.append(sum(self.table.times(parts)))
        self.table.save()
        return seconds


def knots(size: int, hard: int, block: int) -> tuple[int, ...]:
    """Widths to measure, ascending: shares of ``size`` in whole blocks (below one block: in alignments)."""
    step = block if size > block else hard
    rounded = {max(step, round(size * share / step) * step) for share in _SHARES}
    return tuple(sorted({w for w in rounded if w < size} | {size}))


def _between(xs: Sequence[int], ys: Sequence[float] | np.ndarray, x: float) -> float:
    """Linear interpolation; outside, the nearest piece goes on (below the first knot: towards zero work)."""
    if len(xs) == 1:
        return float(ys[0]) * min(1.0, x / xs[0])
    if x <= xs[0]:
        # half of the first knot's time is taken as fixed cost
        return float(ys[0]) * (0.5 + 0.5 * x / xs[0])
    i = min(max(bisect_right(xs, x) - 1, 0), len(xs) - 2)
    t = (x - xs[i]) / (xs[i + 1] - xs[i])
    return float(ys[i] + t * (ys[i + 1] - ys[i]))


def _parts(node: Isolated, dense: NodeCost, ins: int, outs: int) -> list[Isolated]:
    """The node at other widths, as onnxruntime would run it inside a larger graph."""
    changed = _resized(node, dense, ins, outs)
    graph: onnx.ModelProto = optimized(changed.model())
    found = isolate(graph, changed.feeds())
    # inside a network, neighbours share the layout: changing it is no part of an aligned node's time
    return [part for part in found if part.node.op_type not in _LAYOUT]


def _resized(node: Isolated, dense: NodeCost, ins: int, outs: int) -> Isolated:
    """The node with other numbers of input and output channels, and weights of no particular value."""
    x, w, *rest = node.node.input
    conv = "Conv" in node.node.op_type
    arrays = {name: a.array for name, a in node.arguments.items()}
    given = attributes(node.node)
    copy = type(node.node)()
    copy.CopyFrom(node.node)
    x_shape, w_shape = list(arrays[x].shape), list(arrays[w].shape)
    if conv:
        depthwise = dense.kind == "depthwise"
        x_shape[1] = ins
        w_shape[:2] = [outs, 1 if depthwise else ins]
        for attribute in copy.attribute:
            if attribute.name == "group" and depthwise:
                attribute.i = outs
    else:
        x_shape[-2 if given.get("transA") else -1] = ins
        if len(w_shape) > 1:
            w_shape[-2:] = [outs, ins] if given.get("transB") else [ins, outs]
        else:
            w_shape = [ins]
    arguments: dict[str, Argument] = {
        x: Argument(_values(x_shape, arrays[x].dtype), False),
        w: Argument(_values(w_shape, arrays[w].dtype), True),
    }
    for name in filter(None, rest):
        argument = node.arguments[name]
        if argument.array.shape and argument.array.shape[-1] == dense.out_channels:
            argument = replace(
                argument, array=_values([*argument.array.shape[:-1], outs], argument.array.dtype)
            )
        arguments[name] = argument
    copy.output[:] = list(node.node.output)
    return replace(node, node=copy, arguments=_frozen(arguments))


def _frozen(arguments: Mapping[str, Argument]) -> Mapping[str, Argument]:
    return dict(arguments)


def _values(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Harmless numbers: no denormals, no infinities."""
    size = int(np.prod(shape))
    values = (np.arange(size, dtype=np.int32) % 17 - 8) * 0.01 + 0.005
    return values.astype(dtype).reshape(tuple(shape))
