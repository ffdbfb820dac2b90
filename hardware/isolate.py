"""Taking a graph apart: every node of the graph onnxruntime really runs, alone, with its true inputs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.runner import Session
from condensec.serialized import to_proto

if TYPE_CHECKING:
    import onnx

    from condensec.runner import Arrays
    from condensec.serialized import ModelSource

_LINE = 64  # bytes
_SMALL = 64  # elements; integer constants up to this size (shapes, axes) are part of a node's signature


@dataclass(frozen=True)
class Argument:
    """One input of an isolated node.

    Attributes:
        array: its value; activations as they are in the model, weights as they are stored.
        constant: True for weights: onnxruntime packs those in advance.
    """

    array: np.ndarray[Any, Any]
    constant: bool


@dataclass(frozen=True)
class Isolated:
    """One node of an optimised graph with what it needs to run alone.

    Attributes:
        node: the node.
        arguments: its inputs by name.
        outputs: shapes of its outputs.
        opsets: the model's opset imports.
        ir_version: the model's IR version.
    """

    node: onnx.NodeProto
    arguments: Mapping[str, Argument]
    outputs: tuple[tuple[int, ...], ...]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int

    @property
    def signature(self) -> str:
        """Hash of all that decides how long the node takes: operator, attributes, shapes, dtypes.

        Values count only for small integer constants (axes, target shapes), never for weights.
        """
        digest = hashlib.sha256()
        digest.update(
            f"{self.node.domain}:{self.node.op_type}:{dict(self.opsets).get(self.node.domain)}".encode()
        )
        for attribute in sorted(self.node.attribute, key=lambda a: a.name):
            digest.update(attribute.SerializeToString(deterministic=True))
        for name in self.node.input:
            argument = self.arguments.get(name)
            if argument is None:
                digest.update(b"|none")
                continue
            array = argument.array
            digest.update(f"|{array.dtype.str}{array.shape}{argument.constant}".encode())
            if array.dtype.kind in "iu" and array.size <= _SMALL:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    @property
    def bytes(self) -> int:
        """Bytes of what it reads and (as float32) writes."""
        written = sum(int(np.prod(shape)) for shape in self.outputs)
        return sum(a.array.nbytes for a in self.arguments.values()) + 4 * written

    @property
    def weight_bytes(self) -> int:
        """Of them, bytes of weights."""
        return sum(a.array.nbytes for a in self.arguments.values() if a.constant)

    def model(self, copies: int = 1, *, inside: bool = False) -> onnx.ModelProto:
        """A model of this one node; activations are its inputs, weights its initializers.

        Args:
            copies: how often the node is in it. All take the same inputs; only the last one's outputs leave
                the graph, so the others' buffers are reused at once, as within a model.
            inside: only the shapes of the outputs leave the graph. For timing: handing an output over costs a
                copy, which a node inside a model doesn't pay (a Reshape would cost more than a Softmax).
        """
        from onnx import NodeProto, helper, numpy_helper

        inputs, weights = [], []
        for name, argument in self.arguments.items():
            if argument.constant:
                weights.append(numpy_helper.from_array(argument.array, name))
            else:
                kind = helper.np_dtype_to_tensor_dtype(argument.array.dtype)
                inputs.append(helper.make_tensor_value_info(name, kind, argument.array.shape))
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.node.output if name]
        nodes = [NodeProto() for _ in range(copies)]
        for i, node in enumerate(nodes):
            node.CopyFrom(self.node)
            if i < copies - 1:
                node.name = f"{node.name} copy {i}"
                node.output[:] = [name and f"{name} copy {i}" for name in node.output]
        if inside:
            shapes = [helper.make_node("Shape", [o.name], [f"shape of {o.name}"]) for o in outputs]
            nodes += shapes
            outputs = [helper.make_empty_tensor_value_info(n.output[0]) for n in shapes]
        graph = helper.make_graph(nodes, "node", inputs, outputs, weights)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)

    def feeds(self) -> dict[str, np.ndarray[Any, Any]]:
        """The activations the node takes, where onnxruntime's own allocator would put them."""
        return {name: _aligned(a.array) for name, a in self.arguments.items() if not a.constant}


def _aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that starts on a cache line. numpy's arrays needn't, which makes depthwise nodes 1.5x slower."""
    room = np.empty(array.nbytes + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    copy: np.ndarray[Any, Any] = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def optimized(model: ModelSource, level: bool | str = True) -> onnx.ModelProto:
    """The graph as onnxruntime optimises it for this machine, weights inside.

    Args:
        model: a model in any form.
        level: as `condensec.runner.Session` takes it; "extended" leaves this machine's memory layout out.
    """
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, optimize=level, save_optimized=path)
        return to_proto(path.read_bytes())


def isolate(graph: onnx.ModelProto, feeds: Arrays) -> list[Isolated]:
    """Every node of an optimised graph.

    Args:
        graph: what `optimized` returned.
        feeds: inputs of the model; the nodes' activations are computed from them.

    Raises:
        PostconditionError: a node fails.
    """
    from onnx import numpy_helper

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    wanted = [name for node in graph.graph.node for name in node.output if name]
    values = Session(graph, optimize=False, extra_outputs=wanted).run(feeds)
    known = {**feeds, **values}
    opsets = tuple((o.domain, o.version) for o in graph.opset_import)
    found = []
    for node in graph.graph.node:
        names = dict.fromkeys((*filter(None, node.input), *_captured(node)))
        arguments = {n: Argument(weights[n], True) for n in names if n in weights}
        arguments |= {
            n: Argument(np.asarray(known[n]), False) for n in names if n in known and n not in weights
        }
        shapes = tuple(tuple(np.shape(known[name])) for name in node.output if name)
        found.append(Isolated(node, arguments, shapes, opsets, graph.ir_version))
    return found


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Outer values that a node's subgraphs use."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {v.name for v in (*graph.input, *graph.initializer)}
            inner.update(name for n in graph.node for name in n.output)
            for child in graph.node:
                used: Sequence[str] = (*child.input, *_captured(child))
                yield from (name for name in used if name and name not in inner)
