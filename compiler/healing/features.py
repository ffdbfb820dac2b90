"""Where inside the network the student can be compared with its teacher, unit by unit.

A value inside a cut network is comparable where it's known which of the teacher's channels it still has:
behind a layer whose weights the plan slices, and further on through operators that keep channels apart.
Two uses: as a loss on block outputs beside the graph's own (FitNets, Romero et al. 2015), and in place of
one in front of an operator without a gradient, where nothing of the outputs' loss arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from condensec.healing import losses
from condensec.healing.graph import Graph, Node, reads
from condensec.healing.stepper import constant_value
from condensec.healing.trainable import is_weight

Slices = Mapping[str, Mapping[int, tuple[int, ...]]]
MOST = 6  # block outputs that are compared
_BYTES = 1 << 30  # of the teacher's values there, all samples together
_LARGEST = 1e8  # where a value has entries beyond, an attention mask was added to it
# Operators whose output has the channels of their first input, in the same place.
_KEEPERS = frozenset(
    name
    for line in (
        "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Mish Softplus Softsign Tanh Erf",
        "Gelu QuickGelu FastGelu BiasGelu Swish Clip Abs Neg Sqrt Exp Identity Dropout Cast LRN",
        "LayerNormalization RMSNormalization SimplifiedLayerNormalization Softmax LogSoftmax",
        "BatchNormalization InstanceNormalization MaxPool AveragePool GlobalAveragePool GlobalMaxPool",
    )
    for name in line.split()
)
_JOINERS = frozenset(("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min"))
_ACTIVATIONS = frozenset(("Relu", "HardSwish", "Gelu", "Clip", "LeakyRelu", "Swish", "Mish", "Elu"))


@dataclass(frozen=True)
class Match:
    """Which of the teacher's channels a student's value has.

    Attributes:
        axis: the channel axis.
        kept: indices on it, ascending; None = all of them.
    """

    axis: int
    kept: tuple[int, ...] | None

    def of(self, value: np.ndarray) -> np.ndarray:
        """The teacher's value at the channels that are left."""
        if self.kept is None:
            return value
        return np.take(value, self.kept, self.axis)


@dataclass(frozen=True)
class Insides:
    """What is known of a student's inside.

    Attributes:
        matches: value -> which of the teacher's channels it has.
        blocks: outputs of its blocks, in order.
    """

    matches: Mapping[str, Match]
    blocks: tuple[str, ...]


def look(student: onnx.ModelProto, slices: Slices) -> Insides:
    """Find the values of a student that have a counterpart.

    Args:
        student: the cut model.
        slices: of the plan: weight -> axis -> kept indices; empty for an uncut one.
    """
    shapes = {t.name: tuple(t.dims) for t in student.graph.initializer}
    matches: dict[str, Match] = {}
    learned = {t.name for t in student.graph.initializer if len(t.dims) > 1 and _may_be_learned(t)}
    joins, activations = [], []
    for proto in student.graph.node:
        node = Node(proto)
        constant = constant_value(proto)
        if constant is not None:
            shapes[node.outputs[0]] = constant.shape
            held = constant.ndim > 1 and _may_be_learned(numpy_helper.from_array(constant))
            learned.update(node.outputs if held else ())
            continue
        match = _behind(node, shapes, matches, slices)
        if match is not None:
            matches[node.outputs[0]] = match
        if learned.intersection(reads(proto)):
            learned.update(name for name in node.outputs if name)
            computed = [n for n in node.inputs if n and n not in shapes and n in learned]
            if node.op == "Add" and len(computed) == 2:
                joins.append(node.outputs[0])
            elif node.op in _ACTIVATIONS:
                activations.append(node.outputs[0])
    return Insides(matches, tuple(_behind_rectifier(student, joins) or activations))


def _may_be_learned(tensor: onnx.TensorProto) -> bool:
    """Whether a constant may be a weight: no positions, no booleans, no mask for attention scores.

    What is computed of those alone is the same in teacher and student, and a sum with it is no block's.
    """
    kinds = onnx.TensorProto
    if tensor.data_type in (kinds.INT64, kinds.INT32, kinds.BOOL):
        return False
    if tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE):
        return is_weight(numpy_helper.to_array(tensor))
    return True


