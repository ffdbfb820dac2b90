"""Emission: each dialect's rules, the fp32 check, int8 only where it's faster, nothing left half written."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_tools import save, with_batch
from models import depthwise_se_cnn, residual_cnn, transformer_encoder
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.errors import ConfigError, PostconditionError
from condensec.hardware import emission, emit, rewrite, work
from condensec.hardware.bench import Comparison
from condensec.hardware.target import Target, get
from condensec.runner import Session


def images(count: int = 32) -> Samples:
    rng = np.random.default_rng(0)
    return Samples({"input": rng.standard_normal((count, 3, 16, 16)).astype(np.float32)}, count=count)


def parsed() -> Target:
    """A target like the host's that can't be measured: nothing is timed in these tests."""
    return replace(get("x86-vnni"), name="elsewhere", latency="analytic", isa="avx512_vnni")


def ops(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_dialects_are_found() -> None:
    assert emit.dialects() == ("ort", "ort_mobile", "tensorrt")
    with pytest.raises(ConfigError, match="wants the dialect 'klingon'"):
        emit.emit(residual_cnn(), replace(parsed(), dialect="klingon"), Path("x"))


def test_fp32_is_the_same_network(tmp_path: Path) -> None:
    model, samples = residual_cnn(), images()
    artifact = emit.emit(model, parsed(), tmp_path / "out", samples=samples)
    assert artifact.path == tmp_path / "out" / "model.onnx"
    assert (artifact.precision, artifact.bytes) == ("fp32", artifact.path.stat().st_size)
    assert artifact.fidelity is not None
    assert artifact.fidelity.max_error < 1e-4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx"]


def test_a_large_model_is_checked_on_fewer_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = residual_cnn(), images()
    macs = work.macs(ir.from_proto(model), samples)
    for room, count in ((1e3, 32), (20, 20), (20.9, 20), (3, emission.LEAST_CHECKED)):
        monkeypatch.setattr(emission, "CHECKED_MACS", room * macs)
        artifact = emit.emit(model, parsed(), tmp_path / "out", samples=samples)
        assert artifact.fidelity is not None
        assert artifact.fidelity.samples == count
        assert f"({count} samples)" in artifact.notes[-1]


@pytest.mark.parametrize("dialect", ["ort", "ort_mobile", "tensorrt"])
def test_int8_keeps_each_dialects_rules(
    tmp_path: Path, dialect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"ort": parsed(), "ort_mobile": get("mobile-cpu"), "tensorrt": get("nvidia-t4")}[dialect]
    artifact = emit.emit(depthwise_se_cnn(), target, tmp_path, precision="int8", samples=images())
    assert artifact.precision == "int8"
    assert artifact.fidelity is not None
    assert artifact.fidelity.cosine > 0.95
    assert capsys.readouterr().out == ""
    graph = onnx.load(artifact.path).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    zeros = [
        weights[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear" and n.input[2] in weights
    ]
    assert zeros
    scales = {n.input[0]: weights[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear"}
    per_channel = [s for name, s in scales.items() if name in weights and weights[name].ndim == 4]
    assert per_channel
    assert all(
        s.size == weights[n].shape[0] for n, s in scales.items() if n in weights and weights[n].ndim == 4
    )
    if dialect == "ort":
        assert {z.dtype for z in zeros} == {np.dtype(np.uint8)}
    elif dialect == "ort_mobile":
        assert {z.dtype for z in zeros} == {np.dtype(np.int8)}
        assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    else:
        assert all(z.dtype == np.int8 and not z.any() for z in zeros)
        held = {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
        assert not any(weights[name].dtype == np.int32 for name in held & set(weights))
        assert artifact.command.startswith("trtexec --onnx=")
        assert "--stronglyTyped --minShapes=input:1x3x16x16" in artifact.command


def test_relu_outputs_have_the_smallest_zero_point(tmp_path: Path) -> None:
    """Otherwise onnxruntime keeps the convolution in fp32."""
    artifact = emit.emit(residual_cnn(), parsed(), tmp_path, precision="int8", samples=images())
    Session(artifact.path, save_optimized=tmp_path / "optimized.onnx")
    found = ops(tmp_path / "optimized.onnx")
    assert found["QLinearConv"] == ops(artifact.path)["Conv"]
    assert found["Conv"] == 0


def test_fp16_halves_the_weights_and_keeps_its_interface(tmp_path: Path) -> None:
    plain = emit.emit(residual_cnn(width=32), get("nvidia-t4"), tmp_path / "a", samples=images())
    half = emit.emit(
        residual_cnn(width=32), get("nvidia-t4"), tmp_path / "b", precision="fp16", samples=images()
    )
    assert half.precision == "fp16"
    onnx.checker.check_model(half.path)  # in topological order, too
    assert half.bytes < 0.6 * plain.bytes
    assert onnx.load(half.path).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert half.fidelity is not None
    assert half.fidelity.agreement == 1.0


def test_a_precision_that_is_not_offered_is_explained(tmp_path: Path) -> None:
    artifact = emit.emit(residual_cnn(), parsed(), tmp_path, precision="fp16", samples=images())
    assert artifact.precision == "fp32"
    assert any("fp16 isn't offered" in note for note in artifact.notes)
    with pytest.raises(ConfigError, match="no precision 'int3'"):
        emit.emit(residual_cnn(), parsed(), tmp_path, precision="int3")


@pytest.mark.parametrize(
    ("verdict", "kept"), [((0.5, 0.6), "int8"), ((1.5, 1.6), "fp32"), ((0.9, 1.1), "fp32")]
)
def test_int8_is_kept_only_if_measured_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: tuple[float, float], kept: str
) -> None:
    def compare(*args: object, **kwargs: object) -> Comparison:
        ratio = sum(verdict) / 2
        return Comparison(None, None, ratio, verdict, (ratio, *verdict), (ratio, *verdict), "wall", 30)  # type: ignore[arg-type]

    monkeypatch.setattr(emit.bench, "compare", compare)
    artifact = emit.emit(residual_cnn(), get("host"), tmp_path, precision="int8", samples=images())
    assert artifact.precision == kept
    assert artifact.tried is not None
    assert all(name.startswith("int8") for name in artifact.tried)
    assert (kept == "int8") == (not any("95% interval" in note for note in artifact.notes))


def test_the_guard_decides_about_auto(tmp_path: Path) -> None:
    no = emit.emit(
        residual_cnn(), parsed(), tmp_path, precision="auto", samples=images(), accept=lambda _: False
    )
    assert no.precision == "fp32"
    assert any("doesn't keep the guard" in note for note in no.notes)
    yes = emit.emit(
        residual_cnn(), parsed(), tmp_path, precision="auto", samples=images(), accept=lambda _: True
    )
    assert yes.precision == "int8"


def test_a_wrong_fp32_graph_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from condensec.hardware.emit import ort

    def spoil(request: emission.Request, recipe: emission.Recipe, path: Path) -> list[str]:
        model = residual_cnn()
        bias = next(w for w in model.graph.initializer if w.name == "fc.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.5, bias.name))
        onnx.save_model(model, path)
        return []

    monkeypatch.setattr(ort, "write", spoil)
    with pytest.raises(PostconditionError, match="isn't its model"):
        emit.emit(residual_cnn(), parsed(), tmp_path / "out", samples=images())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantized_graph_that_fusion_breaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = emission.Request(ir.from_proto(residual_cnn()), parsed(), images())
    errors = {True: 0.9, False: 0.03}
    monkeypatch.setattr(
        emission, "_compare", lambda p, r, e, prec, level: emission.Fidelity(errors[level], 3.0, 1.0, 1.0, 8)
    )
    with pytest.raises(PostconditionError, match=r"fusions change the result: error 0\.9"):
        emission.check(Path("x"), request, {}, "int8")
    errors[True] = 0.04
    emission.check(Path("x"), request, {}, "int8")


def test_a_fixed_batch_and_two_inputs_can_be_emitted(tmp_path: Path) -> None:
    for target in (get("mobile-cpu"), get("nvidia-t4"), parsed()):
        artifact = emit.emit(with_batch(residual_cnn(), 4), target, tmp_path / target.name, precision="int8")
        assert artifact.precision == "int8"
        artifact = emit.emit(transformer_encoder(), target, tmp_path / target.name, precision="none")
        assert artifact.precision == "fp32"


def test_quantizing_leaves_logging_alone(tmp_path: Path) -> None:
    before = logging.root.manager.disable
    emit.emit(residual_cnn(), parsed(), tmp_path, precision="int8", samples=images(8))
    assert logging.root.manager.disable == before


def test_denormals_are_flushed_and_nothing_else(tmp_path: Path) -> None:
    model = residual_cnn()
    weight = next(w for w in model.graph.initializer if numpy_helper.to_array(w).ndim == 4)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, :2] = [1e-40, -3e-39]
    values[0, 0, 1, 0] = 2e-38  # small, but normal
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    graph = ir.from_proto(model)
    assert rewrite.flush_denormals(graph) == 2
    flushed = graph.graph.initializers[weight.name].const_value
    assert flushed is not None
    assert (flushed.numpy()[0, 0, 0, :2] == 0).all()
    assert flushed.numpy()[0, 0, 1, 0] == values[0, 0, 1, 0]
    assert rewrite.flush_denormals(graph) == 0
    artifact = emit.emit(model, parsed(), tmp_path, samples=images(4))
    assert "2 denormal weights were flushed to zero" in artifact.notes


def hard_swish(
    shift: float = 3.0, high: float = 6.0, divisor: float = 6.0, *, gate_first: bool = False
) -> ir.Model:
    """x * clip(x + 3, 0, 6) / 6, spelled out as exporters do."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])
    weights = [
        numpy_helper.from_array(np.float32(v), n)
        for n, v in (("a", shift), ("low", 0), ("high", high), ("d", divisor), ("one", 1))
    ]
    nodes = [
        helper.make_node("Add", ["x", "a"], ["s"]),
        helper.make_node("Clip", ["s", "low", "high"], ["c"]),
    ]
    if gate_first:
        nodes += [helper.make_node("Div", ["c", "d"], ["g"]), helper.make_node("Mul", ["x", "g"], ["h"])]
    else:
        nodes += [helper.make_node("Mul", ["x", "c"], ["p"]), helper.make_node("Div", ["p", "d"], ["h"])]
    nodes.append(helper.make_node("Mul", ["h", "one"], ["y"]))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("gate_first", [False, True])
