"""The layers closed-form repair re-solves: what goes in, what should come out, where the numbers live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from condensec.healing.graph import Node
from condensec.healing.stepper import Stepper

Slices = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Norm:
    """An inference-mode BatchNormalization right behind a layer.

    Attributes:
        output: its output.
        names: scale, bias, mean, variance.
        epsilon: added to the variance.
    """

    output: str
    names: tuple[str, str, str, str]
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """One weighted node.

    Attributes:
        index: of the node in the stepper's order.
        node: Conv, Gemm or MatMul with a constant weight.
        x: the data input.
        y: the output that is compared: behind the bias, before any normalization.
        weight: name.
        bias: name of the bias (the node's own, or of an Add behind it); "" without one.
        norm: a normalization behind it.
        joined: output of a residual Add behind it (and behind `norm`); "" without one.
        other: the Add's other operand.
        rectified: only a Relu reads the result.
        kept: which of the teacher's output channels the student still has; None = all.
        axis: channel axis of the output.
    """

    index: int
    node: Node
    x: str
    y: str
    weight: str
    bias: str
    norm: Norm | None
    joined: str
    other: str
    rectified: bool
    kept: tuple[int, ...] | None
    axis: int

    @property
    def target(self) -> str:
        """The teacher's value to come close to."""
        return self.joined or (self.norm.output if self.norm else self.y)


class _Finder:
    """Looks around the nodes of a student."""

    def __init__(self, student: Stepper, outputs: set[str], slices: Slices) -> None:
        self._student, self._outputs, self._slices = student, outputs, slices
        self._readers: dict[str, list[int]] = {}
        for i, node in enumerate(student.nodes):
            for name in node.input:
                self._readers.setdefault(name, []).append(i)
        self.weighted: set[int] = set()

    def find(self) -> list[Layer]:
        found = []
        for i, proto in enumerate(self._student.nodes):
            if self._weight_of(Node(proto)):
                self.weighted.add(i)
        for i, proto in enumerate(self._student.nodes):
            layer = self._layer(i, Node(proto)) if i in self.weighted else None
            if layer is not None:
                found.append(layer)
        return found

    def _weight_of(self, node: Node) -> str:
        """The constant weight of a node that can be re-solved; "" if there is none."""
        if node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
            return ""
        name = node.inputs[1]
        value = self._student.weights.get(name)
        single = len(self._readers.get(name, [])) == 1 and node.inputs[0] not in self._student.weights
        fits = value is not None and value.dtype == np.float32 and value.ndim >= 2
        if not single or not fits or (node.op == "MatMul" and value is not None and value.ndim != 2):
            return ""
        if node.op == "Gemm" and (node.attribute("transA", 0) or node.attribute("alpha", 1.0) != 1.0):
            return ""
        return name

    def _only_reader(self, name: str) -> int | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _layer(self, index: int, node: Node) -> Layer | None:
        weight = node.inputs[1]
        out_axis = {"Conv": 0, "MatMul": 1, "Gemm": 0 if node.attribute("transB", 0) else 1}[node.op]
        kept = self._slices.get(weight, {}).get(out_axis)
        y, bias = node.outputs[0], self._own(node.input(2))
        if node.op == "MatMul":
            y, bias = self._added_bias(y, self._student.weights[weight].shape[1])
        if node.op == "Gemm" and node.attribute("beta", 1.0) != 1.0:
            return None
        norm = self._norm(y)
        end = norm.output if norm else y
        joined, other = self._join(end, index)
        end = joined or end
        reader = self._only_reader(end)
        rectified = reader is not None and self._student.nodes[reader].op_type == "Relu"
        axis = 1 if node.op == "Conv" else -1
        return Layer(index, node, node.inputs[0], y, weight, bias, norm, joined, other, rectified, kept, axis)

    def _own(self, name: str) -> str:
        """A constant vector that nothing else reads."""
        value = self._student.weights.get(name)
        single = len(self._readers.get(name, [])) == 1
        return name if value is not None and value.ndim == 1 and value.dtype == np.float32 and single else ""

    def _added_bias(self, y: str, width: int) -> tuple[str, str]:
        """(output, bias) of a MatMul with an Add of a vector behind it."""
        reader = self._only_reader(y)
        if reader is None or self._student.nodes[reader].op_type != "Add":
            return y, ""
        add = self._student.nodes[reader]
        name = next((n for n in add.input if n != y), "")
        if self._own(name) and self._student.weights[name].size == width:
            return add.output[0], name
        return y, ""

    def _norm(self, y: str) -> Norm | None:
        reader = self._only_reader(y)
        if reader is None:
            return None
        node = Node(self._student.nodes[reader])
        if node.op != "BatchNormalization" or node.attribute("training_mode", 0) or node.inputs[0] != y:
            return None
        names = node.inputs[1:5]
        if not all(self._own(n) for n in names):
            return None
        scale = self._student.weights[names[0]]
        if float(np.abs(scale).min()) < 1e-6:  # a channel switched off can't be asked for its input
            return None
        epsilon = float(node.attribute("epsilon", 1e-5))
        return Norm(node.outputs[0], (names[0], names[1], names[2], names[3]), epsilon)

    def _join(self, end: str, index: int) -> tuple[str, str]:
        """A residual Add behind the layer whose other operand is settled before it."""
        reader = self._only_reader(end)
        if reader is None or self._student.nodes[reader].op_type != "Add":
            return "", ""
        add = self._student.nodes[reader]
        other = next((n for n in add.input if n != end), "")
        if not other or other in self._student.weights:
            return "", ""
        behind = self._student.ancestors(other)
        if index in behind or any(i > index for i in behind & self.weighted):
            return "", ""
        return add.output[0], other


def find_layers(student: Stepper, outputs: set[str], slices: Slices) -> list[Layer]:
    """All layers that can be re-solved, in graph order.

    Args:
        student: at its start.
        outputs: names of the graph outputs.
        slices: of the plan: weight -> axis -> kept indices.
    """
    return _Finder(student, outputs, slices).find()


def graph_outputs(model: onnx.ModelProto) -> set[str]:
    """Names of the graph outputs."""
    return {o.name for o in model.graph.output}
