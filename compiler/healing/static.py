"""Read a model into a `Graph` with static shapes: fixed input shapes, shape arithmetic folded away.

Training runs at one batch shape, so nothing in the copy needs to stay dynamic. Shapes are inferred by
onnx; what depends on shapes only is computed once by onnxruntime; both are repeated until nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from condensec.errors import CondensecError, HealError
from condensec.healing.graph import Feeds, Graph, Node, copy_node, reads
from condensec.healing.opset import bump, late
from condensec.randomness import RANDOM

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_YOUNG = frozenset(  # operators of opsets 21 to 27 that are functions of older ones
    (
        "Attention",
        "CausalConvWithState",
        "LinearAttention",
        "RMSNormalization",
        "RotaryEmbedding",
        "SwiGLU",
        "Swish",
    )
)
_FOLD_LIMIT = 1 << 24  # elements; a constant above that is left to be computed at run time


def read(model: onnx.ModelProto, feeds: Feeds) -> tuple[Graph, frozenset[str]]:
    """A static float32 copy of a model.

    Args:
        model: with its weights loaded.
        feeds: one batch of inputs; gives the shapes, and the values where a shape can't be inferred.

    Returns:
        The graph, and the names of the file's own float constants of more than one element: its weights,
        and whatever else is stored as such.

    Raises:
        HealError: a value's shape can't be found out, even by running the model.
    """
    model = _inlined(model)
    graph = _flatten(model, {name: array.shape for name, array in feeds.items()})
    weights = frozenset(n for n, v in graph.constants.items() if v.dtype == np.float32 and v.size > 1)
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    bump(graph, min(versions, default=20))
    graph.prune()
    _resolve(graph, weights, feeds)
    late(graph)
    infer(graph)
    return graph, weights


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Local functions, and operators younger than the copy's opset, replaced by what they stand for."""
    from onnx import inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    young = {n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx")} & _YOUNG
    if young:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for t in model.graph.initializer:  # the inliner asks for the types of initializers too
            model.graph.value_info.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
        ids = [("", name) for name in sorted(young)]
        model = inliner.inline_selected_functions(model, ids, inline_schema_functions=True)
    return model


def _flatten(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """Constants lifted out, half and double precision turned to single."""
    constants = {t.name: _single(numpy_helper.to_array(t)) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constants[node.output[0]] = _single(_constant(node))
        else:
            nodes.append(_single_node(node))
    inputs = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type.elem_type
        inputs[value.name] = (TensorProto.FLOAT if kind in _HALVES else kind, tuple(shapes[value.name]))
    return Graph(nodes, constants, inputs, [o.name for o in model.graph.output])


def _single(array: np.ndarray) -> np.ndarray:
    is_wide_or_narrow = array.dtype.kind in "fV" or "float" in array.dtype.name
    return array.astype(np.float32) if is_wide_or_narrow and array.dtype != np.float32 else array


def _single_node(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.op_type == "Cast" and any(a.name == "to" and a.i in _HALVES for a in node.attribute):
        return copy_node(node, to=int(TensorProto.FLOAT))
    if node.op_type == "ConstantOfShape":
        value = Node(node).attribute("value")
        if value is not None and value.data_type in _HALVES:
            array = _single(numpy_helper.to_array(value))
            return copy_node(node, value=numpy_helper.from_array(array))
    return node


def _constant(node: onnx.NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise HealError(f"Constant '{node.output[0]}' holds {attribute.name}, which can't be trained with")


def _resolve(graph: Graph, weights: frozenset[str], feeds: Feeds) -> None:
    """Infer shapes and fold until nothing changes; run the model for what is still unknown."""
    for _ in range(24):
        infer(graph)
        if not (_fold_shapes(graph) | _fold_nodes(graph, weights)):
            break
    unknown = _unknown(graph)
    if not unknown:
        return
    _observe(graph, unknown, feeds)
    while _fold_shapes(graph) | _fold_nodes(graph, weights):
        infer(graph)
    if _unknown(graph):
        raise HealError(
            f"the shape of value '{_unknown(graph)[0]}' can't be found out, so it can't be trained"
        )


def infer(graph: Graph) -> None:
    """Fill in types and static shapes as far as onnx's shape inference knows them."""
    seen = {name: graph.shapes.get(name) for name in graph.outputs}
    model = graph.model(stub=4096)
    for output in model.graph.output:  # what a stale copy says must not bind the inference
        if seen.get(output.name) is None:
            output.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        tensor = value.type.tensor_type
        if not tensor.elem_type or value.name in graph.constants:
            continue
        graph.types[value.name] = tensor.elem_type
        dims = tensor.shape.dim
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            graph.shapes[value.name] = tuple(d.dim_value for d in dims)


def _unknown(graph: Graph) -> list[str]:
    names = [name for node in graph.nodes for name in node.output if name]
    return [name for name in names if graph.shape(name) is None or not graph.type(name)]


def _fold_shapes(graph: Graph) -> bool:
    """Replace Shape and Size of values whose shape is known."""
    kept = []
    for proto in graph.nodes:
        node = Node(proto)
        shape = graph.shape(node.input(0)) if node.op in ("Shape", "Size") else None
        if shape is None:
            kept.append(proto)
        elif node.op == "Size":
            graph.constants[node.outputs[0]] = np.asarray(int(np.prod(shape)), np.int64)
        else:
            part = slice(node.attribute("start", 0), node.attribute("end"))
            graph.constants[node.outputs[0]] = np.asarray(shape[part], np.int64)
    changed = len(kept) < len(graph.nodes)
    graph.nodes = kept
    return changed


def _fold_nodes(graph: Graph, weights: frozenset[str]) -> bool:
    """Compute what depends neither on inputs nor on weights, with onnxruntime, all at once."""
    known = set(graph.constants) - weights
    foldable = []
    for node in graph.nodes:
        small = all(np.prod(graph.shape(n) or ()) <= _FOLD_LIMIT for n in node.output if n)
        plain = node.op_type not in RANDOM and not Node(node).has_subgraph
        if plain and small and all(name in known for name in reads(node)):
            foldable.append(node)
            known.update(name for name in node.output if name)
    if not foldable:
        return False
    wanted = [name for node in foldable for name in node.output if name]
    used = {name for node in foldable for name in reads(node)}
    part = Graph(foldable, {n: v for n, v in graph.constants.items() if n in used}, {}, wanted)
    part.types, part.shapes = dict(graph.types), {}
    graph.constants.update(run(part, {}))
    dropped = {id(node) for node in foldable}
    graph.nodes = [node for node in graph.nodes if id(node) not in dropped]
    graph.prune()
    return True


def run(graph: Graph, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a graph as it stands; missing types of its outputs are left to onnxruntime.

    Raises:
        HealError: onnxruntime can't run it.
    """
    model = graph.model()
    for value in model.graph.output:
        if not graph.type(value.name):
            value.ClearField("type")
        elif graph.shape(value.name) is None:
            value.type.tensor_type.ClearField("shape")
    return run_model(model, feeds)


def run_model(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a model once, unoptimised.

    Raises:
        HealError: onnxruntime can't run it.
    """
    from condensec.runner import Session

    try:
        return dict(Session(model, optimize=False).run(feeds))
    except CondensecError as error:
        raise HealError(f"the training copy can't be run: {error}") from error


def _observe(graph: Graph, names: list[str], feeds: Feeds) -> None:
    """Take shapes and types from a real run."""
    seen = Graph(graph.nodes, graph.constants, graph.inputs, names, dict(graph.shapes), dict(graph.types))
    fitting = {n: feeds[n].astype(helper.tensor_dtype_to_np_dtype(t)) for n, (t, _) in graph.inputs.items()}
    for name, array in run(seen, fitting).items():
        graph.shapes[name] = array.shape
        graph.types[name] = int(helper.np_dtype_to_tensor_dtype(array.dtype))
