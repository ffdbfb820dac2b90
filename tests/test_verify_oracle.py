"""The proof of the proof: what's right passes, what's wrong is caught, and nothing of the slicer is used."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Trial, feeds_of, half, tiny, trial
from models import depthwise_se_cnn, mlp, residual_cnn, transformer_encoder

import condensec
from condensec import masked as masked_module
from condensec import verify
from condensec.errors import ModelError, PostconditionError
from condensec.passes.prune import set_weight
from condensec.plan import Plan, Restriction

WEIGHTS = {"w": (8, 16), "v": (16, 4)}


def recheck(found: Trial, plan: Plan | None = None) -> verify.Proof:
    feeds = feeds_of(found.original, found.analysis, batch=16)
    return verify.check(ir.from_proto(found.original), plan or found.cut.plan, found.cut.model, feeds)


def test_a_permuted_weight_is_caught() -> None:
    found = trial(residual_cnn(width=8))
    assert found.proof.passed
    value = found.cut.model.graph.initializers["block1.b.conv.weight"]
    assert value.const_value is not None
    set_weight(value, value.const_value.numpy()[::-1], value.const_value.dtype)
    proof = recheck(found)
    assert not proof.passed
    assert proof.relative_error > 0.01


@pytest.mark.parametrize("builder", [mlp, residual_cnn, depthwise_se_cnn, transformer_encoder])
def test_a_wrong_index_in_the_plan_is_caught_for_every_group(builder: object) -> None:
    """One kept unit is exchanged for a cut one in the plan's slices of one weight; the cut model stays."""
    found = trial(builder())  # type: ignore[operator]
    for group in found.cut.plan.groups:
        ref = next(a for a in group.axes if a.axis in found.cut.plan.slices.get(a.tensor, {}))
        kept = found.cut.plan.slices[ref.tensor][ref.axis]
        size = found.analysis.model.graph.initializers[ref.tensor].const_value.shape[ref.axis]  # type: ignore[union-attr]
        gone = sorted(set(range(int(size))) - set(kept))
        wrong = [tuple(sorted({*kept, gone[0]} - {one})) for one in kept[:6]]
        slices = [
            {**found.cut.plan.slices, ref.tensor: {**found.cut.plan.slices[ref.tensor], ref.axis: w}}
            for w in wrong
        ]
        # a unit may be dead on these inputs, but not one after the other
        assert any(not recheck(found, replace(found.cut.plan, slices=s)).passed for s in slices), group.id


def test_a_norm_that_isnt_restricted_is_caught() -> None:
    found = trial(transformer_encoder(hidden=16, heads=4, ffn=24))
    assert found.cut.plan.restrictions
    assert found.proof.relative_error < 1e-5
    assert not recheck(found, replace(found.cut.plan, restrictions=())).passed
    one = found.cut.plan.restrictions[0]
    wrong = replace(
        one, kept=tuple(sorted({*one.kept[1:], next(i for i in range(one.size) if i not in one.kept)}))
    )
    assert not recheck(
        found, replace(found.cut.plan, restrictions=(wrong, *found.cut.plan.restrictions[1:]))
    ).passed


def test_a_slice_may_be_forgotten_where_another_covers_it_but_not_both() -> None:
    found = trial(residual_cnn(width=8))

    def without(*names: str) -> Plan:
        slices = {n: axes for n, axes in found.cut.plan.slices.items() if n not in names}
        return replace(found.cut.plan, slices=slices)

    # the bias of a cut channel stays: Relu lets it through, but the next convolution's slice is zero
    assert recheck(found, without("block1.a.bn.bias")).passed
    assert recheck(found, without("block1.b.conv.weight")).passed
    assert not recheck(found, without("block1.a.bn.bias", "block1.b.conv.weight")).passed


def test_quantized_weights_are_masked_with_their_zero_point() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "q1": rng.integers(0, 255, (6, 3, 1, 1)).astype(np.uint8), "s": np.float32(0.01), "z": np.uint8(128),
        "q2": rng.integers(0, 255, (4, 6, 1, 1)).astype(np.uint8),
        "sc": rng.uniform(0.01, 0.02, 4).astype(np.float32), "zc": np.array([100, 120, 130, 90], np.uint8),
    }  # fmt: skip
    nodes = """w1 = DequantizeLinear(q1, s, z) w2 = DequantizeLinear<axis=0>(q2, sc, zc)
        a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)"""
    found = trial(tiny(nodes, x=["N", 3, 5, 5], weights=weights))  # type: ignore[arg-type]
    assert found.removed == 3
    assert found.proof.relative_error < 1e-6
    reference = masked_module.masked(ir.from_proto(found.original), found.cut.plan)
    gone = sorted(set(range(6)) - set(found.cut.plan.slices["q2"][1]))
    filled = reference.graph.initializers["q2"].const_value
    assert filled is not None
    assert np.array_equal(filled.numpy()[:, gone, 0, 0], np.tile(weights["zc"][:, None], (1, len(gone))))  # type: ignore[call-overload]


def test_an_error_of_rounding_size_passes_and_one_above_it_does_not() -> None:
    plan = Plan(sha256="", opset=17)
    reference = {"y": np.full((2, 3), 10.0, np.float32)}
    near = {"y": reference["y"] + np.float32(10 * verify.TOLERANCE / 2)}
    far = {"y": reference["y"] + np.float32(10 * verify.TOLERANCE * 2)}
    assert verify.compare(plan, reference, near, samples=2).passed
    assert not verify.compare(plan, reference, far, samples=2).passed
    assert verify.compare(plan, reference, far, samples=2).max_abs_error == pytest.approx(
        10 * verify.TOLERANCE * 2, rel=1e-2
    )


