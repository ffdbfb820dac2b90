"""onnxruntime on CPUs: fp32, or int8 as QDQ."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.errors import ConfigError
from condensec.hardware import rewrite
from condensec.hardware.quantize import Scheme, folded, quantize

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Request

# u8 activations are fast and exact only where products are summed up in 32 bits at once
_DOT_PRODUCT = ("avx512_vnni", "avx_vnni")
_INT8_DEPTHWISE = ("avx512_vnni",)


def write(request: Request, precision: str, path: Path) -> list[str]:
    """Write the graph in this precision; returns notes."""
    model, notes = prepared(request.model)
    if precision == "fp32":
        io.save(model, path)
    elif precision == "int8":
        notes += write_int8(model, request, path)
    else:
        raise ConfigError(f"{precision} isn't a precision of onnxruntime on this CPU")
    return notes


def command(request: Request, path: Path, precision: str) -> str:
    """How to measure it with onnxruntime's own tool."""
    return f"onnxruntime_perf_test -I -e cpu -m times -r 100 -x 1 -y 1 {path}"


def prepared(source: ir.Model) -> tuple[ir.Model, list[str]]:
    """A copy in which what costs time and changes nothing is gone, and notes about it."""
    model, notes = source.clone(), []
    if flushed := rewrite.flush_denormals(model):
        notes.append(f"{flushed} denormal weights were flushed to zero")
    if fused := rewrite.fuse_hard_sigmoid(model):
        notes.append(f"{fused} spelled-out hard sigmoids were fused")
    return model, notes


def write_int8(model: ir.Model, request: Request, path: Path) -> list[str]:
    """Write a QDQ graph; depthwise convolutions stay fp32 where int8 ones are slower."""
    isa = request.target.isa
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
        source = folded(model, Path(folder) / "folded.onnx")
        exclude = () if isa in _INT8_DEPTHWISE else depthwise(io.load(source))
        activations = "u8" if isa in _DOT_PRODUCT else "s8"
        quantize(source, path, request.samples, Scheme(activations=activations, exclude=exclude))
    notes = [f"int8 (QDQ), {activations} activations, s8 weights per channel"]
    if exclude:
        notes.append(f"{len(exclude)} depthwise convolutions stay fp32: int8 is slower without VNNI")
    return notes


def depthwise(model: ir.Model) -> tuple[str, ...]:
    """Names of the depthwise convolutions."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is None or weight.shape is None:
            continue
        groups = node.attributes.get_int("group", 1)
        if groups and groups > 1 and weight.shape[1] == 1:
            found.append(node.name or "")
    return tuple(found)
