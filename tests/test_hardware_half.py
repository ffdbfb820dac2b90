"""int8 graphs for TensorRT: fp16 where they aren't int8, unless that doesn't hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import mlp, residual_cnn, transformer_encoder
from onnx import TensorProto, numpy_helper

from condensec import io
from condensec.hardware import bench, emit, half
from condensec.hardware.latency import latency_model
from condensec.hardware.target import get
from condensec.hardware.unquantized import unquantized
from condensec.runner import Session
from condensec.runtime_flaws import unsafe_optimizers
from condensec.serialized import to_ir


def float_types(path: Path) -> set[int]:
    model = onnx.load(path)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return {t.data_type for t in model.graph.initializer if t.data_type in floats}


@pytest.mark.parametrize("build", [residual_cnn, transformer_encoder])
def test_int8_graphs_leave_fp16_not_fp32(build: object, tmp_path: Path) -> None:
    model = build()  # type: ignore[operator]
    made = emit.emit(model, get("nvidia-t4"), tmp_path, precision="int8")
    assert made.precision == "int8"
    assert float_types(made.path) == {TensorProto.FLOAT16}
    feeds = bench.make_feeds(model)
    found, wanted = Session(made.path).run(feeds), Session(model).run(feeds)
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - value).max() < 0.1 * np.abs(value).max()
    scales = {n.input[1] for n in onnx.load(made.path).graph.node if n.op_type.endswith("quantizeLinear")}
    assert all(onnx_type(made.path, name) == TensorProto.FLOAT16 for name in scales)


def onnx_type(path: Path, name: str) -> int:
    return next(t.data_type for t in onnx.load(path).graph.initializer if t.name == name)


def test_what_overflows_stays_in_fp32(tmp_path: Path) -> None:
    model = onnx.version_converter.convert_version(residual_cnn(), half.HALF_SCALES)
    feeds = bench.make_feeds(model)
    onnx.save(model, tmp_path / "good.onnx")
    assert half.halve(tmp_path / "good.onnx", feeds, Session(model).run(feeds)) == ["the rest in fp16"]
    last = next(t for t in reversed(model.graph.initializer) if len(t.dims) == 2)
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * 1e7, last.name))
    onnx.save(model, tmp_path / "large.onnx")
    wanted = Session(model).run(feeds)
    assert "outputs are" in half.halve(tmp_path / "large.onnx", feeds, wanted)[0]
    assert float_types(tmp_path / "large.onnx") == {TensorProto.FLOAT}


def test_older_graphs_are_raised_or_left_alone(tmp_path: Path) -> None:
    old = mlp(features=8, hidden=(16,), classes=4)
    old.opset_import[0].version = 13  # MatMul, Add and Relu were the same then
    assert half.raised(to_ir(old)).opset_imports[""] == half.HALF_SCALES
    feeds = bench.make_feeds(old)
    found, wanted = Session(half.raised(to_ir(old))).run(feeds), Session(old).run(feeds)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    onnx.save(old, tmp_path / "old.onnx")
    assert "opset 13" in half.halve(tmp_path / "old.onnx", feeds, wanted)[0]
    assert float_types(tmp_path / "old.onnx") == {TensorProto.FLOAT}


def test_biases_of_half_precision_graphs_come_out_right(tmp_path: Path) -> None:
    """Small weights and large biases: what onnxruntime would make integers of isn't within fp16."""
    model = mlp(features=8, hidden=(16,), classes=4)
    model = onnx.version_converter.convert_version(model, half.HALF_SCALES)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.dims == [16]:  # the hidden layer's
            values = np.linspace(-1, 1, 16, dtype=np.float32)
        elif 8 in tensor.dims:
            values = values * np.float32(1e-3)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    made = emit.emit(model, get("nvidia-t4"), tmp_path, precision="int8")
    assert "the rest in fp16" in made.notes
    feeds = bench.make_feeds(model)
    wanted, found = Session(model).run(feeds), Session(made.path).run(feeds)
    assert unsafe_optimizers(str(made.path)) == unsafe_optimizers(made.path.read_bytes()) != []
    careless = ort.InferenceSession(made.path.read_bytes()).run(None, feeds)
    for (name, value), bare in zip(wanted.items(), careless, strict=True):
        assert np.abs(found[name] - value).max() < 0.02 * np.abs(value).max()
        assert not np.abs(bare - value).max() < 0.1 * np.abs(value).max()  # without care


def test_only_half_precision_scales_are_unsafe(tmp_path: Path) -> None:
    model = mlp(features=8, hidden=(16,), classes=4)
    made = emit.emit(model, get("mobile-cpu"), tmp_path, precision="int8")
    assert b"DequantizeLinear" in made.path.read_bytes()
    assert unsafe_optimizers(made.path.read_bytes()) == []
    assert unsafe_optimizers(model.SerializeToString()) == []
    assert unsafe_optimizers(b"DequantizeLinear, but no model") == []
    assert unsafe_optimizers(str(tmp_path / "missing.onnx")) == []


# of two Gelus the constants are rounded, so that they aren't seen as such any more: four nodes each
@pytest.mark.parametrize(("build", "more"), [(residual_cnn, 0.01), (transformer_encoder, 0.1)])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_gpu_is_predicted_without_this_processors_casts(
    build: Callable[[], onnx.ModelProto], more: float, precision: str, tmp_path: Path
) -> None:
    """onnxruntime puts Casts around what it has no fp16 kernel for; each would count as a launch."""
    model, target = build(), get("nvidia-t4")
    made = emit.emit(model, target, tmp_path, precision=precision)
    assert made.precision == precision
    predictor = latency_model(target, model)
    as_it_is, back = predictor.predict(made.path), unquantized(io.load(made.path))
    assert predictor.predict(back) == pytest.approx(predictor.dense_seconds, rel=more)
    assert as_it_is > 1.3 * predictor.dense_seconds, "what was reported otherwise"
    feeds = bench.make_feeds(model)
    found, wanted = Session(back).run(feeds), Session(model).run(feeds)
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() < 0.02 * np.abs(value).max()
