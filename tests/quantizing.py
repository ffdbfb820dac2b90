"""int8 versions of small models, made by onnxruntime's own quantizer in all of its formats."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import random_feeds

FORMATS = ("qdq", "qoperator", "dynamic", "dynamic u8")


def int8(model: onnx.ModelProto, form: str, *, per_channel: bool = True) -> onnx.ModelProto:
    """The model in int8: "qdq", "qoperator" (static), "dynamic", or "dynamic u8" (with zero-points)."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter([random_feeds(model, 8, seed=5)])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        source, plain, out = (str(Path(folder) / name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        if form.startswith("dynamic"):
            kind = QuantType.QUInt8 if form.endswith("u8") else QuantType.QInt8
            quantize_dynamic(
                plain, out, weight_type=kind, per_channel=per_channel and kind == QuantType.QInt8
            )
        else:
            quantize_static(
                plain, out, Reader(), per_channel=per_channel,
                quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return onnx.load(out)


def kinds(model: onnx.ModelProto) -> set[str]:
    """Operators of a model."""
    return {node.op_type for node in model.graph.node}


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights of a model that are integers of 8 or 32 bits, by name."""
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: a for name, a in found.items() if a.dtype in (np.int8, np.uint8, np.int32) and a.size > 1}
