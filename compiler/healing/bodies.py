"""Weights that only bodies of If, Loop and Scan use: training can't reach them, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import onnx

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)


def weights_in_bodies(model: onnx.ModelProto) -> dict[str, tuple[int, str]]:
    """Weights that a body holds or captures: name as in plans -> (elements, reason why they don't train)."""
    outer = {t.name: prod(t.dims) for t in model.graph.initializer if t.data_type in _FLOATS}
    direct = {name for node in model.graph.node for name in node.input}
    found: dict[str, tuple[int, str]] = {}
    for node in model.graph.node:
        reason = f"in a body of {node.op_type} '{node.name or next(iter(node.output), '')}'"
        for name, size in _inside(node, "", outer):
            if size > 1 and name not in direct:
                found.setdefault(name, (size, reason))
    return found


def _inside(node: onnx.NodeProto, prefix: str, outer: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(name, elements) of all weights in a node's bodies."""
    first = next((o for o in node.output if o), "")
    for attribute in node.attribute:
        if not attribute.HasField("g"):
            continue
        scope, body = f"{prefix}{first}[{attribute.name}].", attribute.g
        own = {t.name: prod(t.dims) for t in body.initializer if t.data_type in _FLOATS}
        for inner in body.node:
            value = next(
                (a.t for a in inner.attribute if inner.op_type == "Constant" and a.name == "value"), None
            )
            if value is not None and value.data_type in _FLOATS:
                own[inner.output[0]] = prod(value.dims)
        yield from ((f"{scope}{name}", size) for name, size in own.items())
        for inner in body.node:
            yield from ((name, outer[name]) for name in inner.input if name in outer and name not in own)
            yield from _inside(inner, scope, outer)
