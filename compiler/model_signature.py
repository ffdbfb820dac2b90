"""The interface of a model: names, dtypes and shapes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from condensec.data.side import dim_of
from condensec.data.types import Signature, TensorSpec
from condensec.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

# operators through which every index keeps its value
_KEEPS_VALUE = frozenset(
    ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)
# com.microsoft.EmbedLayerNormalization: input -> its table
_EMBED_TABLES = {0: 2, 1: 4}


def signature(model: ir.Model) -> Signature:
    """Inputs and outputs of a model. Inputs that are initializers too (IR < 4) are weights, not inputs.

    What dims mean: `condensec.data.side.dim_of`.

    Raises:
        ModelError: an input or output isn't a tensor numpy knows.
    """
    weights = model.graph.initializers
    return Signature(
        inputs=tuple(_spec(v, index_bound(v)) for v in model.graph.inputs if v.name not in weights),
        outputs=tuple(_spec(v, None) for v in model.graph.outputs),
    )


def _spec(value: ir.Value, bound: int | None) -> TensorSpec:
    import onnx_ir as ir

    name = value.name or "?"
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise ModelError(f"'{name}' is {value.type}; only tensors are supported", node=name)
    if value.dtype is None:
        dtype = np.dtype(np.float32)  # allowed for outputs only: the type is left to inference
        if value.is_graph_input():
            raise ModelError(f"input '{name}' has no type", node=name, hint="export the model again")
    elif value.dtype == ir.DataType.STRING:
        raise ModelError(f"'{name}' holds strings; only numbers are supported", node=name)
    else:
        dtype = np.dtype(value.dtype.numpy())
    if value.shape is None:
        return TensorSpec(name, dtype, (), rank_known=False, bound=bound)
    return TensorSpec(
        name, dtype, tuple(dim_of(d if isinstance(d, int) else d.value) for d in value.shape), bound=bound
    )


def index_bound(value: ir.Value) -> int | None:
    """How many rows the smallest table has that ``value`` is an index into; None if it's none.

    Follows the value through operators that keep values to Gather and the like.
    """
    if value.dtype is None or not value.dtype.is_integer():
        return None
    bounds: list[int] = []
    seen: set[int] = set()
    pending: list[ir.Value] = [value]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, position in current.uses():
            rows = _table_rows(node, position)
            if rows is not None:
                bounds.append(rows)
            elif node.op_type in _KEEPS_VALUE and position == 0:
                pending.extend(node.outputs)
    return min(bounds, default=None)


def _table_rows(node: ir.Node, position: int) -> int | None:
    """Rows of the table into which input ``position`` of a node is an index; None if it isn't an index."""
    if node.op_type in ("Gather", "GatherElements") and position == 1:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return _extent(node.inputs, 0, axis)
    if node.op_type == "EmbedLayerNormalization" and position in _EMBED_TABLES:
        return _extent(node.inputs, _EMBED_TABLES[position], 0)
    return None


def _extent(inputs: Sequence[ir.Value | None], index: int, axis: int) -> int | None:
    table = inputs[index] if index < len(inputs) else None
    if table is None:
        return None
    shape = table.const_value.shape if table.const_value is not None else table.shape
    if shape is None:
        producer = table.producer()
        value = producer.attributes.get("value") if producer is not None else None
        shape = value.as_tensor().shape if value is not None else None
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    extent = shape[axis]
    return extent if isinstance(extent, int) else None
