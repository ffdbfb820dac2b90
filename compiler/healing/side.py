"""Inputs without a sample axis, in a model as protobuf (see `condensec.data.side`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.data.side import Shape, dim_of, side_inputs, single_call

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples


def ports(model: onnx.ModelProto, without: Collection[str] = ()) -> list[tuple[str, Shape, bool]]:
    """Name, shape and whether the rank is known, of each input that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name not in weights and value.name not in without:
            found.append((value.name, dims(value), value.type.tensor_type.HasField("shape")))
    return found


def dims(value: onnx.ValueInfoProto) -> Shape:
    """The shape of an input or output, see `condensec.data.side.dim_of`."""
    found = value.type.tensor_type.shape.dim
    return tuple(dim_of(d.dim_value if d.HasField("dim_value") else d.dim_param) for d in found)


def settled(model: onnx.ModelProto, samples: Samples, rows: int) -> onnx.ModelProto:
    """The model with its side inputs as constants, for calls of ``rows`` samples."""
    import onnx
    from onnx import numpy_helper

    given = ports(model)
    sides = side_inputs(given)
    if not sides:
        return model
    feeds: dict[str, np.ndarray[Any, Any]] = {
        name: np.take(array, np.arange(rows), axis=0, mode="wrap") for name, array in samples.inputs.items()
    }
    values = single_call(given, feeds)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in copy.graph.input if value.name not in sides]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(np.array(values[n]), n) for n in sorted(sides))
    return copy
