"""Graphs that are int8 already: weights, scales, zero-points and int32 biases are cut together."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import feeds_of, half, tiny, trial
from models import residual_cnn, transformer_encoder
from quantizing import FORMATS, int8, integers

from condensec import verify
from condensec.masked import masked
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import prune, set_weight
from condensec.runner import Session
from condensec.unrounded import unrounded

MS = ("com.microsoft",)
MODELS = {"cnn": residual_cnn, "encoder": transformer_encoder}
PAIRS = [(name, form) for name in MODELS for form in FORMATS]
_MADE: dict[tuple[str, str], onnx.ModelProto] = {}


def quantized(name: str, form: str) -> onnx.ModelProto:
    if (name, form) not in _MADE:
        logging.getLogger().setLevel(logging.ERROR)
        _MADE[name, form] = int8(MODELS[name](), form)
    return _MADE[name, form]


def exact_half(analysis: Analysis, seed: int) -> dict[str, list[int]]:
    chosen = half(analysis, seed)
    return {g.id: chosen[g.id] for g in analysis.groups if g.exact}


def in_integers(original: onnx.ModelProto, cut: object, feeds: dict[str, np.ndarray]) -> float:
    """Largest difference where onnxruntime's kernels compute in integers: no sum is rounded there."""
    reference = Session(masked(ir.from_proto(original), cut.plan), threads=1, optimize=True)  # type: ignore[attr-defined]
    found = Session(cut.model, threads=1, optimize=True).run(feeds)  # type: ignore[attr-defined]
    expected = reference.run(feeds)
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_half_of_every_group_is_cut_and_proven(name: str, form: str) -> None:
    original = quantized(name, form)
    found = trial(original, seed=1)
    assert found.removed > 0
    assert found.proof.passed, found.proof
    assert found.analysis.reachable() > 0.99
    before, after = integers(original), integers(ir.to_proto(found.cut.model))
    assert sum(a.size for a in after.values()) < 0.5 * sum(a.size for a in before.values())


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_where_the_cut_is_exact_the_integers_are_equal(name: str, form: str) -> None:
    original = quantized(name, form)
    analysis = analyze(ir.from_proto(original))
    units = exact_half(analysis, 2)
    if not units:  # one scale for a tensor follows from all of it: no cut of that is exact
        assert form == "dynamic u8"
        units = half(analysis, 2)
    cut = prune(analysis, units)
    feeds = feeds_of(original, analysis, seed=3)
    assert in_integers(original, cut, feeds) == 0.0
    weights = integers(ir.to_proto(cut.model))
    name = max((n for n in cut.plan.slices if n in weights), key=lambda n: weights[n].size)
    value = cut.model.graph.initializers[name]
    axis = next(iter(cut.plan.slices[name]))
    set_weight(value, np.roll(weights[name], 1, axis), value.const_value.dtype)  # type: ignore[union-attr]
    assert in_integers(original, cut, feeds) > 0  # the control


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_scale_or_bias_that_goes_astray_is_seen(form: str) -> None:
    original = quantized("cnn", form)
    analysis = analyze(ir.from_proto(original))
    cut = prune(analysis, half(analysis, 1))
    feeds = feeds_of(original, analysis)
    assert verify.check(ir.from_proto(original), cut.plan, cut.model, feeds).passed
    caught = []
    for name in cut.plan.slices:
        value = cut.model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        if array.ndim != 1 or not (array != np.roll(array, 1)).any():
            continue
        set_weight(value, np.roll(array, 1), tensor.dtype)
        caught.append(not verify.check(ir.from_proto(original), cut.plan, cut.model, feeds).passed)
        set_weight(value, array, tensor.dtype)
    assert len(caught) >= 4
    assert np.mean(caught) >= 0.7, caught


def test_a_zero_point_for_each_row_of_a_turned_weight_is_that_of_its_row() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "q1": rng.integers(0, 255, (6, 4)).astype(np.uint8),
        "z1": np.arange(100, 106).astype(np.uint8),
        "s1": rng.uniform(0.01, 0.02, 6).astype(np.float32),
        "q2": rng.integers(0, 255, (3, 6)).astype(np.uint8),
        "z2": np.arange(120, 123).astype(np.uint8),
        "s2": rng.uniform(0.01, 0.02, 3).astype(np.float32),
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
    }
    model = tiny(
        """q = QuantizeLinear(x, xs, xz) a = com.microsoft.QGemm<transB=1>(q, xs, xz, q1, s1, z1, , xs, xz)
        c = com.microsoft.QGemm<transB=1>(a, xs, xz, q2, s2, z2, , xs, xz) y = DequantizeLinear(c, xs, xz)""",
        x=["N", 4], weights=weights, domains=MS,
    )  # fmt: skip
    found = trial(model, seed=1)
    assert found.removed == 3
    assert found.proof.max_abs_error == 0.0


def test_equal_biases_that_the_quantizer_made_one_are_cut_apart() -> None:
    """Zero biases of several layers are one int32 tensor: it mustn't tie the layers."""
    rng = np.random.default_rng(0)
    weights = {
        "q1": rng.integers(-99, 99, (6, 4)).astype(np.int8),
        "q2": rng.integers(-99, 99, (6, 6)).astype(np.int8),
        "q3": rng.integers(-99, 99, (3, 6)).astype(np.int8),
        "b": np.zeros(6, np.int32),
        "s": np.float32(0.01), "z": np.int8(0), "xs": np.float32(0.02), "xz": np.uint8(128),
    }  # fmt: skip
    layer = "com.microsoft.QGemm<transB=1>"
    model = tiny(
        f"""q = QuantizeLinear(x, xs, xz) a = {layer}(q, xs, xz, q1, s, z, b, xs, xz)
        c = {layer}(a, xs, xz, q2, s, z, b, xs, xz) d = {layer}(c, xs, xz, q3, s, z, , xs, xz)
        y = DequantizeLinear(d, xs, xz)""",
        x=["N", 4], weights=weights, domains=MS,
    )  # fmt: skip
    found = trial(model, seed=1)
    assert [g.size for g in found.analysis.groups] == [6, 6]
    assert found.proof.max_abs_error == 0.0


