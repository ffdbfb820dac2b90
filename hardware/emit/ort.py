"""onnxruntime on CPUs: fp32, or int8 as QDQ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.errors import ConfigError
from condensec.hardware import int8, rewrite
from condensec.hardware.quantize import QUANTIZABLE, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Recipe, Request

# products of u8 and s8 are summed up in 32 bits at once; on other x86 two are added in 16 bits first
_DOT_PRODUCT = ("avx512_vnni", "avx_vnni")
ALL, INPUTS = "all", "inputs"


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision, the likeliest first.

    "all" quantizes everything between convolutions, so that networks of convolutions stay in int8 throughout
    (ResNet-20: 0.50 of the fp32 time, against 1.26 for the other); "inputs" only what products read, so that
    norms and softmaxes stay fp32 (ViT-tiny: 0.58, against 0.75).
    """
    if precision != "int8":
        return ("",)
    products = [n.op_type in ("MatMul", "Gemm") for n in request.model.graph if n.op_type in QUANTIZABLE]
    return (INPUTS, ALL) if sum(products) > len(products) / 2 else (ALL, INPUTS)


def write(request: Request, recipe: Recipe, path: Path) -> list[str]:
    """Write the graph as the recipe says; returns notes."""
    if recipe.precision == "int8":
        wanted = _suited(scheme(recipe, "u8"), request.target.isa)
        int8.write(request, lambda: prepared(request.model)[0], recipe, wanted, path)
        weights = "s8 weights of 7 bits, whose products fit 16," if wanted.reduce_range else "s8 weights"
        return [f"int8 (QDQ, {recipe.variant}), {wanted.activations} activations, {weights} per channel"]
    if recipe.precision != "fp32":
        raise ConfigError(f"{recipe.precision} isn't a precision of onnxruntime on this CPU")
    model, notes = (request.model, []) if recipe.plain else prepared(request.model)
    io.save(model, path)
    return notes


def slow(request: Request, variant: str) -> dict[str, str]:
    """Layers that stay fp32 where nothing can be measured, and why."""
    layers = depthwise(_source(request))
    if variant == INPUTS:
        return dict.fromkeys(layers, "depthwise convolutions are slower in int8")
    reason = "int8 depthwise convolutions want a multiple of 16 channels"
    return {name: reason for name, channels in layers.items() if channels % 16}


def doubtful(request: Request, variant: str) -> dict[str, str]:
    """Layers to try in fp32, too, where it can be measured, and the reason if that is faster."""
    return dict.fromkeys(depthwise(_source(request)), "depthwise; measured faster in fp32")


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


def scheme(recipe: Recipe, activations: str) -> Scheme:
    """The quantization scheme of a variant."""
    if recipe.variant == INPUTS:
        return Scheme(activations=activations, ops=QUANTIZABLE, inputs_only=True, shielded=True)
    return Scheme(activations=activations, shielded=True)


def _suited(wanted: Scheme, isa: str) -> Scheme:
    """With types that are exact and fast at a level: s8 on ARM, 7-bit weights on x86 without VNNI."""
    if isa.startswith("arm"):
        return replace(wanted, activations="s8")
    return replace(wanted, reduce_range=isa not in _DOT_PRODUCT)


def _source(request: Request) -> ir.Model:
    return int8.source_graph(request, lambda: prepared(request.model)[0])


def depthwise(model: ir.Model) -> dict[str, int]:
    """Names of the depthwise convolutions, and their channels."""
    found = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is None or weight.shape is None:
            continue
        groups, channels = node.attributes.get_int("group", 1), weight.shape[0]
        if groups and groups > 1 and weight.shape[1] == 1 and isinstance(channels, int):
            found[node.name or ""] = channels
    return found
