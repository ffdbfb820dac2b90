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


@dataclass(frozen=True)
class Fused:
    """What onnxruntime fused into a convolution; it's part of the node's time.

    Attributes:
        activation: operator, or empty.
        parameters: of the activation: bounds of Clip, alpha and beta of HardSigmoid.
        summed: whether a residual is added.
    """

    activation: str = ""
    parameters: tuple[float, ...] = ()
    summed: bool = False


def fused_into(node: Isolated) -> Fused:
    """What is fused into a node of an optimised graph."""
    given = attributes(node.node)
    activation = given.get("activation", b"")
    name = activation.decode() if isinstance(activation, bytes) else str(activation)
    parameters = tuple(float(p) for p in given.get("activation_params", ()))
    return Fused(name, parameters, "Conv" in node.node.op_type and len(node.node.input) > 3)


@dataclass
class WidthTimes:
    """Seconds of one node at any widths, uncalibrated.

    Attributes:
        node: the node as it is in the model, unoptimised.
        dense: its cost there.
        table: measures and remembers.
        hard: channel multiple that keeps the runtime's fast path.
        block: channels the runtime works on at once; counts between are as slow as the next multiple.
        fused: what the runtime fuses into the node.
    """

    node: Isolated
    dense: NodeCost
    table: LatencyTable
    hard: int
    block: int
    fused: Fused = Fused()
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
        ins = self._rounded(cost.in_channels, full.in_channels)
        outs = self._rounded(cost.out_channels, full.out_channels)
        seconds = self._interpolate(ins, outs)
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

    def _rounded(self, channels: int, size: int) -> int:
        if self.dense.kind == "matmul":
            return channels
        return min(-(-channels // self.block) * self.block, size)

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
        parts = [_parts(self.node, self.dense, self.fused, ins, outs) for ins, outs in points]
        known = iter(self.table.times([part for found in parts for part in found]))
        self.table.save()
        return [sum(next(known) for _ in found) for found in parts]


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


def _parts(node: Isolated, dense: NodeCost, fused: Fused, ins: int, outs: int) -> list[Isolated]:
    """The node at other widths, as onnxruntime would run it inside a larger graph."""
    changed = resized(node, dense, ins, outs)
    model, feeds = changed.model(), changed.feeds()
    append_fused(model, fused, (node.outputs[0][0], outs, *node.outputs[0][2:]), feeds)
    found = isolate(optimized(model), feeds)
    # inside a network, neighbours share the layout: changing it is no part of an aligned node's time
    return [part for part in found if part.node.op_type not in _LAYOUT]


def append_fused(
    model: onnx.ModelProto, fused: Fused, shape: tuple[int, ...], feeds: dict[str, np.ndarray]
) -> None:
    """Put after the node what onnxruntime will fuse into it, in place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    value = graph.output[0].name
    if fused.summed:
        feeds["residual"] = _values(shape, np.dtype(np.float32))
        graph.input.append(helper.make_tensor_value_info("residual", 1, shape))
        graph.node.append(helper.make_node("Add", [value, "residual"], ["summed"], name="sum"))
        value = "summed"
    if fused.activation == "Clip" and opset >= 11:
        for name, number in zip(("low", "high"), fused.parameters, strict=False):
            graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
        graph.node.append(helper.make_node("Clip", [value, "low", "high"], ["acted"], name="act"))
    elif fused.activation:
        names = {"Clip": ("min", "max")}.get(fused.activation, ("alpha", "beta"))
        act = helper.make_node(fused.activation, [value], ["acted"], name="act")
        for name, number in zip(names, fused.parameters, strict=False):
            act.attribute.append(helper.make_attribute(name, number))
        graph.node.append(act)
    if fused.activation or fused.summed:
        graph.output[0].name = "acted" if fused.activation else "summed"


def resized(node: Isolated, dense: NodeCost, ins: int, outs: int) -> Isolated:
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