def test_a_spelled_out_hard_swish_is_fused_exactly(gate_first: bool) -> None:
    before, after = hard_swish(gate_first=gate_first), hard_swish(gate_first=gate_first)
    assert rewrite.fuse_hard_sigmoid(after) == 1
    assert {n.op_type for n in after.graph} == {"HardSigmoid", "Mul"}
    data = {"x": np.linspace(-8, 8, 80, dtype=np.float32).reshape(10, 8)}
    np.testing.assert_allclose(
        Session(before).run(data)["y"], Session(after).run(data)["y"], rtol=1e-5, atol=1e-6
    )


def test_what_is_no_hard_sigmoid_stays() -> None:
    for model in (hard_swish(divisor=5.0), hard_swish(high=-1.0), hard_swish(divisor=0.0)):
        assert rewrite.fuse_hard_sigmoid(model) == 0
    assert rewrite.fuse_hard_sigmoid(ir.from_proto(residual_cnn())) == 0


def test_artifacts_serialise(tmp_path: Path) -> None:
    path = save(residual_cnn(), tmp_path)
    artifact = emit.emit(path, parsed(), tmp_path / "out", samples=images(4))
    doc = artifact.to_json()
    assert doc["file"] == "model.onnx"
    assert doc["fidelity"]["samples"] == 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flatten_becomes_reshape_where_that_is_the_same(axis: int) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"], "flat", axis=axis)], "g", [x], [y])
    before = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    after = before.clone()
    assert rewrite.flatten_to_reshape(after) == (axis < 2)
    data = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    np.testing.assert_array_equal(Session(before).run(data)["y"], Session(after).run(data)["y"])


