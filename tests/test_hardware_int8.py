"""Quantization: ranges, sensitivity, layers left in fp32, and models of every odd kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_tools import as_constant_nodes, with_batch
from models import depthwise_se_cnn, residual_cnn, transformer_encoder
from onnx import TensorProto, helper, numpy_helper

from condensec import io, settings
from condensec.data import Samples
from condensec.errors import ConfigError
from condensec.hardware import calibration, choosing, emit, quantize, sensitive, work
from condensec.hardware.emission import Request
from condensec.hardware.latency import latency_model
from condensec.hardware.target import Target, get
from condensec.hardware.unquantized import unquantized
from condensec.runner import Session


def elsewhere() -> Target:
    """Like the host's VNNI target, but never timed."""
    return replace(get("x86-vnni"), name="elsewhere", latency="analytic", isa="avx512_vnni")


def images(count: int = 48, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples({"input": rng.standard_normal((count, 3, 16, 16)).astype(np.float32)}, count=count)


def rows(count: int = 64, width: int = 16, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples({"x": rng.standard_normal((count, width)).astype(np.float32)}, count=count)


def parsed(
    text: str, weights: dict[str, np.ndarray], opset: int = 17, ins: str = "float[N,16] x"
) -> onnx.ModelProto:
    """A model in ONNX's own text, with these weights."""
    body = f'<ir_version: 8, opset_import: ["" : {opset}]>\ng ({ins}) => (float[N,M] y) {{ {text} }}'
    model = onnx.parser.parse_model(body)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return model


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def weight(*shape: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


# -- ranges ---------------------------------------------------------------------------------------------


def test_outliers_are_clipped_by_all_but_minmax() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(60_000), [100.0]]).astype(np.float32)
    one = calibration.Values(float(values.min()), 100.0, values)
    assert one.range("minmax") == (pytest.approx(values.min()), 100.0)
    for method in ("percentile", "entropy"):
        low, high = one.range(method)
        assert -6 < low < -3
        assert 3 < high < 20
    flat = np.linspace(-1, 1, 40_000, dtype=np.float32)  # nothing is rare: nothing is clipped
    low, high = calibration.Values(-1.0, 1.0, flat).range("entropy")
    assert low < -0.95
    assert high > 0.95


def test_ranges_hold_zero_and_relu_starts_there() -> None:
    positive = np.abs(np.random.default_rng(0).standard_normal(5000)).astype(np.float32) + 1
    for method in calibration.METHODS:
        low, high = calibration.Values(1.0, float(positive.max()), positive).range(method)
        assert low == 0.0
        assert high > 1


def test_every_value_is_observed_whole(tmp_path: Path) -> None:
    model = parsed(
        "h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v)", {"w": weight(16, 8), "v": weight(8, 4)}
    )
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path)
    samples = rows(40)
    found = calibration.observe(path, samples)
    hidden = samples.inputs["x"] @ weight(16, 8)
    assert set(found) == {"x", "h", "r", "y"}
    assert found["h"].low == pytest.approx(hidden.min(), rel=1e-5)
    assert found["r"].high == pytest.approx(hidden.max(), rel=1e-5)
    assert found["r"].low == 0.0


def test_masks_of_minus_infinity_dont_count(tmp_path: Path) -> None:
    text = "h = MatMul(x, w)\n n = Less(h, zero)\n m = Where(n, low, h)\n s = Softmax(m)\n y = MatMul(s, v)"
    weights = {"w": weight(16, 8), "v": weight(8, 4), "low": np.float32(-np.inf), "zero": np.float32(-1)}
    model = parsed(text, {k: np.asarray(v, np.float32) for k, v in weights.items()})
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path)
    found = calibration.observe(path, rows())
    assert -1 <= found["m"].low <= 0
    one = emit.emit(model, elsewhere(), tmp_path / "q", precision="auto", samples=rows(), calibrate="minmax")
    assert one.precision == "int8", one.notes


