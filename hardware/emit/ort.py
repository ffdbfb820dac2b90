"""onnxruntime on CPUs: fp32, or int8 as QDQ."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.errors import ConfigError
from condensec.hardware import rewrite
from condensec.hardware.quantize import WEIGHTED, Scheme, folded, quantize

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Request

# u8 activations are fast and exact only where products are summed up in 32 bits at once
_DOT_PRODUCT = ("avx512_vnni", "avx_vnni")
_INT8_DEPTHWISE = ("avx512_vnni",)


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision, the likeliest first."""
    if precision != "int8":
        return ("",)
    products = [n.op_type in ("MatMul", "Gemm") for n in request.model.graph if n.op_type in WEIGHTED]
    return ("inputs", "all") if sum(products) > len(products) / 2 else ("all", "inputs")


def write(request: Request, precision: str, variant: str, path: Path) -> list[str]:
    """Write the graph in this precision; returns notes."""
    model, notes = prepared(request.model)
    if precision == "fp32":
        io.save(model, path)
    elif precision == "int8":
        notes += write_int8(model, request, variant, path)
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


def write_int8(model: ir.Model, request: Request, variant: str, path: Path) -> list[str]:
    """Write a QDQ graph; depthwise convolutions stay fp32 where int8 ones are slower.

    Args:
        model: the fp32 model.
        request: what was asked.
        path: the file to write.
        variant: "all" quantizes everything between convolutions, so that networks of convolutions stay in
            int8 throughout (ResNet-20: 0.50 of the fp32 time, against 1.26 for the other); "inputs" only what
            products read, so that norms and softmaxes stay fp32 (ViT-tiny: 0.58, against 0.75).
    """
    isa = request.target.isa
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
        source = folded(model, Path(folder) / "folded.onnx")
        slow = variant == "inputs" or isa not in _INT8_DEPTHWISE
        exclude = depthwise(io.load(source)) if slow else ()
        activations = "u8" if isa in _DOT_PRODUCT else "s8"
        quantize(source, path, request.samples, scheme(variant, activations, exclude))
    notes = [f"int8 (QDQ, {variant}), {activations} activations, s8 weights per channel"]
    if exclude:
        notes.append(f"{len(exclude)} depthwise convolutions stay fp32: int8 ones are slower")
    return notes


def scheme(variant: str, activations: str, exclude: tuple[str, ...]) -> Scheme:
    """The quantization scheme of a variant."""
    if variant == "inputs":
        return Scheme(activations=activations, exclude=exclude, ops=WEIGHTED, inputs_only=True)
    return Scheme(activations=activations, exclude=exclude)


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
