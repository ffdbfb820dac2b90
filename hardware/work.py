"""How much there is to compute in a model, by sizes alone: the same on every machine, so it bounds checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.hardware.nodecost import channel_axis
from condensec.hardware.quantize import QUANTIZABLE
from condensec.model_signature import signature

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from condensec.data import Samples

_LARGE = 4096  # elements; a larger weight's values say nothing about shapes


def times_within(limit: float, work: float, least: int, most: int) -> int:
    """How many times something fits into a limit, within bounds; ``most`` where nothing is known of it."""
    return int(np.clip(limit / max(1.0, work), least, most))


def macs(model: ir.Model | Path, samples: Samples) -> int:
    """Multiply-accumulates of one sample, about; see `node_macs`."""
    return sum(node_macs(model, samples).values())


def node_macs(model: ir.Model | Path, samples: Samples) -> dict[str, int]:
    """Multiply-accumulates of the weighted nodes in one sample, about, by name; none where no shape is known.

    Args:
        model: not modified; a file is read without its external weights.
        samples: say how large what is open is.
    """
    import onnx
    import onnx_ir as ir

    given = ir.load(model) if isinstance(model, Path) else model
    interface, weights = signature(given), _weights(given)
    light = _light(given, interface.sample_shapes(samples))
    try:
        inferred = onnx.shape_inference.infer_shapes(light).graph
    except onnx.shape_inference.InferenceError:  # the runtime may take it all the same
        return {}
    outputs = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.output)}
    found: dict[str, int] = {}
    for node in light.graph.node:
        shape = weights.get(node.input[1], ()) if node.op_type in QUANTIZABLE else ()
        dims = [max(1, dim.dim_value) for dim in outputs.get(node.output[0], ())]
        if shape:
            channels = shape[channel_axis(node, len(shape))]
            number = int(np.prod(shape)) // max(1, channels) * int(np.prod(dims, dtype=np.int64))
            found[node.name] = found.get(node.name, 0) + number // (interface.batch or 1)
    return found


def _light(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy with these inputs; large weights are inputs, too, so that it's small however large they are."""
    import onnx_ir as ir

    copy = model.clone()
    for value in copy.graph.inputs:
        sizes = shapes.get(value.name or "")
        if sizes is not None and value.shape is not None:
            given = zip(value.shape, sizes, strict=False)
            value.shape = ir.Shape([d if isinstance(d, int) and d > 0 else size for d, size in given])
    taken = set(copy.graph.inputs)
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > _LARGE:
            del copy.graph.initializers[name]
            value.const_value, value.shape, value.dtype = None, ir.Shape(tensor.shape.numpy()), tensor.dtype
            if value not in taken:
                copy.graph.inputs.append(value)
    return ir.to_proto(copy)


def _weights(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Shapes of what a weighted node may read as its weight, however the file stores it."""
    tensors = {name: v.const_value for name, v in model.graph.initializers.items()}
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            tensors[node.outputs[0].name or ""] = node.attributes["value"].as_tensor()
    found = {name: tuple(tensor.shape.numpy()) for name, tensor in tensors.items() if tensor is not None}
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is not None and source.name in found:
            found[node.outputs[0].name or ""] = found[source.name]
    return found
