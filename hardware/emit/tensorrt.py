"""TensorRT: explicit symmetric int8 with float biases, or fp16 for strongly typed builds.

TensorRT wants zero-points of 0, Q/DQ only at the inputs of products, float biases, and no operators of
onnxruntime's own. The last touches are onnx-graphsurgeon's, NVIDIA's own tool.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec import io
from condensec.errors import PostconditionError
from condensec.hardware import rewrite
from condensec.hardware.emit.ort_mobile import write_fp16
from condensec.hardware.quantize import WEIGHTED, Scheme, folded, quantize
from condensec.hardware.quiet import quiet_third_party

if TYPE_CHECKING:
    from condensec.hardware.emission import Request

_QDQ = ("QuantizeLinear", "DequantizeLinear")


def variants(request: Request, precision: str) -> tuple[str, ...]:
    """Ways to write this precision: there's one."""
    return ("",)


def write(request: Request, precision: str, variant: str, path: Path) -> list[str]:
    """Write the graph in this precision; returns notes."""
    model, notes = request.model.clone(), []
    if flushed := rewrite.flush_denormals(model):
        notes.append(f"{flushed} denormal weights were flushed to zero")
    if precision == "int8":
        with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
            source = folded(model, Path(folder) / "folded.onnx")
            scheme = Scheme(
                activations="s8", symmetric=True, quantize_bias=False, ops=WEIGHTED, inputs_only=True
            )
            quantize(source, path, request.samples, scheme)
        _tidy(path)
        notes.append("int8: explicit symmetric Q/DQ at the inputs of products, float biases")
    elif precision == "fp16":
        notes += write_fp16(model, path)
    else:
        io.save(model, path)
    return notes


def command(request: Request, path: Path, precision: str) -> str:
    """The trtexec line that builds and times an engine on the device."""
    dynamic = {
        v.name or "": request.shapes()[v.name or ""]
        for v in request.model.graph.inputs
        if v.name in request.shapes() and v.shape is not None and not v.shape.is_static()
    }
    typed = {"int8": " --stronglyTyped", "fp16": " --stronglyTyped"}.get(precision, "")
    one = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in dynamic.items())
    many = ",".join(f"{name}:{'x'.join(map(str, (8, *shape[1:])))}" for name, shape in dynamic.items())
    profile = f" --minShapes={one} --optShapes={one} --maxShapes={many}" if dynamic else ""
    return f"trtexec --onnx={path}{typed}{profile} --useCudaGraph --noDataTransfers"


def _tidy(path: Path) -> None:
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
