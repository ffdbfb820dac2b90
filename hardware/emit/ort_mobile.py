"""onnxruntime's mobile packages: fixed shapes, so that NNAPI, CoreML and XNNPACK can take the graph.

Always ONNX, never ``.ort``: converting on an x86 machine bakes its choices in (fp16 silently becomes fp32),
and only minimal builds need it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.hardware import rewrite
from condensec.hardware.emit.ort import depthwise, prepared, scheme
from condensec.hardware.emit.ort import variants as ort_variants
from condensec.hardware.quantize import folded, quantize
from condensec.hardware.quiet import quiet_third_party
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Request


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision, the likeliest first."""
    return ort_variants(request, precision)


def write(request: Request, precision: str, variant: str, path: Path) -> list[str]:
    """Write the graph in this precision; returns notes."""
    model, notes = prepared(request.model)
    shapes = request.shapes()
    outputs = {name: value.shape for name, value in Session(model).run(request.feeds()).items()}
    rewrite.fix_shapes(model, shapes, outputs)
    notes.append("fixed shapes: " + ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in shapes.items()))
    if precision == "int8":
        notes += _write_int8(model, request, variant, path)
    elif precision == "fp16":
        notes += write_fp16(model, path)
    else:
        io.save(model, path)
    return notes + usability(path)


def command(request: Request, path: Path, precision: str) -> str:
    """How to measure it on the phone."""
    return f"adb shell ./onnxruntime_perf_test -I -e cpu -m times -r 100 -x 1 -y 1 {path.name}"


def _write_int8(model: ir.Model, request: Request, variant: str, path: Path) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
        source = folded(model, Path(folder) / "folded.onnx")
        plain = io.load(source)
        odd = [name for name in depthwise(plain) if not _multiple_of_16(plain, name)]
        quantize(source, path, request.samples, scheme(variant, "s8", tuple(odd)))
    notes = [f"int8 (QDQ, {variant}), s8 activations, s8 weights per channel"]
    if odd:
        notes.append(f"{len(odd)} depthwise convolutions of no multiple of 16 channels stay fp32")
    return notes


def _multiple_of_16(model: ir.Model, name: str) -> bool:
    node = next(n for n in model.graph if n.name == name)
    weight = node.inputs[1]
    channels = weight.shape[0] if weight is not None and weight.shape is not None else None
    return isinstance(channels, int) and channels % 16 == 0


def write_fp16(model: ir.Model, path: Path) -> list[str]:
    """Write the graph in half precision, inputs and outputs still float32."""
    from condensec.serialized import to_proto

    with quiet_third_party():
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(to_proto(model), keep_io_types=True, disable_shape_infer=False)
        draft = path.with_suffix(".draft")
        onnx.save_model(half, draft)
        draft.replace(path)
    return ["fp16 with float32 inputs and outputs"]


def usability(path: Path) -> list[str]:
    """What onnxruntime's own checker says about NNAPI and CoreML, one line each."""
    with quiet_third_party():
        import onnx
        from onnxruntime.tools.mobile_helpers import usability_checker as checker
        from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo

        try:
            model = ModelProtoWithShapeInfo(path).model_with_shape_info
            total = len(model.graph.node)
            found = {
                "NNAPI": checker.check_nnapi_partitions(model, require_fixed_input_sizes=True),
                "CoreML": checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
            }
        except (onnx.checker.ValidationError, Exception) as error:
            return [f"the mobile usability check failed: {type(error).__name__}"]
    return [
        f"{name} takes {info.num_supported_nodes} of {total} nodes in {info.num_partitions} partitions"
        for name, info in found.items()
    ]
