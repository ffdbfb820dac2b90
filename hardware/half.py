"""Half precision: of a whole graph, and of what an int8 graph leaves in float.

TensorRT runs what it can't run in int8 in the type of the floats around it.

A Turing tensor core multiplies int8 and fp16, not fp32; NVIDIA's compiler for RTX refuses fp32 products on
that chip altogether. Scales of QuantizeLinear may be fp16 from opset 19 on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import CondensecError
from condensec.hardware.quiet import quiet_third_party
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from condensec.runner import Arrays

HALF_SCALES = 19  # opset
_WORSE, _SAME = 2.0, 0.05  # times the int8 graph's own error, and of the largest output


def raised(model: ir.Model) -> ir.Model:
    """The model at an opset whose Q/DQ take fp16, or itself where the converter can't raise it."""
    from condensec.serialized import to_ir, to_proto

    if (model.opset_imports.get("") or HALF_SCALES) >= HALF_SCALES:
        return model
    import onnx

    try:
        with quiet_third_party():
            proto = onnx.version_converter.convert_version(to_proto(model), HALF_SCALES)
    except Exception:  # the converter raises whatever its adapters do
        return model
    return to_ir(proto)


def halve(path: Path, feeds: Arrays, reference: Arrays) -> list[str]:
    """Turn the floats of an int8 graph into fp16, in place; inputs and outputs stay float32.

    Args:
        path: the graph; written anew only if the result is about as near to the reference.
        feeds: inputs to try it with.
        reference: what the fp32 model makes of them.

    Returns:
        What was done, or why not.
    """
    import onnx

    model = onnx.load_model(path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < HALF_SCALES:
        return [f"the rest stays fp32: opset {opset} has no fp16 scales"]
    try:
        half = _converted(model, op_block_list=[])
        after, before = (_error(Session(m).run(feeds), reference) for m in (half, model))
    except CondensecError as error:
        return [f"the rest stays fp32: its fp16 form doesn't run: {error.message[:120]}"]
    except Exception as error:  # the converter's own
        return [f"the rest stays fp32: {type(error).__name__} while converting"]
    if not after <= _WORSE * before + _SAME:
        return [f"the rest stays fp32: in fp16 outputs are {after:.0%} off, without {before:.0%}"]
    onnx.save_model(half, path)
    return ["the rest in fp16"]


def write(model: ir.Model, path: Path) -> list[str]:
    """Write a float graph in half precision, inputs and outputs still float32; returns notes."""
    import onnx

    from condensec.serialized import to_proto

    draft = path.with_suffix(".draft")
    onnx.save_model(_converted(to_proto(model)), draft)
    draft.replace(path)
    return ["fp16 with float32 inputs and outputs"]


def _converted(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """A copy in fp16, inputs and outputs as they are, nodes in topological order.

    The converter appends its Casts at the end, where onnxruntime takes them and ONNX's checker doesn't.
    """
    from condensec.serialized import to_ir, to_proto

    with quiet_third_party():
        from onnxruntime.transformers.float16 import convert_float_to_float16

        made = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=False, **options)
    graph = to_ir(made)
    graph.graph.sort()
    return to_proto(graph)


def _error(values: Arrays, reference: Arrays) -> float:
    """Of the output that is worst; NaN where one isn't finite and should be."""
    return float(np.max([0.0, *(_apart(values[name], wanted) for name, wanted in reference.items())]))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest value; NaN where a isn't finite and b is."""
    if b.dtype.kind != "f" or not b.size or not np.isfinite(b).all():
        return 0.0
    return float(np.abs(a - b).max() / max(1e-12, float(np.abs(b).max())))