def test_the_words_of_the_command_line_are_those_of_the_quantizer() -> None:
    assert settings.CALIBRATIONS == emit.CALIBRATIONS
    with pytest.raises(ConfigError, match="there is no calibration 'magic'"):
        emit.emit(residual_cnn(), elsewhere(), Path("x"), precision="int8", calibrate="magic")


def test_the_truest_method_is_taken(tmp_path: Path) -> None:
    """One huge value in the samples that calibration sees makes minmax useless for all others."""
    x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    x[3, 0] = 4000.0
    samples = Samples({"x": x}, count=256)
    weights = {"w": weight(256, 8), "v": weight(8, 4)}
    model = parsed("h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v)", weights, ins="float[N,256] x")
    found = {
        method: emit.emit(
            model, elsewhere(), tmp_path / method, precision="int8", samples=samples, calibrate=method
        )
        for method in emit.CALIBRATIONS
    }
    errors = {name: one.fidelity.error for name, one in found.items() if one.fidelity is not None}
    assert errors["auto"] == min(errors.values())
    assert errors["auto"] < 0.2 * errors["minmax"]
    assert found["auto"].calibration != "minmax"
    assert found["entropy"].calibration == "entropy"


# -- sensitivity ----------------------------------------------------------------------------------------


def fragile() -> onnx.ModelProto:
    """Three products; the second reads a feature that is thousands of times larger, and ignores it."""
    first, second = weight(16, 16, seed=2), weight(16, 16, seed=3)
    first[:, 0] *= 3000
    second[0, :] = 0
    weights = {"a": first, "b": second, "c": weight(16, 4, seed=4)}
    return parsed(
        "h = MatMul(x, a)\n r = Relu(h)\n k = MatMul(r, b)\n q = Relu(k)\n y = MatMul(q, c)", weights
    )


def prepared(
    model: onnx.ModelProto, folder: Path, samples: Samples
) -> tuple[Path, dict[str, tuple[float, float]]]:
    path = quantize.folded(ir.from_proto(model), folder / "folded.onnx")
    return path, calibration.ranges(calibration.observe(path, samples), "minmax")


def test_the_layer_that_loses_most_is_found(tmp_path: Path) -> None:
    path, ranges = prepared(fragile(), tmp_path, rows())
    found = sensitive.layer_errors(path, ranges, rows())
    nodes = [n.name for n in onnx.load(path).graph.node if n.op_type == "MatMul"]
    assert len(found) == 3
    assert found[0].node == nodes[1]
    assert found[0].error > 20 * found[1].error
    assert [one.node for one in sensitive.layer_errors(path, ranges, rows(), exclude=[nodes[1]])] != []
    assert nodes[1] not in [
        one.node for one in sensitive.layer_errors(path, ranges, rows(), exclude=[nodes[1]])
    ]


def test_work_is_counted_by_sizes(tmp_path: Path) -> None:
    path, _ = prepared(fragile(), tmp_path, rows())
    assert list(work.node_macs(path, rows()).values()) == [16 * 16, 16 * 16, 16 * 4]
    assert work.macs(path, rows()) == 16 * 16 + 16 * 16 + 16 * 4
    images_of = quantize.folded(ir.from_proto(residual_cnn()), tmp_path / "cnn.onnx")
    first = next(n for n in onnx.load(images_of).graph.node if n.op_type == "Conv")
    whole = work.macs(images_of, images())
    assert whole > 16 * 16 * 27 * 16, first.name
    assert work.macs(ir.from_proto(residual_cnn()), images()) == whole, "the same of a model in memory"
    assert work.macs(ir.from_proto(with_batch(residual_cnn(), 4)), images()) == whole, "of one sample"
    assert work.macs(ir.from_proto(as_constant_nodes(residual_cnn())), images()) == whole
    made = emit.emit(residual_cnn(), elsewhere(), tmp_path, precision="int8", samples=images())
    assert "DequantizeLinear" in ops(made.path)
    assert work.macs(made.path, images()) == whole, "weights may be integers"


