"""The gradient graph made faster: what its builder writes, in quicker operators that give the same.

Each file knows one family of operators. A rule is a function of a node that gives the nodes to put in its
place, or None where there is nothing to gain. Convolutions in blocks of channels come in between, because
they depend on their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import onnx

from condensec.healing.gradient_graph import product, selection, trial
from condensec.healing.gradient_graph.activation import clip_masks, relu_gradient
from condensec.healing.gradient_graph.blocked import Blocked
from condensec.healing.gradient_graph.convolution import data_gradient
from condensec.healing.gradient_graph.gelu import erf_products, gelu_gradient
from condensec.healing.gradient_graph.layout import DOMAIN
from condensec.healing.gradient_graph.normalization import layer_gradient
from condensec.healing.gradient_graph.writing import Shape, Writer
from condensec.healing.graph import reads
from condensec.healing.stepper import constant_value

__all__ = ["improve", "trial"]

Rule = Callable[[onnx.NodeProto, Writer], list[onnx.NodeProto] | None]
FIRST: dict[str, Rule] = {
    "ReluGrad": relu_gradient,
    "LayerNormalizationGrad": layer_gradient,
    "GeluGrad": gelu_gradient,
}
Rules = Callable[[list[onnx.NodeProto], Writer], tuple[list[onnx.NodeProto], int]]
WHOLE: dict[str, Rules] = {"Clip": clip_masks, "GatherGrad": selection.rewrite, "Erf": erf_products}
LAST: dict[str, Rule] = {"ConvGrad": data_gradient}


def improve(path: Path, block: int = 0) -> dict[str, int]:
    """Rewrite a gradient graph in place.

    Args:
        path: file of a graph in which every weight is an input or initializer of known shape.
        block: channels a block where the worker's onnxruntime has blocked convolutions; 0 = it hasn't.

    Returns:
        What was changed -> how often.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    writer = Writer(_shapes(graph), _scalars(graph), _measured(graph))
    changed: dict[str, int] = {}
    nodes = _applied(FIRST, graph.node, writer, changed)
    for name, rule in WHOLE.items():
        nodes, count = rule(nodes, writer)
        changed |= {name: count} if count else {}
    if block:
        blocked = Blocked(writer, block)
        nodes = blocked.rewrite(nodes, [o.name for o in graph.output])
        nodes, products = product.rewrite(nodes, writer, block)
        counts = {"blocked": blocked.changed, "Gemm": products}
        changed |= {name: count for name, count in counts.items() if count}
        if any(counts.values()):
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    nodes = _applied(LAST, nodes, writer, changed)
    if changed:
        del graph.node[:]
        graph.node.extend(_needed(nodes, [o.name for o in graph.output]))
        graph.initializer.extend(writer.constants.values())
        path.write_bytes(model.SerializeToString())
    return changed


def _applied(
    rules: Mapping[str, Rule], nodes: Iterable[onnx.NodeProto], writer: Writer, changed: dict[str, int]
) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    for node in nodes:
        rule = rules.get(node.op_type)
        new = rule(node, writer) if rule else None
        found += [node] if new is None else new
        if new is not None:
            changed[node.op_type] = changed.get(node.op_type, 0) + 1
    return found


def _needed(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Without those whose results nobody reads any more; onnxruntime would run them."""
    needed = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    return kept[::-1]


def _scalars(graph: onnx.GraphProto) -> dict[str, float]:
    """Constants of one element."""
    tensors = {t.name: t for t in graph.initializer if prod(t.dims) == 1}
    values = {name: onnx.numpy_helper.to_array(t) for name, t in tensors.items()}
    for node in graph.node:
        value = constant_value(node)
        if value is not None and value.size == 1:
            values[node.output[0]] = value
    return {name: float(value.reshape(())) for name, value in values.items() if value.dtype.kind in "fiu"}


def _measured(graph: onnx.GraphProto) -> dict[str, str]:
    """Value that holds a shape -> the value whose shape it is."""
    whole = (
        n for n in graph.node if n.op_type == "Shape" and not any(a.i or a.name == "end" for a in n.attribute)
    )
    return {node.output[0]: node.input[0] for node in whole}


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Value -> its shape, of all float values whose shape is static."""
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        if kind.elem_type == onnx.TensorProto.FLOAT and 0 not in shape and kind.HasField("shape"):
            found[value.name] = shape
    return found
