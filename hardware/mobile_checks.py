"""What onnxruntime's own mobile tools say and write: usability for NNAPI and CoreML, and the .ort format."""

from __future__ import annotations

from pathlib import Path

from condensec.errors import PostconditionError
from condensec.hardware.quiet import quiet_third_party
from condensec.runner import Session

ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"


def usability(path: Path) -> list[str]:
    """What onnxruntime's own checker says about NNAPI and CoreML, one line each."""
    with quiet_third_party():
        from onnxruntime.tools.mobile_helpers import usability_checker as checker
        from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo

        try:
            model = ModelProtoWithShapeInfo(path).model_with_shape_info
            total = len(model.graph.node)
            found = {
                "NNAPI": checker.check_nnapi_partitions(model, require_fixed_input_sizes=True),
                "CoreML": checker.check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
            }
        except Exception as error:  # a check that fails is no reason not to emit
            return [f"the mobile usability check failed: {type(error).__name__}"]
    return [_verdict(name, total, info) for name, info in found.items()]


def _verdict(name: str, total: int, info: object) -> str:
    """``CoreML takes 3 of 4 nodes in 1 partitions; not: Flatten``."""
    taken, parts = getattr(info, "num_supported_nodes", 0), getattr(info, "num_partitions", 0)
    refused = sorted(str(op).removeprefix("ai.onnx:") for op in getattr(info, "unsupported_ops", ()) or ())
    text = f"{name} takes {taken} of {total} nodes in {parts} partition{'s' * (parts != 1)}"
    return text + (f"; not: {', '.join(refused)}" if refused else "")


def ort_format(path: Path, folder: Path, precision: str) -> list[str]:
    """Write ``model.ort`` and the list of operators a minimal build of onnxruntime has to contain.

    Args:
        path: the ONNX graph.
        folder: where to write.
        precision: of the graph.

    Returns:
        Notes.

    Raises:
        PostconditionError: the conversion failed, or would change the precision.
    """
    if precision == "fp16":
        raise PostconditionError("converting fp16 to .ort on this machine would turn it into fp32")
    with quiet_third_party():
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        try:
            convert_onnx_models_to_ort(path, folder, [OptimizationStyle.Fixed], target_platform="arm")
        except Exception as error:  # onnxruntime's tool raises whatever it meets
            raise PostconditionError(
                f"onnxruntime's converter failed: {' '.join(str(error).split())[:200]}"
            ) from error
    for config in folder.glob("*.required_operators*.config"):
        config.replace(folder / OPERATORS_FILE)
    made = next(folder.glob("*.ort"))
    made = made.replace(folder / ORT_FILE)
    Session(made)  # it loads
    size = f"{made.stat().st_size:,} bytes"
    return [f"{ORT_FILE} ({size}) and {OPERATORS_FILE}: for minimal builds of onnxruntime only"]
