"""onnxruntime's mobile packages: fixed shapes, so that NNAPI, CoreML and XNNPACK can take the graph.

The graph to deploy is always ONNX. `ort_format` writes the ``.ort`` that minimal builds of the runtime need,
and the list of operators such a build has to contain; converting on an x86 machine bakes its choices in (fp16
silently becomes fp32), so the conversion keeps to what every machine gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.hardware import half, int8, rewrite
from condensec.hardware.emit.ort import depthwise, prepared, scheme
from condensec.hardware.emit.ort import variants as ort_variants
from condensec.hardware.mobile_checks import usability
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Recipe, Request


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision, the likeliest first."""
    return ort_variants(request, precision)


def write(request: Request, recipe: Recipe, path: Path) -> list[str]:
    """Write the graph as the recipe says; returns notes."""
    if recipe.plain:
        io.save(request.model, path)
        return ["shapes are as they were"]
    model, notes = request.once("fixed", lambda: fixed(request))
    notes = list(notes)
    if recipe.precision == "int8":
        int8.write(request, lambda: model, recipe, scheme(recipe, "s8"), path)
        notes.append(f"int8 (QDQ, {recipe.variant}), s8 activations, s8 weights per channel")
    elif recipe.precision == "fp16":
        notes += half.write(model, path)
    else:
        io.save(model, path)
    return notes + usability(path)


def slow(request: Request, variant: str) -> dict[str, str]:
    """Layers that stay fp32, and why: there's no phone here to measure on."""
    model = request.once("fixed", lambda: fixed(request))[0]
    layers = depthwise(int8.source_graph(request, lambda: model))
    reason = "int8 depthwise convolutions want a multiple of 16 channels"
    return {name: reason for name, channels in layers.items() if channels % 16}


def doubtful(request: Request, variant: str) -> dict[str, str]:
    """Layers to try in fp32, too, on a phone that can be measured."""
    model = request.once("fixed", lambda: fixed(request))[0]
    found = depthwise(int8.source_graph(request, lambda: model))
    return dict.fromkeys(found, "depthwise; measured faster in fp32")


def command(request: Request, path: Path, precision: str) -> str:
    """How to measure it on the phone."""
    return f"adb shell ./onnxruntime_perf_test -I -e cpu -m times -r 100 -x 1 -y 1 {path.name}"


def fixed(request: Request) -> tuple[ir.Model, list[str]]:
    """A copy of the model with the shapes of one call, and notes."""
    model, notes = prepared(request.model)
    shapes = request.shapes()
    outputs = {name: value.shape for name, value in Session(model).run(request.feeds()).items()}
    rewrite.fix_shapes(model, shapes, outputs)
    rewrite.flatten_to_reshape(model)
    notes.append("fixed shapes: " + ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in shapes.items()))
    return model, notes