def _behind(
    node: Node, shapes: Mapping[str, tuple[int, ...]], matches: Mapping[str, Match], slices: Slices
) -> Match | None:
    """What a node's first output has of the teacher's channels."""
    kind = node.op.rpartition(".")[2]
    weight = node.input(1)
    by_axis = slices.get(weight, {})
    if kind in ("Conv", "FusedConv") and weight in shapes:
        return Match(1, by_axis.get(0))
    if kind == "ConvTranspose" and weight in shapes and node.attribute("group", 1) == 1:
        return Match(1, by_axis.get(1))
    if kind == "Gemm" and weight in shapes:
        return Match(1, by_axis.get(0 if node.attribute("transB", 0) else 1))
    if kind == "MatMul" and len(shapes.get(weight, ())) == 2:
        return Match(-1, by_axis.get(1))
    if kind in _KEEPERS:
        return matches.get(node.input(0))
    if kind in _JOINERS:
        return next((matches[n] for n in node.inputs if n in matches), None)
    return None


def _behind_rectifier(student: onnx.ModelProto, joins: list[str]) -> list[str]:
    """Sums, or what the one operator that reads them makes of them (what the next block gets)."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for proto in student.graph.node:
        for name in reads(proto):
            readers.setdefault(name, []).append(proto)
    found = []
    for name in joins:
        next_ones = readers.get(name, [])
        alone = len(next_ones) == 1 and next_ones[0].op_type in (*_ACTIVATIONS, "LayerNormalization")
        found.append(next_ones[0].output[0] if alone else name)
    return found


def spread(names: Iterable[str], most: int = MOST) -> list[str]:
    """At most so many of some values, evenly over the depth, the last one included."""
    given = list(names)
    if len(given) <= most:
        return given
    return [given[round((i + 1) * len(given) / most) - 1] for i in range(most)]


def in_front_of(graph: Graph, barriers: Mapping[str, str]) -> list[str]:
    """Values that operators without a gradient read, in order."""
    made = graph.producers()
    found: dict[str, None] = {}
    for proto in graph.nodes:
        if proto.output[0] in barriers:
            found.update(dict.fromkeys(n for n in proto.input if n in made and graph.is_float(n)))
    return list(found)


def terms(
    graph: Graph,
    insides: Insides,
    answers: Mapping[str, np.ndarray],
    names: Iterable[str],
    weight: float,
    count: int,
) -> list[losses.Term]:
    """Loss terms for some values: the mean squared distance over the teacher's variance, shared out evenly.

    Args:
        graph: the student's training copy.
        insides: see `look`.
        answers: a sample of the teacher's values there.
        names: the values; those without a counterpart of the same shape are left out, and those with
            entries that aren't finite or are an attention mask's (a mean square would be of them alone).
        weight: of all together.
        count: training samples, whose values have to fit on the disk.
    """
    chosen: dict[str, tuple[Match, float, int]] = {}
    for name in names:
        match = insides.matches.get(name, Match(0, None))
        value, shape = answers.get(name), graph.shape(name)
        if value is None or shape is None or value.dtype.kind != "f" or value.ndim < 2:
            continue
        if match.kept is not None and (
            value.ndim <= match.axis or max(match.kept) >= value.shape[match.axis]
        ):
            continue
        mine = np.asarray(match.of(value), np.float32)
        if mine.shape[1:] != shape[1:] or not mine.size or not np.abs(mine).max() < _LARGEST:
            continue
        variance = float(np.var(mine))
        if variance > 0:
            chosen[name] = (match, variance, 2 * count * mine[0].size)
    while sum(size for _, _, size in chosen.values()) > _BYTES:
        del chosen[max(chosen, key=lambda n: chosen[n][2])]
    return [
        losses.Term("features", name, weight / len(chosen), scale=variance, match=match)
        for name, (match, variance, _) in chosen.items()
    ]