def test_one_layer_alone_is_what_the_quantizer_makes_of_it(tmp_path: Path) -> None:
    """The switched graph agrees with onnxruntime's quantizer on every layer by itself."""
    path, ranges = prepared(fragile(), tmp_path, rows())
    wanted = Session(path).run_samples(rows())
    names = [n.name for n in onnx.load(path).graph.node if n.op_type == "MatMul"]
    scheme = quantize.Scheme(ops=quantize.QUANTIZABLE, inputs_only=True)
    for layer in sensitive.layer_errors(path, ranges, rows()):
        others = tuple(name for name in names if name != layer.node)
        quantize.quantize(path, tmp_path / "one.onnx", ranges, replace(scheme, exclude=others))
        have = Session(tmp_path / "one.onnx", optimize="basic").run_samples(rows())
        assert sensitive.relative_error(wanted, have) == pytest.approx(layer.error, rel=0.05)


def test_only_the_layers_that_need_it_stay_in_fp32(tmp_path: Path) -> None:
    model, samples = fragile(), rows(256)
    reference = Session(model).run_samples(samples)

    def accept(path: Path) -> bool:
        return sensitive.relative_error(reference, Session(path).run_samples(samples)) < 5e-3

    target = replace(elsewhere(), precisions=("int8", "fp32"))
    plain = emit.emit(
        model,
        target,
        tmp_path / "a",
        precision="int8",
        samples=samples,
        calibrate="minmax",
        accept=lambda _: True,
    )
    assert not accept(plain.path)
    assert plain.in_fp32 == {}
    kept = emit.emit(
        model, target, tmp_path / "b", precision="int8", samples=samples, calibrate="minmax", accept=accept
    )
    assert kept.precision == "int8"
    assert len(kept.in_fp32) == 1
    assert accept(kept.path)
    assert any("1 layer in fp32: among those that lose most in int8" in note for note in kept.notes)
    document = kept.to_json()
    assert document["in_fp32"][0]["reason"] == "among those that lose most in int8"


def test_time_that_is_left_over_is_spent_on_layers_in_fp32(tmp_path: Path) -> None:
    """Time is stood in for by what it depends on here: how many layers are quantized."""
    samples = images()
    target = replace(elsewhere(), precisions=("int8", "fp32"))

    def emitted(name: str, least: int) -> emit.Artifact:
        def fast_enough(path: Path) -> bool:
            return ops(path).count("QuantizeLinear") <= least

        return emit.emit(
            residual_cnn(), target, tmp_path / name, precision="int8", samples=samples,
            calibrate="minmax", accept=lambda _: True, fast_enough=fast_enough,
        )  # fmt: skip

    plain = emitted("none", -1)  # never fast enough: nothing to spend
    assert plain.in_fp32 == {}
    most = ops(plain.path).count("QuantizeLinear")
    found = emitted("some", most)
    assert found.precision == "int8"
    assert set(found.in_fp32.values()) == {"there was time left for it"}
    assert ops(found.path).count("QuantizeLinear") <= most
    assert plain.fidelity is not None
    assert found.fidelity is not None
    assert found.fidelity.error < plain.fidelity.error


def test_a_guard_that_nothing_keeps_ends_in_fp32_after_few_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def refuse(path: Path) -> bool:
        written.append(path)
        return False

    one = emit.emit(residual_cnn(), elsewhere(), tmp_path, precision="auto", samples=images(), accept=refuse)
    assert one.precision == "fp32"
    assert any("doesn't keep the guard" in note for note in one.notes)
    assert len(written) <= 2 * (choosing._SEARCHES[1] + 1)


