"""Static int8 quantization through onnxruntime's own quantizer: QDQ graphs, weights per channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import CondensecError, PostconditionError
from condensec.hardware.quiet import quiet_third_party
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from condensec.data import Samples

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
METHODS = ("minmax", "entropy", "percentile")
PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis
CALIBRATION = 128  # samples; min and max change little beyond


@dataclass(frozen=True)
class Scheme:
    """How to quantize.

    Attributes:
        activations: "u8" where the CPU has VNNI, "s8" elsewhere: without it u8 x s8 products saturate.
        symmetric: zero-points are 0 (TensorRT).
        quantize_bias: int32 biases; False leaves them float (TensorRT).
        ops: operators to quantize; None = all the quantizer knows.
        exclude: names of nodes to leave in fp32.
        method: calibration, of `METHODS`.
        reduce_range: 7-bit weights.
        inputs_only: quantize what weighted nodes read, not what they write, so that an activation after them
            can be fused (TensorRT).
    """

    activations: str = "u8"
    symmetric: bool = False
    quantize_bias: bool = True
    ops: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    method: str = "minmax"
    reduce_range: bool = False
    inputs_only: bool = False


def folded(model: ir.Model, out: Path) -> Path:
    """Write the model with batch norms and constants folded, in standard operators.

    The quantizer sees only what is there: a batch norm left between Conv and Relu costs a Q/DQ pair.
    """
    import onnx

    Session(model, optimize="basic", save_optimized=out)
    proto = onnx.load_model(out)
    _rename_made_up(proto, model)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < PER_CHANNEL_OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, PER_CHANNEL_OPSET)
        except Exception as error:  # the converter raises whatever its adapters do
            raise PostconditionError(
                f"opset {opset} can't be raised to {PER_CHANNEL_OPSET}, which int8 per channel needs: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
    onnx.save_model(proto, out)
    return out


def _rename_made_up(proto: onnx.ModelProto, original: ir.Model) -> None:
    """Rename values onnxruntime made up: it makes up the same names again later, and then trips over them."""
    if any(a.HasField("g") or a.graphs for node in proto.graph.node for a in node.attribute):
        return  # names may be used inside subgraphs, too
    known = {value.name for value in original.graph.initializers.values()}
    known |= {value.name for value in original.graph.inputs}
    known |= {value.name for node in original.graph for value in node.outputs}
    names = [tensor.name for tensor in proto.graph.initializer]
    names += [name for node in proto.graph.node for name in node.output]
    renamed = {name: f"{name}.folded" for name in names if name and name not in known}
    for tensor in proto.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del proto.graph.value_info[:]


def quantize(source: Path, out: Path, samples: Samples, scheme: Scheme) -> None:
    """Write a QDQ graph.

    Args:
        source: the fp32 model (see `folded`).
        out: the file to write.
        samples: calibration samples.
        scheme: how.

    Raises:
        PostconditionError: the quantizer failed.
    """
    with quiet_third_party():
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        try:
            quantize_static(
                str(source),
                str(out),
                _reader(source, samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=None if scheme.ops is None else list(scheme.ops),
                per_channel=True,
                reduce_range=scheme.reduce_range,
                activation_type=QuantType.QUInt8 if scheme.activations == "u8" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(scheme.exclude),
                calibrate_method=methods[scheme.method],
                extra_options={
                    "ActivationSymmetric": scheme.symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": scheme.quantize_bias,
                    "OpTypesToExcludeOutputQuantization": list(WEIGHTED) if scheme.inputs_only else [],
                },
            )
        except CondensecError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise PostconditionError(f"onnxruntime's quantizer failed: {text}") from error


def _reader(source: Path, samples: Samples) -> Any:
    """Calibration batches: single calls of the model's own batch size."""
    from onnxruntime.quantization import CalibrationDataReader

    session = Session(source)
    size = session.batch_size or 1
    names = [port.name for port in session.inputs]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._starts = iter(range(0, min(len(samples), CALIBRATION), size))

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            start = next(self._starts, None)
            if start is None:
                return None
            rows = np.arange(start, start + size) % len(samples)
            return {name: np.ascontiguousarray(samples.inputs[name][rows]) for name in names}

    return Reader()