def test_mobile_graphs_have_no_flatten(tmp_path: Path) -> None:
    for precision in ("none", "int8"):
        artifact = emit.emit(
            residual_cnn(), get("mobile-cpu"), tmp_path / precision, precision=precision, samples=images(),
            calibrate="minmax",
        )  # fmt: skip
        found = ops(artifact.path)
        assert found["Flatten"] == 0
        assert found["Reshape"] == 1
        assert any(note.startswith("CoreML takes") for note in artifact.notes)


def test_the_ort_format_comes_with_its_operators(tmp_path: Path) -> None:
    artifact = emit.emit(
        residual_cnn(), get("mobile-cpu"), tmp_path / "a", precision="int8", samples=images(),
        calibrate="minmax", ort=True,
    )  # fmt: skip
    made = tmp_path / "a"
    assert {p.name for p in made.iterdir()} == {"model.onnx", "model.ort", "required_operators.config"}
    assert "ai.onnx;" in (made / "required_operators.config").read_text("utf-8")
    feeds = {"input": images(1).inputs["input"]}
    have, want = (Session(made / name).run(feeds)["logits"] for name in ("model.ort", "model.onnx"))
    np.testing.assert_allclose(have, want, atol=0.1)
    assert any(note.startswith("model.ort (") for note in artifact.notes)
    half = emit.emit(
        residual_cnn(), get("mobile-cpu"), tmp_path / "b", precision="fp16", samples=images(4), ort=True
    )
    assert not (tmp_path / "b" / "model.ort").exists(), "it would silently become fp32"
    assert any("no .ort file" in note for note in half.notes)
