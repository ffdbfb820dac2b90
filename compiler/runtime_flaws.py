"""Optimisations of onnxruntime that change results, and the graphs they have to be left out for."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_MARK = b"DequantizeLinear"
# turns float biases beside 8-bit weights into integers, in the scales' own type (seen in 1.32): in fp16 the
# product of two scales is often below what fp16 holds, and biases come out tens of percent off, or infinite
_BIASES = "WeightBiasQuantization"


def unsafe_optimizers(source: str | bytes) -> list[str]:
    """Names of onnxruntime's optimisers that would make this graph wrong.

    Args:
        source: a file, or a serialised model. Files without DequantizeLinear are only searched, not parsed.
    """
    if not _quantized(source):
        return []
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(source if isinstance(source, bytes) else Path(source).read_bytes())
    except Exception:  # protobuf's own; whoever opens the session says what is wrong with the file
        return []
    return [_BIASES] if _half_scales(model) else []


def _quantized(source: str | bytes) -> bool:
    if isinstance(source, bytes):
        return _MARK in source
    try:
        if not os.path.getsize(source):
            return False
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            return held.find(_MARK) >= 0
    except (OSError, ValueError):
        return False


def _half_scales(model: onnx.ModelProto) -> bool:
    from onnx import TensorProto

    halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    return any(
        node.op_type == _MARK.decode() and node.input[1] in halves
        for node in model.graph.node
        if len(node.input) > 1
    )