def test_outputs_that_are_not_numbers_dont_pass() -> None:
    plan, reference = Plan(sha256="", opset=17), {"y": np.ones((2, 3), np.float32)}
    broken = {"y": np.full((2, 3), np.nan, np.float32)}
    assert not verify.compare(plan, reference, broken, samples=2).passed


def test_outputs_of_another_shape_are_named() -> None:
    plan, reference = Plan(sha256="", opset=17), {"scores": np.ones((2, 3), np.float32)}
    with pytest.raises(
        PostconditionError, match=r"'scores' has shape \(2, 2\) after the cut, \(2, 3\) before"
    ):
        verify.compare(plan, reference, {"scores": np.ones((2, 2), np.float32)}, samples=2)


def test_a_noisy_model_is_allowed_its_own_noise_and_no_more() -> None:
    """Exponentials of exponentials: rounding comes out a thousand times larger."""
    nodes = (
        """a = Conv(x, w1) b = Tanh(a) y1 = Conv(b, w2) e = Mul(y1, k) f = Sin(e)  g = Mul(f, k) y = Sin(g)"""
    )
    weights = {"w1": (32, 3, 3, 3), "w2": (4, 32, 1, 1), "k": np.float32(60.0)}
    found = trial(tiny(nodes, x=["N", 3, 12, 12], weights=weights))
    assert found.proof.passed
    assert found.proof.tolerance <= verify.LIMIT
    value = found.cut.model.graph.initializers["w2"]
    assert value.const_value is not None
    set_weight(value, np.roll(value.const_value.numpy(), 1, axis=1), value.const_value.dtype)
    assert not recheck(found).passed


def test_names_that_the_original_doesnt_have_are_reported() -> None:
    found = trial(mlp())
    original = ir.from_proto(found.original)
    unknown = replace(found.cut.plan, slices={**found.cut.plan.slices, "nobody": {0: (0,)}})
    with pytest.raises(PostconditionError, match="slices 'nobody', which the original"):
        verify.masked(original, unknown)
    restriction = Restriction("nowhere", "fc0_out", 1, 2, 32, (0,))
    with pytest.raises(PostconditionError, match="'nowhere' isn't computed"):
        verify.masked(original, replace(found.cut.plan, restrictions=(restriction,)))


def test_an_original_that_takes_one_sample_alone_is_blamed_itself() -> None:
    """Its input's axis 0 is said to be free, but what is added to it has two rows."""
    weights = {"w": (8, 8), "two": (2, 8), "v": (8, 4)}
    one = tiny("a = MatMul(x, w) b = Relu(a) c = Add(b, two) y = MatMul(c, v)", x=["N", 8], weights=weights)
    found = trial(one, batches=[2])
    assert found.proof.passed
    with pytest.raises(ModelError, match="the model itself fails") as caught:
        recheck(found)
    assert caught.value.exit_code == 2
    assert "number of samples" in str(caught.value)


def test_a_proof_that_chance_decides_blames_the_original() -> None:
    nodes = "a = MatMul(x, w) b = Relu(a) n = RandomNormalLike(b) c = Add(b, n) y = MatMul(c, v)"
    plain = trial(tiny("a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", x=["N", 8], weights=WEIGHTS))
    noisy = ir.from_proto(tiny(nodes, x=["N", 8], weights=WEIGHTS))
    feeds = feeds_of(plain.original, plain.analysis, batch=16)
    with pytest.raises(ModelError, match="is random, by RandomNormalLike"):
        verify.check(noisy, plain.cut.plan, plain.cut.model, feeds)


def test_the_original_stays_as_it_was() -> None:
    found = trial(residual_cnn(width=8))
    original = ir.from_proto(found.original)
    before = {
        n: v.const_value.numpy().copy() for n, v in original.graph.initializers.items() if v.const_value
    }
    count = len(list(original.graph))
    verify.masked(original, found.cut.plan)
    assert len(list(original.graph)) == count
    for name, value in original.graph.initializers.items():
        assert value.const_value is not None
        assert np.array_equal(value.const_value.numpy(), before[name])


def test_the_oracle_uses_nothing_of_the_slicer() -> None:
    folder = Path(condensec.__file__).parent
    for name in ("verify.py", "masked.py"):
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not [m for m in modules if m.startswith(("condensec.passes", "condensec.hardware"))]


def test_a_plan_and_the_original_alone_give_the_reference_in_plain_numpy() -> None:
    """What a program that knows only ONNX would do, for cuts that no norm reduces over."""
    import onnxruntime
    from onnx import numpy_helper

    model = residual_cnn(width=8)
    found = trial(model)
    plan = found.cut.plan.to_json()
    assert all(g["exact"] for g in plan["groups"])
    for weight in model.graph.initializer:
        for axis, kept in plan["slices"].get(weight.name, {}).items():
            array = numpy_helper.to_array(weight).copy()
            gone = np.setdiff1d(np.arange(array.shape[int(axis)]), kept)
            np.moveaxis(array, int(axis), 0)[gone] = 1 if weight.name.endswith(".var") else 0
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    feeds = feeds_of(found.original, found.analysis)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    run = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(
        None, feeds
    )
    cut = onnxruntime.InferenceSession(
        ir.to_proto(found.cut.model).SerializeToString(), options, ["CPUExecutionProvider"]
    ).run(None, feeds)
    assert np.allclose(run[0], cut[0], atol=1e-5)


def test_half_is_what_it_says() -> None:
    found = trial(mlp(hidden=(8, 7)))
    assert {len(kept) for kept in half(found.analysis).values()} == {4, 3}
