"""Which layers lose most in int8, measured: each is quantized alone while all others stay fp32.

All layers are in one graph, each with a switch: `Where(switch[i], quantized, original)` in front of what it
reads. So a model with a hundred layers is built and opened once, and run a hundred times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condensec.decisions import scores
from condensec.hardware.bias import Array, rounded
from condensec.hardware.nodecost import channel_axis
from condensec.hardware.quantize import PER_CHANNEL_OPSET, QUANTIZABLE, opset_of
from condensec.hardware.work import macs, times_within
from condensec.runner import Session
from condensec.serialized import to_ir

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

SWITCHES = "condensec.switches"
MACS = 150e9  # of all layers' runs together, some 30 s; fewer samples where the model is large
_LEAST, _MOST = 4, 64  # samples
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class LayerError:
    """What quantizing one layer alone does.

    Attributes:
        node: its name.
        error: squared error of the outputs over their own squares, the largest of all outputs.
    """

    node: str
    error: float


def layer_errors(
    source: Path,
    ranges: Ranges,
    samples: Samples,
    *,
    exclude: Sequence[str] = (),
    threads: int = 1,
    shifts: Mapping[str, Array] | None = None,
    largest: int = 127,
) -> list[LayerError]:
    """Quantize each weighted layer alone, and see what becomes of the outputs.

    Args:
        source: the fp32 model as the quantizer gets it; opset 13 at least, or there's nothing to say.
        ranges: of the activations.
        samples: to run.
        exclude: layers that stay fp32 anyway.
        threads: of the runs.
        shifts: what is taken off the bias of a quantized layer (`condensec.hardware.bias`).
        largest: of the integers of weights.

    Returns:
        The worst layer first; none where no float output, nor a score behind a decision, could tell.
    """
    import onnx

    proto = onnx.load_model(source)
    if opset_of(proto) < PER_CHANNEL_OPSET:
        return []
    hidden = scores(to_ir(proto))
    outputs = [*(value.name for value in proto.graph.output), *hidden]
    layers = _install(proto, ranges, frozenset(exclude), shifts or {}, largest)
    if not layers:
        return []
    count = times_within(MACS / (len(layers) + 1), macs(source, samples), _LEAST, _MOST)
    session = Session(proto, threads=threads, optimize="basic", extra_outputs=hidden)
    floats = [p.name for p in session.outputs if p.name in outputs and p.dtype == np.float32]
    if not floats:
        return []
    off = np.zeros(len(layers), np.bool_)
    runner = _Runner(session, samples, floats, session.batch_size or 1)
    count = min(count, len(samples))
    wanted = runner.run(off, count)
    found = []
    for i, name in enumerate(layers):
        on = off.copy()
        on[i] = True
        found.append(LayerError(name, relative_error(wanted, runner.run(on, count))))
    return sorted(found, key=lambda one: (-one.error, one.node))


def relative_error(
    wanted: Mapping[str, NDArray[np.float32]], found: Mapping[str, NDArray[np.float32]]
) -> float:
    """Squared error over the squares of what was wanted; the largest of all outputs."""
    worst = 0.0
    for name, want in wanted.items():
        have = found[name]
        if have.shape != want.shape:
            return float("inf")
        power = float(np.square(want, dtype=np.float64).sum())
        error = float(np.square(want.astype(np.float64) - have).sum())
        worst = max(worst, error / max(power, 1e-30)) if np.isfinite(error) else float("inf")
    return worst


class _Runner:
    """Runs the graph with some switches on."""

    def __init__(self, session: Session, samples: Samples, outputs: list[str], size: int) -> None:
        self._session, self._samples, self._outputs, self._size = session, samples, outputs, size

    def run(self, switches: NDArray[np.bool_], count: int) -> dict[str, NDArray[np.float32]]:
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._outputs}
        for start in range(0, count, self._size):
            rows = np.arange(start, start + self._size) % len(self._samples)
            feeds: dict[str, NDArray[Any]] = {n: a[rows] for n, a in self._samples.inputs.items()}
            for name, value in self._session.run({**feeds, SWITCHES: switches}, self._outputs).items():
                parts[name].append(np.asarray(value).reshape(-1))
        return {name: np.concatenate(values) for name, values in parts.items()}


def _install(
    proto: onnx.ModelProto,
    ranges: Ranges,
    exclude: frozenset[str],
    shifts: Mapping[str, Array],
    largest: int,
) -> list[str]:
    """Put a switch in front of every weighted node, in place; returns the nodes in the switches' order."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers: list[str] = []
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type in QUANTIZABLE and node.name not in exclude and node.domain in ("", "ai.onnx"):
            build = _Switch(proto, len(layers), largest)
            taken = [build.input(node, i, weights, ranges) for i in (0, 1)]
            if any(taken):
                taken.append(build.bias(node, weights, shifts))
                proto.graph.node.extend(build.nodes)
                layers.append(node.name)
                for i, name in enumerate(taken):
                    if name is not None:
                        node.input[i] = name
        proto.graph.node.append(node)
    proto.graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(layers)]))
    indices = [np.array([i], np.int64) for i in range(len(layers))]
    proto.graph.initializer.extend(numpy_helper.from_array(a, f"{SWITCHES}.{a[0]}") for a in indices)
    return layers