def test_without_rounding_a_graph_clips_and_nothing_else() -> None:
    model = tiny(
        """w1 = DequantizeLinear(k1, s, z) a = MatMul(x, w1) q = QuantizeLinear(a, s, z)
        y = DequantizeLinear(q, s, z)""",
        x=["N", 4], weights={"k1": np.eye(4, dtype=np.int8) * 100, "s": np.float32(0.01), "z": np.int8(28)},
    )  # fmt: skip
    smooth = unrounded(ir.from_proto(model))
    assert smooth is not None
    x = np.array([[0.5, -9.0, 9.0, 0.123456]], np.float32)
    weight = (np.eye(4) * 100 - 28) * 0.01
    wanted = np.clip(x @ weight, (-128 - 28) * 0.01, (127 - 28) * 0.01)
    found = Session(smooth, optimize=False).run({"x": x})["y"]
    assert np.allclose(found, wanted, atol=1e-5)
    rough = Session(model, optimize=False).run({"x": x})["y"]
    assert 1e-4 < np.abs(rough - wanted).max() <= 0.005 + 1e-6  # the control: half a step
    assert unrounded(ir.from_proto(tiny("y = Relu(x)", x=["N", 4]))) is None


def test_steps_that_flip_are_told_from_a_wrong_cut() -> None:
    """A norm over the cut axis rounds otherwise; behind it a step flips. A wrong weight still shows."""
    original = quantized("encoder", "qdq")
    analysis = analyze(ir.from_proto(original))
    feeds = feeds_of(original, analysis, batch=2)
    for seed in range(4):
        cut = prune(analysis, half(analysis, seed))
        assert verify.check(ir.from_proto(original), cut.plan, cut.model, feeds).passed
    weights = integers(ir.to_proto(cut.model))
    name = next(n for n in cut.plan.slices if n in weights and weights[n].ndim == 2)
    value = cut.model.graph.initializers[name]
    set_weight(value, np.roll(weights[name], 1, 0), value.const_value.dtype)  # type: ignore[union-attr]
    assert not verify.check(ir.from_proto(original), cut.plan, cut.model, feeds).passed


NO_KERNEL = {  # onnxruntime defines these operators and has no kernel for them: nothing can run them
    "MulInteger": ("b = com.microsoft.MulInteger(a, xz, a, xz) c = Cast<to=2>(b)", 1),
    "QLinearReduceMean": ("c = com.microsoft.QLinearReduceMean<axes=[2,3]>(a, xs, xz, xs, xz)", 1),
    "ReduceSumInteger": ("b = com.microsoft.ReduceSumInteger<axes=[1]>(a) c = Cast<to=2>(b)", 0),
}


@pytest.mark.parametrize("op", NO_KERNEL)
def test_operators_without_a_kernel_are_read(op: str) -> None:
    nodes, groups = NO_KERNEL[op]
    rng = np.random.default_rng(0)
    weights = {
        "q1": rng.integers(-99, 99, (6, 3, 1, 1)).astype(np.int8),
        "q2": rng.integers(-99, 99, (4, 1 if op == "ReduceSumInteger" else 6, 1, 1)).astype(np.int8),
        "ws": np.float32(0.01), "wz": np.int8(0), "xs": np.float32(0.02), "xz": np.uint8(128),
    }  # fmt: skip
    model = tiny(
        f"""q = QuantizeLinear(x, xs, xz) a = QLinearConv(q, xs, xz, q1, ws, wz, xs, xz) {nodes}
        d = QLinearConv(c, xs, xz, q2, ws, wz, xs, xz) y = DequantizeLinear(d, xs, xz)""",
        x=["N", 3, 4, 4], weights=weights, domains=MS,
    )  # fmt: skip
    analysis = analyze(ir.from_proto(model))
    assert len(analysis.groups) == groups
    if groups:
        cut = prune(analysis, half(analysis))
        sizes = {n: a.shape for n, a in integers(ir.to_proto(cut.model)).items()}
        assert (sizes["q1"][0], sizes["q2"][1]) == (3, 3)
    else:
        assert any("ReduceSumInteger" in f.reason for f in analysis.frozen)


def test_criteria_see_what_the_integers_mean() -> None:
    """The consumer's weights behind a DequantizeLinear, with a scale for each of its outputs."""
    from condensec.passes.sites import consumer, sites

    rng = np.random.default_rng(0)
    stored, scale = rng.integers(-99, 99, (3, 6)).astype(np.int8), np.array([1.0, 0.1, 0.01], np.float32)
    model = tiny(
        """a = MatMul(x, w1) w2 = DequantizeLinear<axis=0>(q, s, z) y = Gemm<transB=1>(a, w2)""",
        x=["N", 4], weights={"w1": (4, 6), "q": stored, "s": scale, "z": np.full(3, 5, np.int8)},
    )  # fmt: skip
    analysis = analyze(ir.from_proto(model))
    (site,) = list(sites(analysis))
    wanted = ((stored.astype(np.float32) - 5) * scale[:, None]).T
    assert np.allclose(consumer(analysis, site), wanted)
