"""Weights that the graph computes from other weights become constants before anything is cut.

Weight standardization, weight norm and the like take means and norms over a weight's own axes. Cutting what
goes in would change what comes out for the rows that stay, and setting it to zero would, too: only the
result can be cut. (Qiao et al. 2019, arXiv:1903.10520; Salimans & Kingma 2016, arXiv:1602.07868.)
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from condensec.errors import CondensecError
from condensec.randomness import RANDOM
from condensec.runner import Session

MIXES = frozenset(
    (
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"),
        *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
        *("Conv", "Einsum", "Gemm", "MatMul", "Softmax"),
    )
)
GROWTH = 2  # a result larger than so many times what it's computed from stays computed
# shapes, indices and text, not parameters
NO_WEIGHTS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)


def fold_weights(model: ir.Model) -> tuple[str, ...]:
    """Make initializers of what is computed from weights alone by an operator that mixes an axis, in place.

    Views, casts and elementwise operators of weights stay as they are where nothing mixes; arithmetic on
    sizes and what nodes with bodies read stay, too.

    Args:
        model: its functions inlined.

    Returns:
        The names of the values that are initializers now.
    """
    graph = model.graph
    mixed = _mixed(graph)
    wanted = [
        value
        for value in mixed
        if value.name
        and not value.is_graph_output()
        and any(set(use.node.outputs).isdisjoint(mixed) for use in value.uses())
    ]
    if not wanted:
        return ()
    ir_passes.RemoveInitializersFromInputsPass()(model)
    part = ir.Model(ir.convenience.extract(graph, [], wanted), ir_version=model.ir_version)
    try:
        values = Session(part, optimize=False).run({})
    except CondensecError:  # onnxruntime doesn't compute that: it stays as it is
        return ()
    folded = []
    for value in wanted:
        name = value.name or ""
        array = values[name]
        if array.dtype.kind != "f" or array.nbytes > GROWTH * mixed[value]:
            continue
        _replace(graph, value, ir.Tensor(array, name=name))
        folded.append(name)
    ir_passes.RemoveUnusedNodesPass()(model)
    return tuple(folded)


def _mixed(graph: ir.Graph) -> dict[ir.Value, int]:
    """Values that an operator of `MIXES` makes of weights, and all made of those; bytes they're made from."""
    known: dict[ir.Value, int] = {
        value: value.const_value.nbytes
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    found: dict[ir.Value, int] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not all(value in known for value in inputs) or not _is_plain(node, inputs):
            continue
        size = sum({value: known[value] for value in inputs}.values())
        if not inputs:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            size = 0 if tensor is None else tensor.nbytes
        for value in node.outputs:
            known[value] = size
        mixes = node.op_type in MIXES and _is_weight(inputs[0])
        if mixes or any(value in found for value in inputs):
            found.update(dict.fromkeys(node.outputs, size))
    return found


def _is_plain(node: ir.Node, inputs: list[ir.Value]) -> bool:
    """Whether a node gives the same for the same inputs, and has no body."""
    if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM:
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    return bool(inputs) or node.op_type == "Constant"


def _is_weight(value: ir.Value) -> bool:
    """Whether it may be a weight, or made of one: no sizes, indices or text."""
    return (value.const_value.dtype if value.const_value is not None else value.dtype) not in NO_WEIGHTS


def _replace(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """An initializer of the same name in the place of a computed value."""
    name = value.name
    fresh = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    value.name = f"{name}.computed"
    value.replace_all_uses_with(fresh)
    graph.register_initializer(fresh)
