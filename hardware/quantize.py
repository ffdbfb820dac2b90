"""Static int8 quantization through onnxruntime's own quantizer: QDQ graphs, weights per channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import CondensecError, PostconditionError
from condensec.hardware.bias import Array, correct
from condensec.hardware.quiet import quiet_third_party
from condensec.hardware.shield import shield
from condensec.runner import Session
from condensec.serialized import INLINE_LIMIT

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

QUANTIZABLE = ("Conv", "ConvTranspose", "MatMul", "Gemm")
PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis
_LEAST_OPSET = 10  # the first that has QuantizeLinear
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "QAttention", "QEmbed", "QMoE")
_INTEGER = ("ConvInteger", "MatMulInteger", "MatMulNBits", "DynamicQuantize", "GatherBlockQuantized")


@dataclass(frozen=True)
class Scheme:
    """How to quantize.

    Attributes:
        activations: "u8" or "s8".
        symmetric: zero-points are 0 (TensorRT).
        quantize_bias: int32 biases; False leaves them float (TensorRT).
        ops: operators to quantize; None = all the quantizer knows.
        exclude: names of nodes to leave in fp32.
        reduce_range: 7-bit weights. Without VNNI x86 CPUs add two u8 x s8 products in 16 bits, which saturate
            with weights of 8 bits and never do with those (2 * 255 * 64 < 2**15).
        inputs_only: quantize what weighted nodes read, not what they write, so that an activation after them
            can be fused (TensorRT).
        shielded: keep onnxruntime from quantizing what was left in fp32 (`condensec.hardware.shield`).
    """

    activations: str = "u8"
    symmetric: bool = False
    quantize_bias: bool = True
    ops: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    reduce_range: bool = False
    inputs_only: bool = False
    shielded: bool = False

    @property
    def largest_weight(self) -> int:
        """Of the integers that the quantizer makes of weights."""
        return 64 if self.reduce_range else 127


def already_quantized(model: ir.Model) -> int:
    """How many nodes of a model quantize, or compute with integers, already."""
    found = 0
    for graph in model.graphs():
        found += sum(node.op_type.startswith((*_QUANTIZED, *_INTEGER)) for node in graph)
    return found


def folded(model: ir.Model, out: Path) -> Path:
    """Write the model with batch norms and constants folded, in standard operators, every node named.

    The quantizer sees only what is there: a batch norm left between Conv and Relu costs a Q/DQ pair. It also
    can't tell nodes without a name apart.

    Raises:
        PostconditionError: the model's opset is too old for Q/DQ and can't be raised.
    """
    import onnx

    from condensec.model_checks import tensors

    beside = "folded.weights"
    large = sum(tensor.nbytes for tensor in tensors(model)) > INLINE_LIMIT
    config = {"session.optimized_model_external_initializers_file_name": beside} if large else {}
    Session(model, optimize="basic", save_optimized=out, config=config)
    proto = onnx.load_model(out)
    rename_made_up(proto, model)
    _name_nodes(proto.graph)
    proto = _raised(proto)
    _save(proto, out, large)
    return out


def _raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """At the opset that per-channel scales need, where that can be; weights go per tensor where it can't."""
    import onnx

    opset = opset_of(proto)
    if opset >= PER_CHANNEL_OPSET:
        return proto
    try:
        with quiet_third_party():
            return onnx.version_converter.convert_version(proto, PER_CHANNEL_OPSET)
    except Exception as error:  # the converter raises whatever its adapters do
        if opset >= _LEAST_OPSET:
            return proto
        raise PostconditionError(
            f"opset {opset} has no QuantizeLinear and can't be raised to {PER_CHANNEL_OPSET}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def opset_of(proto: onnx.ModelProto) -> int:
    """The default domain's opset."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node of the main graph a name of its own."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}_{next(filter(None, node.output), '')}"
        taken.add(node.name)


def rename_made_up(proto: onnx.ModelProto, original: ir.Model) -> None:
    """Rename values onnxruntime made up: it makes up the same names again later, and then trips over them."""
    known = {value.name for graph in original.graphs() for value in graph.initializers.values()}
    known |= {value.name for graph in original.graphs() for value in graph.inputs}
    known |= {value.name for node in original.graph.all_nodes() for value in node.outputs}
    names = [tensor.name for tensor in proto.graph.initializer]
    names += [name for node in proto.graph.node for name in node.output]
    renamed = {name: f"{name}.folded" for name in names if name and name not in known}
    for tensor in proto.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    _rename_uses(proto.graph, renamed, outputs=True)
    del proto.graph.value_info[:]


def _rename_uses(graph: onnx.GraphProto, renamed: Mapping[str, str], *, outputs: bool = False) -> None:
    """Rename what nodes read (``outputs``: and write); in bodies, what they don't define themselves."""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if outputs:
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                own = {v.name for v in (*body.input, *body.initializer)}
                own.update(name for inner in body.node for name in inner.output)
                _rename_uses(body, {old: new for old, new in renamed.items() if old not in own})
                for value in body.output:
                    value.name = value.name if value.name in own else renamed.get(value.name, value.name)


def quantize(
    source: Path,
    out: Path,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme,
    shifts: Mapping[str, Array] | None = None,
) -> None:
    """Write a QDQ graph.

    Args:
        source: the fp32 model (see `folded`).
        out: the file to write.
        ranges: least and largest value of every activation that may be quantized.
        scheme: how.
        shifts: what to take off the biases of quantized layers (`condensec.hardware.bias`).

    Raises:
        PostconditionError: the quantizer failed.
    """
    import onnx

    with quiet_third_party():
        try:
            quantizer = _quantizer(source, ranges, scheme, shifts or {})
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            proto = quantizer.model.model
        except CondensecError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise PostconditionError(f"onnxruntime's quantizer failed: {text}") from error
        if not any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
            raise PostconditionError("there is nothing in the graph that onnxruntime's quantizer takes")
        assert isinstance(proto, onnx.ModelProto)
        if scheme.shielded and opset_of(proto) >= PER_CHANNEL_OPSET:
            shield(proto)
        _save(proto, out, sum(len(t.raw_data) for t in proto.graph.initializer) > INLINE_LIMIT)


def _quantizer(
    source: Path,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme,
    shifts: Mapping[str, Array],
) -> Any:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = load_model_with_shape_infer(source)
    correct(model, shifts, scheme.exclude)
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    options = {
        "ActivationSymmetric": scheme.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": scheme.quantize_bias,
        "OpTypesToExcludeOutputQuantization": list(QUANTIZABLE) if scheme.inputs_only else [],
    }
    return QDQQuantizer(
        model,
        opset_of(model) >= PER_CHANNEL_OPSET,
        scheme.reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8 if scheme.activations == "u8" else QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        list(scheme.exclude),
        sorted({*QLinearOpsRegistry, *QDQRegistry}) if scheme.ops is None else list(scheme.ops),
        options,
    )


def _save(proto: onnx.ModelProto, out: Path, large: bool) -> None:
    """Write a protobuf; above its bound the weights go beside it."""
    import onnx

    if large:
        onnx.save_model(proto, out, save_as_external_data=True, location=f"{out.name}.data")
    else:
        onnx.save_model(proto, out)
