"""TensorRT: explicit symmetric int8 with float biases and fp16 elsewhere, or fp16, for strongly typed builds.

TensorRT wants zero-points of 0, Q/DQ only at the inputs of products, float biases, and no operators of
onnxruntime's own. The last touches are onnx-graphsurgeon's, NVIDIA's own tool.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec import io
from condensec.errors import PostconditionError
from condensec.hardware import half, int8, rewrite
from condensec.hardware.quantize import QUANTIZABLE, Scheme
from condensec.hardware.quiet import quiet_third_party
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Recipe, Request

_QDQ = ("QuantizeLinear", "DequantizeLinear")


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision: there's one."""
    return ("",)


def write(request: Request, recipe: Recipe, path: Path) -> list[str]:
    """Write the graph as the recipe says; returns notes."""
    if recipe.plain:
        io.save(request.model, path)
        return []
    model, notes = request.once("flushed", lambda: flushed(request.model))
    notes = list(notes)
    if recipe.precision == "int8":
        scheme = Scheme("s8", symmetric=True, quantize_bias=False, ops=QUANTIZABLE, inputs_only=True)
        int8.write(request, lambda: half.raised(model), recipe, scheme, path)
        tidy(path)
        notes.append("int8: explicit symmetric Q/DQ at the inputs of products, float biases")
        feeds = request.feeds()
        notes += half.halve(path, feeds, request.once("one call", lambda: Session(request.model).run(feeds)))
    elif recipe.precision == "fp16":
        notes += half.write(model, path)
    else:
        io.save(model, path)
    return notes


def slow(request: Request, variant: str) -> dict[str, str]:
    """Layers that stay fp32, and why: none; TensorRT times kernels itself when it builds an engine."""
    return {}


def doubtful(request: Request, variant: str) -> dict[str, str]:
    """Layers to try in fp32, too: none, for the same reason."""
    return {}


def flushed(source: ir.Model) -> tuple[ir.Model, list[str]]:
    """A copy without denormal weights, and notes about it."""
    model = source.clone()
    count = rewrite.flush_denormals(model)
    return model, [f"{count} denormal weights were flushed to zero"] if count else []


def command(request: Request, path: Path, precision: str) -> str:
    """The trtexec line that builds and times an engine on the device.

    Dynamic inputs get an optimisation profile of one to eight samples; from Ampere on 2:4 zeros are used.
    """
    dynamic = {
        v.name or "": request.shapes()[v.name or ""]
        for v in request.model.graph.inputs
        if v.name in request.shapes() and v.shape is not None and not v.shape.is_static()
    }
    typed = {"int8": " --stronglyTyped", "fp16": " --stronglyTyped"}.get(precision, "")
    one = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in dynamic.items())
    many = ",".join(f"{name}:{'x'.join(map(str, (8, *shape[1:])))}" for name, shape in dynamic.items())
    profile = f" --minShapes={one} --optShapes={one} --maxShapes={many}" if dynamic else ""
    sparse = " --sparsity=enable" if "2:4" in request.target.sparsity else ""
    return f"trtexec --onnx={path}{typed}{profile}{sparse} --useCudaGraph --noDataTransfers"


def tidy(path: Path) -> None:
    """Clean the graph up and check the dialect's rules.

    Raises:
        PostconditionError: the graph breaks one.
    """
    with quiet_third_party():
        import onnx
        import onnx_graphsurgeon as gs

        graph = gs.import_onnx(onnx.load_model(path))
        graph.cleanup().toposort()
        _check_rules(graph, path)
        onnx.save_model(gs.export_onnx(graph), path)


def _check_rules(graph: Any, path: Path) -> None:
    import onnx_graphsurgeon as gs

    for node in graph.nodes:
        if node.domain not in (None, "", "ai.onnx"):
            raise PostconditionError(
                f"{path.name}: '{node.op}' of {node.domain} isn't an operator TensorRT knows", node=node.name
            )
        if node.op in _QDQ and len(node.inputs) > 2:
            zero = node.inputs[2]
            if not isinstance(zero, gs.Constant) or np.any(zero.values):
                raise PostconditionError(f"{path.name}: zero-point of '{node.name}' isn't 0", node=node.name)
        held = node.inputs[0] if node.op == "DequantizeLinear" else None
        if isinstance(held, gs.Constant) and held.values.dtype != np.int8:
            raise PostconditionError(f"{path.name}: '{node.name}' holds an int32 bias", node=node.name)