def test_depthwise_layers_go_back_where_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured twice; here the clock is told that the graph with fewer quantized layers is faster."""

    def compare(a: Path, b: Path, *args: object, **kwargs: object) -> object:
        ratio = 0.4 + 0.01 * ops(b).count("QuantizeLinear")

        class Result:
            verdict, ci95 = "faster", (ratio, ratio)

        Result.ratio = ratio  # type: ignore[attr-defined]
        return Result()

    monkeypatch.setattr(choosing.bench, "compare", compare)
    one = emit.emit(depthwise_se_cnn(), get("host"), tmp_path, precision="int8", samples=images())
    assert one.precision == "int8"
    assert one.tried is not None
    assert len(one.tried) >= 3
    assert set(one.in_fp32.values()) <= {
        "depthwise; measured faster in fp32",
        "depthwise convolutions are slower in int8",
    }
    assert one.in_fp32


# -- models of every kind --------------------------------------------------------------------------------


def two_products(opset: int = 17) -> onnx.ModelProto:
    text = "h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v)"
    return parsed(text, {"w": weight(16, 8), "v": weight(8, 4)}, opset)


TRANSPOSED = "t = Transpose<perm=[1,0]>(w)\n h = MatMul(x, t)\n r = Relu(h)\n y = Gemm<transB=1>(r, v, b)"
ODD = {
    "transposed weights": lambda: parsed(TRANSPOSED, {"w": weight(8, 16), "v": weight(4, 8), "b": weight(4)}),
    "opset 11": lambda: two_products(11),
    "opset 9": lambda: two_products(9),
    "two inputs": lambda: parsed(
        "a = MatMul(x, w)\n b = MatMul(z, v)\n y = Add(a, b)", {"w": weight(16, 4), "v": weight(5, 4)},
        ins="float[N,16] x, float[N,5] z",
    ),
    "nameless nodes": lambda: nameless(residual_cnn()),
    "constant nodes": lambda: as_constant_nodes(residual_cnn()),
}  # fmt: skip


def nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = ""
    return model


@pytest.mark.parametrize("kind", sorted(ODD))
def test_odd_models_are_quantized(tmp_path: Path, kind: str) -> None:
    model = ODD[kind]()
    onnx.checker.check_model(model)
    one = emit.emit(model, elsewhere(), tmp_path, precision="int8", calibrate="minmax")
    assert one.precision == "int8", one.notes
    assert one.fidelity is not None
    assert one.fidelity.cosine > 0.98
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(one.path).graph.initializer}
    held = [
        n for n in onnx.load(one.path).graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights
    ]
    assert any(weights[n.input[0]].dtype == np.int8 and weights[n.input[1]].size > 1 for n in held), (
        "per channel"
    )


def test_token_ids_stay_what_they_are(tmp_path: Path) -> None:
    one = emit.emit(transformer_encoder(), elsewhere(), tmp_path, precision="int8", calibrate="minmax")
    assert one.precision == "int8", one.notes
    graph = onnx.load(one.path).graph
    assert {v.type.tensor_type.elem_type for v in graph.input} == {TensorProto.INT64}
    ids = {v.name for v in graph.input}
    assert not any(n.op_type == "QuantizeLinear" and n.input[0] in ids for n in graph.node)


def test_quantized_models_are_left_alone(tmp_path: Path) -> None:
    first = emit.emit(residual_cnn(), elsewhere(), tmp_path / "a", precision="int8", samples=images())
    for precision in ("int8", "auto", "none"):
        again = emit.emit(first.path, elsewhere(), tmp_path / "b", precision=precision, samples=images())
        assert again.precision == "int8"
        assert sorted(ops(again.path)) == sorted(ops(first.path))
        assert any("quantized already" in note for note in again.notes)
    assert quantize.already_quantized(ir.from_proto(residual_cnn())) == 0


def test_the_fp32_graph_in_a_quantized_one_is_found(tmp_path: Path) -> None:
    """Modelled latencies are calculated from it: integer kernels would count as next to free."""
    model, samples = residual_cnn(), images()
    one = emit.emit(model, get("mobile-cpu"), tmp_path, precision="int8", samples=samples, calibrate="minmax")
    back = unquantized(io.load(one.path))
    left = {node.op_type for node in back.graph}
    assert not left & {"QuantizeLinear", "DequantizeLinear"}
    have = Session(back).run_samples(samples)["logits"]
    want = Session(model).run_samples(samples)["logits"]
    assert np.abs(have - want).max() < 0.05 * np.abs(want).max(), "weights are rounded, activations aren't"
    plain = ir.from_proto(model)
    assert unquantized(plain) is plain
    shapes = {"input": (1, 3, 16, 16)}
    wide = residual_cnn(width=96)  # its products take longer than calling them does
    one = emit.emit(
        wide, get("mobile-cpu"), tmp_path / "wide", precision="int8", samples=images(8), calibrate="minmax"
    )
    dense = latency_model(replace(get("mobile-cpu"), table=""), wide, shapes)
    back = unquantized(io.load(one.path))
    assert dense.predict(back, shapes) == pytest.approx(dense.predict(wide, shapes), rel=0.02)
    assert dense.predict(one.path, shapes) < 0.7 * dense.predict(wide, shapes), "what was reported otherwise"


def branching(margin: float) -> onnx.ModelProto:
    """An If that asks whether a sum that is zero up to rounding is above ``margin``."""
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["h", name], ["z"], f"in.{name}")], name, [], [out])
        for name in ("p", "q")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("ReduceSum", ["h"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "margin"], ["c"], "test"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    w = weight(16, 16, seed=7)
    w -= w.mean(axis=1, keepdims=True)  # the sum is zero up to rounding
    weights = {"w": w, "p": weight(16, 4, seed=8), "q": weight(16, 6, seed=9), "margin": np.float32(margin)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "M"])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("target", ["elsewhere", "mobile-cpu"])
def test_a_branch_that_int8_would_take_otherwise_ends_in_fp32(tmp_path: Path, target: str) -> None:
    place = elsewhere() if target == "elsewhere" else get(target)
    safe = emit.emit(branching(-1e6), place, tmp_path / "safe", precision="int8", samples=rows(8))
    assert safe.precision == "int8", safe.notes
    body = next(n for n in onnx.load(safe.path).graph.node if n.op_type == "If")
    assert [n.op_type for a in body.attribute for n in a.g.node] == ["MatMul", "MatMul"]
    near = [
        emit.emit(branching(-0.05), place, tmp_path / str(sign), precision="auto", samples=signed(sign))
        for sign in (1, -1)
    ]
    left = [one for one in near if one.precision == "fp32"]
    assert left, "int8 rounds the sum to one side or the other"
    assert all(any("its shape" in note or "has shape" in note for note in one.notes) for one in left)


def signed(sign: int) -> Samples:
    return Samples({"x": sign * rows(64).inputs["x"]}, count=64)


def test_a_guard_that_fails_costs_the_precision_not_the_run(tmp_path: Path) -> None:
    from condensec.errors import PostconditionError

    def accept(path: Path) -> bool:
        raise PostconditionError("output 'y' changes its shape from call to call")

    one = emit.emit(residual_cnn(), elsewhere(), tmp_path, precision="auto", samples=images(), accept=accept)
    assert one.precision == "fp32"
    assert any("was left out: output 'y' changes its shape" in note for note in one.notes)


def test_where_rewriting_changes_the_result_the_model_goes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec.hardware.emit import ort

    def wrong(source: ir.Model) -> tuple[ir.Model, list[str]]:
        model = source.clone()
        value = model.graph.initializers["fc.bias"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + 1, name=value.name)
        return model, ["rewritten"]

    monkeypatch.setattr(ort, "prepared", wrong)
    one = emit.emit(residual_cnn(), elsewhere(), tmp_path, samples=images())
    assert one.fidelity is not None
    assert one.fidelity.max_error < 1e-4
    assert any("written as it is" in note for note in one.notes)


def test_folding_names_every_node_once(tmp_path: Path) -> None:
    path = quantize.folded(ir.from_proto(nameless(residual_cnn())), tmp_path / "f.onnx")
    names = [node.name for node in onnx.load(path).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert io.load(path) is not None


def test_requests_share_one_calibration(tmp_path: Path) -> None:
    request = Request(ir.from_proto(residual_cnn()), elsewhere(), images())
    made: list[int] = []
    for _ in range(3):
        assert request.once("key", lambda: made.append(1) or len(made)) == 1  # type: ignore[func-returns-value]
    assert made == [1]
