"""The training copy of a graph while it is being rewritten: nodes, constants, static shapes.

A copy for training is free to look different from the graph the user gave: shapes are fixed to those of
the batches, shape arithmetic is folded away, operators without a gradient are spelled out. Only the
names of the weights stay, because the weights travel back by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # onnxruntime-training 1.19.2 reads up to 21; at 20 all of its kernels and gradients exist
IR = 9
MICROSOFT = "com.microsoft"
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Node:
    """A read-only view of a NodeProto with its attributes as Python values.

    Attributes:
        op: operator name, with its domain in front unless it's the default one ("com.microsoft.Gelu").
        inputs: input names; "" where an optional input is left out.
        outputs: output names.
    """

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
        self.op = domain + proto.op_type
        self.inputs: tuple[str, ...] = tuple(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self._attributes = {a.name: a for a in proto.attribute}

    def __repr__(self) -> str:
        return f"{self.op} '{self.proto.name or self.outputs[0]}'"

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; strings decoded, `default` where it's left out."""
        if name not in self._attributes:
            return default
        value = helper.get_attribute_value(self._attributes[name])
        return value.decode() if isinstance(value, bytes) else value

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        return {name: self.attribute(name) for name in self._attributes}

    def input(self, index: int) -> str:
        """Name of an input; "" where it's left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @property
    def has_subgraph(self) -> bool:
        """It is an If, a Loop or a Scan."""
        kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        return any(a.type in kinds for a in self.proto.attribute)


@dataclass
class Graph:
    """A flat graph with every constant at hand.

    Attributes:
        nodes: in topological order.
        constants: initializers and Constant nodes by name.
        inputs: graph inputs: name -> (ONNX element type, shape).
        outputs: names of the graph outputs.
        shapes: static shape of each value known so far (constants not included).
        types: ONNX element type of each value known so far (constants not included).
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    inputs: dict[str, tuple[int, tuple[int, ...]]]
    outputs: list[str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    _counter: int = 0

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Static shape of a value; None if it isn't known."""
        if name in self.constants:
            return tuple(self.constants[name].shape)
        if name in self.inputs:
            return self.inputs[name][1]
        return self.shapes.get(name)

    def type(self, name: str) -> int:
        """ONNX element type of a value; 0 if it isn't known."""
        if name in self.constants:
            return int(helper.np_dtype_to_tensor_dtype(self.constants[name].dtype))
        if name in self.inputs:
            return self.inputs[name][0]
        return self.types.get(name, 0)

    def is_float(self, name: str) -> bool:
        """Whether a gradient could flow through this value."""
        return self.type(name) in FLOATS

    def fresh(self, hint: str) -> str:
        """A name nobody uses yet."""
        self._counter += 1
        return f"heal.{self._counter}.{hint}"

    def copy(self) -> Graph:
        """Another one of the same nodes and constants, which are shared."""
        return Graph(
            list(self.nodes), dict(self.constants), dict(self.inputs), list(self.outputs),
            dict(self.shapes), dict(self.types), self._counter,
        )  # fmt: skip

    def consumers(self) -> dict[str, list[int]]:
        """Value name -> indices of the nodes that read it, subgraphs included."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in set(reads(node)):
                found.setdefault(name, []).append(index)
        return found

    def producers(self) -> dict[str, int]:
        """Value name -> index of the node that writes it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    def prune(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(reads(node))
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def model(
        self,
        *,
        as_inputs: Iterable[str] = (),
        outputs: Sequence[str] | None = None,
        stub: int | None = None,
    ) -> onnx.ModelProto:
        """The graph as a model.

        Args:
            as_inputs: constants that become graph inputs instead of initializers.
            outputs: other outputs than the graph's own.
            stub: constants with more elements become inputs too (shape inference needs no weights).
        """
        inputs = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in self.inputs.items()]
        lifted, initializers = set(as_inputs), []
        for name, value in self.constants.items():
            if name in lifted or (stub is not None and value.size > stub):
                inputs.append(helper.make_tensor_value_info(name, self.type(name), value.shape))
            else:
                initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        outs = [
            helper.make_tensor_value_info(n, self.type(n) or TensorProto.FLOAT, self.shape(n))
            for n in (self.outputs if outputs is None else outputs)
        ]
        known = {*self.inputs, *self.constants, *(o.name for o in outs)}
        infos = [
            helper.make_tensor_value_info(n, self.types[n], s)
            for n, s in self.shapes.items()
            if n not in known and self.types.get(n)
        ]
        graph = helper.make_graph(self.nodes, "training", inputs, outs, initializers, value_info=infos)
        domains = {node.domain for node in self.nodes} - {"", "ai.onnx"}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="condensec")


class Emitter:
    """Writes new nodes into a list: what rewriting rules build their replacement with.

    Args:
        graph: the graph being rewritten (read for shapes; gets the new constants).
        origin: name of the node being replaced, for readable names.
    """

    def __init__(self, graph: Graph, origin: str = "") -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self._origin = origin

    def op(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name.

        Args:
            op: operator, "domain.Name" for another domain than the default.
            inputs: input names; "" leaves an optional one out.
            out: the output's name; a fresh one if None.
            attributes: attributes; None leaves one out.
        """
        return self.multi(op, inputs, [out or self.graph.fresh(f"{self._origin}.{op}")], **attributes)[0]

    def multi(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        domain, _, kind = op.rpartition(".")
        given = {k: v for k, v in attributes.items() if v is not None}
        name = self.graph.fresh(self._origin or kind)
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name, domain=domain, **given))
        return list(outputs)

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = self.graph.fresh("const")
        self.graph.constants[name] = np.asarray(value, dtype)
        return name

    def ints(self, values: Iterable[int]) -> str:
        """Add a 1-D int64 constant."""
        return self.const(list(values), np.int64)

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a value of the original graph.

        Raises:
            KeyError: it isn't known.
        """
        shape = self.graph.shape(name)
        if shape is None:
            raise KeyError(name)
        return shape

    def reshape(self, x: str, shape: Iterable[int], out: str | None = None) -> str:
        """Reshape to a static shape."""
        return self.op("Reshape", x, self.ints(shape), out=out)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those its subgraphs capture included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for sub in [attribute.g, *attribute.graphs]:
            inner = {i.name for i in sub.input} | {i.name for i in sub.initializer}
            for child in sub.node:
                yield from (name for name in reads(child) if name not in inner)
                inner.update(child.output)


def copy_node(node: onnx.NodeProto, **changes: Any) -> onnx.NodeProto:
    """A copy of a node; `input`, `output` replace the lists, other keys set attributes (None: remove)."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    for key in ("input", "output"):
        if key in changes:
            del getattr(new, key)[:]
            getattr(new, key).extend(changes.pop(key))
    kept = [a for a in new.attribute if a.name not in changes]
    del new.attribute[:]
    new.attribute.extend(kept)
    new.attribute.extend(helper.make_attribute(k, v) for k, v in changes.items() if v is not None)
    return new


Feeds = Mapping[str, np.ndarray]