class _Switch:
    """The nodes in front of one layer."""

    def __init__(self, proto: onnx.ModelProto, number: int, largest: int) -> None:
        from onnx import helper

        self._proto, self._on, self._largest = proto, f"{SWITCHES}.on.{number}", largest
        self.nodes = [helper.make_node("Gather", [SWITCHES, f"{SWITCHES}.{number}"], [self._on])]

    def input(
        self, node: onnx.NodeProto, position: int, weights: Mapping[str, onnx.TensorProto], ranges: Ranges
    ) -> str | None:
        """Name of what the node reads instead; None if this input can't be quantized."""
        from onnx import TensorProto, helper

        name = node.input[position]
        prefix = f"{self._on}.{position}"
        if name in weights:
            if weights[name].data_type != TensorProto.FLOAT:
                return None
            quantized = self._weight(node, weights[name], prefix)
        elif name in ranges:
            quantized = self._activation(name, ranges[name], prefix)
        else:
            return None
        self.nodes.append(helper.make_node("Where", [self._on, quantized, name], [f"{prefix}.out"]))
        return f"{prefix}.out"

    def bias(
        self, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], shifts: Mapping[str, Array]
    ) -> str | None:
        """Name of the corrected bias; None where there is none to correct."""
        from onnx import helper, numpy_helper

        shift = shifts.get(node.name)
        if shift is None or len(node.input) < 3 or node.input[2] not in weights:
            return None
        value = (numpy_helper.to_array(weights[node.input[2]]) - shift).astype(np.float32)
        name = f"{self._on}.2"
        self._proto.graph.initializer.append(numpy_helper.from_array(value, name))
        self.nodes.append(helper.make_node("Where", [self._on, name, node.input[2]], [f"{name}.out"]))
        return f"{name}.out"

    def _weight(self, node: onnx.NodeProto, tensor: onnx.TensorProto, prefix: str) -> str:
        from onnx import helper, numpy_helper

        array = numpy_helper.to_array(tensor)
        axis = channel_axis(node, array.ndim)
        quantized, scale = rounded(array, axis, self._largest)
        for suffix, value in (("q", quantized), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8))):
            self._proto.graph.initializer.append(numpy_helper.from_array(value, f"{prefix}.{suffix}"))
        inputs = [f"{prefix}.{suffix}" for suffix in ("q", "scale", "zero")]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{prefix}.dq"], axis=axis))
        return f"{prefix}.dq"

    def _activation(self, name: str, ends: tuple[float, float], prefix: str) -> str:
        from onnx import helper, numpy_helper

        low, high = ends
        scale = np.float32(max(high - low, 1e-12) / 255)
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        for suffix, value in (("scale", scale), ("zero", zero)):
            tensor = numpy_helper.from_array(np.array(value), f"{prefix}.{suffix}")
            self._proto.graph.initializer.append(tensor)
        settings = [f"{prefix}.scale", f"{prefix}.zero"]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *settings], [f"{prefix}.q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{prefix}.q", *settings], [f"{prefix}.dq"]))
        return f"{prefix}.dq"
