"""Shape arithmetic: small nodes on sizes, positions and indices, evaluated one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from condensec.errors import CondensecError

if TYPE_CHECKING:
    import onnx

SMALL = 4096  # elements; larger integer tensors are data, not shape arithmetic


def names(*lines: str) -> frozenset[str]:
    """A set of operators, written as lines of words."""
    return frozenset(name for line in lines for name in line.split())


FOLDABLE = names(
    "Abs Add And Cast Ceil Clip Concat ConstantOfShape CumSum Div Equal Expand Flatten Floor Gather",
    "Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Pow Range ReduceMax",
    "ReduceMin ReduceProd ReduceSum Reshape Round ScatterND Shape Size Slice Split Sqrt Squeeze Sub Sum",
    "Tile Transpose Trilu Unsqueeze Where",
)


def is_known(node: ir.Node, values: Mapping[str, object]) -> bool:
    """Whether all outputs somebody named have known values."""
    named = [o.name for o in node.outputs if o.name]
    return bool(named) and all(name in values for name in named)


def evaluate_node(
    node: ir.Node, values: Mapping[str, np.ndarray[Any, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> list[np.ndarray[Any, Any]] | None:
    """Outputs of one node of shape arithmetic, or None where an input isn't known or the result is large."""
    if node.op_type in ("Shape", "Size"):
        source = node.inputs[0]
        sizes = shapes.get(source.name or "") if source is not None else None
        if sizes is None:
            return None
        if node.op_type == "Size":
            return [np.asarray(int(np.prod(sizes)), np.int64)]
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(sizes)
        return [np.asarray(sizes, np.int64)[start:end]]
    feeds: list[np.ndarray[Any, Any] | None] = []
    for source in node.inputs:
        if source is None:
            feeds.append(None)
            continue
        array = values.get(source.name or "")
        if array is None:
            return None
        feeds.append(array)
    if node.op_type in ("Expand", "ConstantOfShape") and np.prod(np.asarray(feeds[-1], np.float64)) > SMALL:
        return None
    if node.op_type == "Range" and _range_length(feeds) > SMALL:
        return None
    results = _reference(node, feeds)
    if results is None or any(r.size > SMALL for r in results):
        return None
    return results


def _range_length(feeds: list[np.ndarray[Any, Any] | None]) -> float:
    start, stop, step = (float(np.asarray(f).reshape(-1)[0]) for f in feeds)
    return abs((stop - start) / step) if step else 0.0


def _reference(node: ir.Node, feeds: list[np.ndarray[Any, Any] | None]) -> list[np.ndarray[Any, Any]] | None:
    from onnx.reference import ReferenceEvaluator

    proto = ir.serde.serialize_node(node)
    version = node.version or (node.graph.opset_imports.get("", 17) if node.graph is not None else 17)
    names = [name for name in proto.input if name]
    arrays = dict(zip(names, [f for f in feeds if f is not None], strict=True))
    try:
        results = ReferenceEvaluator(proto, opsets={"": version}).run(None, arrays)
    except Exception:  # it lacks some operators in old opsets, such as the Unsqueeze of opset 12
        return _executed(proto, arrays, version)
    return [np.asarray(r) for r in results]


def _executed(
    proto: onnx.NodeProto, arrays: Mapping[str, np.ndarray[Any, Any]], version: int
) -> list[np.ndarray[Any, Any]] | None:
    """What onnxruntime makes of one node; None where it refuses: unknown values freeze their axes."""
    from onnx import helper

    from condensec.runner import Session

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    try:
        return [np.asarray(r) for r in Session(model, optimize=False).run(arrays).values()]
    except CondensecError:
        return None
