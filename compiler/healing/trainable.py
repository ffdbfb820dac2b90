"""Which constants of a graph are weights to train, and which can't be, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from condensec.healing.graph import Graph, Node, reads

# What onnxruntime-training 1.19.2 has a CPU gradient for; each was checked against finite differences.
_WITH_GRADIENT = (
    "Abs Add AveragePool Cast Clip Concat Conv Cos Div Erf Exp Expand Flatten Gather GatherElements GatherND",
    "Gelu Gemm GlobalAveragePool Identity LayerNormalization LeakyRelu Log LogSoftmax MatMul Max MaxPool",
    "Min Mul Neg Pad Pow Reciprocal ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Relu Reshape Sin Slice",
    "ScatterElements ScatterND Sigmoid Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Trilu",
    "Unsqueeze Where com.microsoft.QuickGelu",
)
DIFFERENTIABLE = frozenset(name for line in _WITH_GRADIENT for name in line.split())
# Inputs that are settings or statistics, not weights: operator -> positions.
_SETTINGS = {
    "BatchNormalization": (3, 4),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Pow": (1,),
    "Dropout": (1, 2),
    "Where": (0,),
    "OneHot": (1, 2),
    "Range": (0, 1, 2),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "Expand": (1,),
}
# Parameters even where they have a single element.
_PARAMETERS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
}
_MASK = 1e4  # constants this large are attention masks, not weights


def is_straight_through(node: Node) -> bool:
    """A rounding that a legalization wrote: the worker passes its gradient on as it is."""
    return node.op == "Round" and node.proto.name.startswith("heal.")


@dataclass(frozen=True)
class Selection:
    """The weights of a graph, sorted into those that train and those that don't.

    Attributes:
        trained: names, in graph order.
        frozen: (name, reason) of weights that stay as they are.
    """

    trained: tuple[str, ...]
    frozen: tuple[tuple[str, str], ...]


def candidates(graph: Graph, weights: frozenset[str]) -> list[str]:
    """Constants that are weights by the place they are used in, in graph order.

    Args:
        graph: as read, before any rewriting.
        weights: the file's own float constants of more than one element.
    """
    found: dict[str, None] = {}
    barred: set[str] = set()
    for proto in graph.nodes:
        node = Node(proto)
        for position, name in enumerate(node.inputs):
            value = graph.constants.get(name)
            if value is None or value.dtype != np.float32:
                continue
            if position in _SETTINGS.get(node.op, ()):
                barred.add(name)
            elif name in weights or position in _PARAMETERS.get(node.op, ()):
                found[name] = None
    return [n for n in found if n not in barred and is_weight(graph.constants[n])]


def stored_as_integers(model: onnx.ModelProto) -> tuple[tuple[str, str], ...]:
    """(name, reason) of weights that the file has as integers behind a DequantizeLinear."""
    sizes = {t.name: t for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        tensor = sizes.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is not None and len(tensor.dims) > 1:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            found[tensor.name] = f"stored as {kind} behind DequantizeLinear: heal before quantizing"
    return tuple(found.items())


def is_weight(value: np.ndarray) -> bool:
    """Whether a constant's values can be a weight's: finite, and none as large as an attention mask's."""
    return value.size > 0 and bool(np.isfinite(value).all()) and float(np.abs(value).max()) < _MASK


def blocked(graph: Graph, refused: dict[str, str]) -> dict[str, str]:
    """First output of each node no gradient passes through -> reason. After legalization."""
    found = {}
    for proto in graph.nodes:
        node = Node(proto)
        differentiable = any(name and graph.is_float(name) for name in node.outputs)
        if not differentiable or node.op in DIFFERENTIABLE or is_straight_through(node):
            continue
        found[node.outputs[0]] = refused.get(node.outputs[0], f"{node.op} has no gradient")
    return found


def severed(graph: Graph, barriers: dict[str, str], wanted: list[str]) -> list[str]:
    """Float values that barriers make of trained weights: what comes before them can't be reached from here.

    Training gets them as inputs, computed anew in every step by running the graph up to there: the gradient
    builder would ask for a gradient of every node between a weight and the loss. What comes out of an If,
    Loop or Scan is an input in any case: the builder crashes on a graph that holds one.
    """
    depends = _depending_on(graph, wanted)
    return [
        name
        for proto in graph.nodes
        for name in proto.output
        if (name and Node(proto).has_subgraph and graph.type(name))
        or (proto.output[0] in barriers and name in depends and graph.is_float(name))
    ]


def cut_at(graph: Graph, values: list[str]) -> Graph:
    """A graph that gets some of its values as inputs."""
    inputs = {**graph.inputs, **{name: (graph.type(name), graph.shape(name) or ()) for name in values}}
    nodes = [n for n in graph.nodes if not set(values).intersection(n.output)]
    part = Graph(nodes, dict(graph.constants), inputs, list(graph.outputs), graph.shapes, graph.types)
    part.prune()
    read = {name for node in part.nodes for name in reads(node)}
    part.inputs = {name: port for name, port in inputs.items() if name in read}
    return part


def up_to(graph: Graph, values: list[str]) -> Graph:
    """The part of a graph that computes some of its values."""
    part = Graph(graph.nodes, dict(graph.constants), graph.inputs, values, graph.shapes, graph.types)
    part.prune()
    read = {name for node in part.nodes for name in reads(node)}
    part.inputs = {name: port for name, port in graph.inputs.items() if name in read}
    return part


def select(graph: Graph, wanted: list[str], barriers: dict[str, str], losses: list[str]) -> Selection:
    """Sort the candidates: a weight trains if a gradient reaches it from a loss.

    Args:
        graph: legalized, with the losses in it.
        wanted: candidate names.
        barriers: from `blocked`.
        losses: names of the values the gradient starts from.
    """
    reached, seen = set(losses), set(losses)
    why: dict[str, str] = {}
    for proto in reversed(graph.nodes):
        if seen.intersection(proto.output):
            inputs = set(reads(proto))
            seen.update(inputs)
            barrier = barriers.get(proto.output[0])
            if barrier is None and not any(name and graph.is_float(name) for name in proto.output):
                barrier = f"{proto.op_type} has no gradient"  # what it gives is an index or a condition
            if reached.intersection(proto.output) and barrier is None:
                reached.update(inputs)
            else:
                reason = barrier or next((why[o] for o in proto.output if o in why), "")
                why.update({name: reason for name in inputs if name not in why})
    frozen = [(n, why.get(n) or "nothing that is compared depends on it") for n in wanted if n not in reached]
    return Selection(tuple(n for n in wanted if n in reached), tuple(frozen))


def _depending_on(graph: Graph, names: list[str]) -> set[str]:
    found = set(names)
    for proto in graph.nodes:
        if found.intersection(reads(proto)):
            found.update(name for name in proto.output if name)
    return found
