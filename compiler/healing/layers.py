"""The layers closed-form repair re-solves: what goes in, what should come out, where the numbers live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from condensec.healing.graph import Node
from condensec.healing.stepper import Stepper
from condensec.healing.weight_view import View, follow

_OUT_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}  # of the weight; Gemm's without transB
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
        node: Conv, ConvTranspose, Gemm or MatMul with a constant weight.
        x: the data input.
        y: the output that is compared: behind the bias, before any normalization.
        weight: name of the stored weight.
        view: how the node's weight is made of it.
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
    view: View
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
        self._producers = {name: node for node in student.nodes for name in node.output}
        self.weighted: set[int] = set()
        self.skipped: list[tuple[str, str]] = []
        self._views: dict[int, View] = {}

    def find(self) -> list[Layer]:
        found = []
        for i, proto in enumerate(self._student.nodes):
            view = self._weight_of(Node(proto))
            if view is not None:
                self.weighted.add(i)
                self._views[i] = view
        for i, proto in enumerate(self._student.nodes):
            layer = self._layer(i, Node(proto)) if i in self.weighted else None
            if layer is not None:
                found.append(layer)
        return found

    def _weight_of(self, node: Node) -> View | None:
        """The constant weight of a node that can be re-solved."""
        if node.op not in _OUT_AXES or len(node.inputs) < 2 or node.inputs[0] in self._student.weights:
            return None
        name = node.inputs[1]
        view = follow(name, self._producers, self._student.weights, self._is_alone)
        if view is None and name in self._student.weights:
            view = View(name) if self._is_shared(name) else None
            if view is None:
                self.skipped.append((name, f"read by {len(self._readers[name])} nodes of several kinds"))
        if view is None:
            return None
        value = view.read(self._student.weights[view.name])
        reason = _unfit(node, value)
        if reason:
            self.skipped.append((view.name, reason))
        return None if reason else view

    def _is_shared(self, name: str) -> bool:
        """Several nodes of one kind have it as their weight, and nothing else reads it."""
        nodes = [Node(self._student.nodes[i]) for i in self._readers[name]]
        kinds = {(n.op, n.attribute("transB", 0), n.attribute("group", 1)) for n in nodes}
        alike = all(n.inputs[1] == name and n.inputs.count(name) == 1 for n in nodes if len(n.inputs) > 1)
        return len(kinds) == 1 and alike and nodes[0].op in _OUT_AXES and name not in self._outputs

    def _is_alone(self, name: str) -> bool:
        return len(self._readers.get(name, [])) == 1 and name not in self._outputs

    def _only_reader(self, name: str) -> int | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _layer(self, index: int, node: Node) -> Layer | None:
        view = self._views[index]
        out_axis = 0 if node.attribute("transB", 0) else _OUT_AXES[node.op]
        stored = view.axis(out_axis)
        kept = None if stored is None else self._slices.get(view.name, {}).get(stored)
        y, bias = node.outputs[0], self._own(node.input(2))
        if node.op == "MatMul":
            y, bias = self._added_bias(y, view.read(self._student.weights[view.name]).shape[1])
        norm = self._norm(y)
        end = norm.output if norm else y
        joined, other = self._join(end, index)
        end = joined or end
        reader = self._only_reader(end)
        rectified = reader is not None and self._student.nodes[reader].op_type == "Relu"
        axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
        return Layer(
            index, node, node.inputs[0], y, view.name, view, bias, norm, joined, other, rectified, kept, axis
        )

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


def _unfit(node: Node, weight: np.ndarray) -> str:
    """Why a node isn't the plain sum of products that least squares can solve for; "" if it is."""
    if weight.dtype != np.float32:
        return f"of type {weight.dtype}"
    if weight.ndim < 2 or (node.op == "MatMul" and weight.ndim != 2):
        return f"{node.op} with a weight of {weight.ndim} axes"
    if node.op == "Gemm" and node.attribute("transA", 0):
        return "Gemm that transposes its input"
    if node.op == "Gemm" and (node.attribute("alpha", 1.0) != 1.0 or node.attribute("beta", 1.0) != 1.0):
        return "Gemm with alpha or beta"
    if node.op == "ConvTranspose" and (
        node.attribute("group", 1) != 1 or node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or node.attribute("output_shape")
    ):  # fmt: skip
        return "ConvTranspose in groups, or padded by its output's shape"
    return ""


def find_layers(
    student: Stepper, outputs: set[str], slices: Slices
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """All layers that can be re-solved, in graph order, and (weight, reason) of those that can't.

    Args:
        student: at its start.
        outputs: names of the graph outputs.
        slices: of the plan: weight -> axis -> kept indices.
    """
    finder = _Finder(student, outputs, slices)
    return finder.find(), list(dict.fromkeys(finder.skipped))


def graph_outputs(model: onnx.ModelProto) -> set[str]:
    """Names of the graph outputs."""
    return {o.name for o in model.graph.output}


def ordered(uses: Mapping[str, list[Layer]], student: Stepper) -> Iterator[tuple[str, list[Layer], str]]:
    """(weight, its layers, why they can't be solved for together) so that each comes behind what it reads.

    Without shared weights that is the graph's order.
    """
    if all(len(layers) == 1 for layers in uses.values()):
        yield from ((weight, layers, "") for weight, layers in uses.items())
        return
    owner = {layer.index: weight for weight, layers in uses.items() for layer in layers}
    needs = {
        weight: {
            owner[i]
            for layer in layers
            for value in (layer.x, layer.other)
            for i in student.ancestors(value)
            if i in owner
        }
        for weight, layers in uses.items()
    }
    waiting = list(uses)
    while waiting:
        ready = (w for w in waiting if not needs[w].intersection(waiting))
        weight = next(ready, "")
        stuck = not weight  # a shared weight behind itself, or two behind each other
        if stuck:
            weight = next(w for w in waiting if len(uses[w]) > 1)
        waiting.remove(weight)
        reason = f"read by {len(uses[weight])} nodes, one behind another" if stuck else ""
        yield weight, uses[weight], reason
