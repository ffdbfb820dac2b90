"""The slicer: errors, plans that can be replayed, weights in disguise, nested cuts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import feeds_of, half, tiny, trial
from hypothesis import given, settings
from hypothesis import strategies as st
from models import as_constant_nodes, concat_net, mlp, residual_cnn, transformer_encoder, with_batch
from onnx import TensorProto, helper, numpy_helper
from random_models import random_model

from condensec import verify
from condensec.errors import ConfigError, PostconditionError, PreconditionError
from condensec.passes.groups import analyze
from condensec.passes.prune import carried, prune, replay, with_weights
from condensec.plan import Plan, read_plan
from condensec.runner import Session

CONVS = {"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(100_000, 900_000), st.floats(0.15, 0.9))
def test_random_graphs_cut_at_random_are_right(seed: int, keep: float) -> None:
    found = trial(random_model(seed), seed=seed, keep=keep)
    assert found.proof.relative_error < 1e-4


def test_what_cant_be_asked_for() -> None:
    analysis = analyze(ir.from_proto(mlp(hidden=(8,))))
    with pytest.raises(PreconditionError, match="g0 would lose all of its 8 units"):
        prune(analysis, {"g0": []})
    with pytest.raises(PreconditionError, match=r"units 0\.\.7; asked to keep \[3, 8\]"):
        prune(analysis, {"g0": [3, 8]})
    with pytest.raises(PreconditionError, match=r"units 0\.\.7"):
        prune(analysis, {"g0": [3, 3]})
    with pytest.raises(PreconditionError, match="no group is called g7"):
        prune(analysis, {"g7": [1]})


def test_nothing_asked_for_is_nothing_done() -> None:
    model = residual_cnn(width=8)
    found = trial(model, units={})
    assert found.proof.max_abs_error == 0
    assert not found.cut.plan.slices
    assert not found.cut.plan.kept()


def test_a_plan_replays_from_its_file_to_the_same_bytes(tmp_path: Path) -> None:
    found = trial(transformer_encoder(hidden=16, heads=4, ffn=24))
    path = tmp_path / "plan.json"
    path.write_text(found.cut.plan.dumps())
    plan = read_plan(path)
    assert plan == found.cut.plan
    assert plan.digest() == found.cut.plan.digest()
    again = replay(analyze(ir.from_proto(found.original)), plan)
    assert again.plan == plan
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(found.cut.model).SerializeToString()


def test_a_plan_of_another_model_is_refused() -> None:
    plan = trial(mlp(hidden=(8, 6))).cut.plan
    with pytest.raises(PreconditionError, match=r"group g0 \(8 units\) isn't in this model"):
        replay(analyze(ir.from_proto(mlp(hidden=(9, 6)))), plan)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "model": 3}'])
def test_a_plan_file_that_is_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_plan(path)


def test_plan_json_is_the_documented_contract() -> None:
    document = json.loads(trial(residual_cnn(width=8)).cut.plan.dumps())
    assert document["schema"] == 1
    assert set(document) >= {"model", "groups", "frozen", "slices", "shapes", "removed_layers"}
    group = document["groups"][0]
    assert set(group) == {"id", "kind", "size", "kept", "exact", "axes"}
    for name, axes in document["slices"].items():
        for axis, kept in axes.items():
            assert kept == sorted(set(kept)), (name, axis)


def test_dynamic_batches_stay_dynamic_and_fixed_ones_fixed() -> None:
    model = transformer_encoder(hidden=16, heads=4, ffn=24, shape_arithmetic=True)
    found = trial(model, batches=(1, 3))
    session = Session(found.cut.model)
    assert session.batch_size is None
    fixed = trial(with_batch(residual_cnn(width=8), 4))
    assert Session(fixed.cut.model).batch_size == 4
    assert fixed.proof.passed


def test_sequence_lengths_other_than_the_sampled_one_run() -> None:
    model = transformer_encoder(hidden=16, heads=4, ffn=24, shape_arithmetic=True)
    found = trial(model)
    for length in (3, 11):
        feeds = {n: np.ones((2, length), np.int64) for n in ("input_ids", "attention_mask")}
        proof = verify.check(ir.from_proto(model), found.cut.plan, found.cut.model, feeds)
        assert proof.relative_error < 1e-5


def test_the_recorded_shapes_of_inner_values_are_forgotten_but_not_those_of_outputs() -> None:
    model = onnx.shape_inference.infer_shapes(residual_cnn(width=8))
    found = trial(model)
    assert all(o.shape is None for n in found.cut.model.graph for o in n.outputs if not o.is_graph_output())
    assert found.cut.model.graph.outputs[0].shape is not None


# -- weights in disguise ----------------------------------------------------------------------------------


def test_constant_nodes_are_sliced_under_the_name_of_their_output() -> None:
    found = trial(as_constant_nodes(mlp(hidden=(8,))))
    assert found.cut.plan.slices["fc.weight"] == {1: found.cut.plan.groups[0].kept}


def test_shared_biases_are_split_before_they_are_cut_differently() -> None:
    nodes = "a = Conv(x, w1, b) c = Relu(a) d = Conv(c, w2, b) e = Relu(d) y = Conv(e, w3)"
    weights = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (4, 6, 1, 1), "b": (6,)}
    model = tiny(nodes, x=["N", 3, 5, 5], weights=weights)
    found = trial(model, units={"g0": [0, 1, 2], "g1": [3, 4, 5]})
    assert found.proof.relative_error < 1e-6
    assert {s.of for s in found.cut.plan.splits.values()} == {"b"}
    assert len(found.cut.plan.splits) == 2
    assert "b" not in found.cut.plan.slices
    assert "b" not in found.cut.model.graph.initializers
    alike = trial(model, units={"g0": [1, 2], "g1": [1, 2]})
    assert not alike.cut.plan.splits
    assert alike.cut.plan.slices["b"] == {0: (1, 2)}
    assert len([n for n in alike.cut.model.graph.initializers if n.startswith("b")]) == 1
    assert alike.proof.relative_error < 1e-6


def test_a_shared_matrix_ties_its_users() -> None:
    nodes = """a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w) d = Relu(c)
        e = MatMul(d, w) f = Relu(e) y = MatMul(f, w2)"""
    found = trial(tiny(nodes, x=["N", 4], weights={"w1": (4, 6), "w": (6, 6), "w2": (6, 3)}))
    assert len(found.analysis.groups) == 1
    assert found.proof.relative_error < 1e-6


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_precisions_keep_their_type(dtype: int) -> None:
    model = tiny(
        "c = Cast<to=1>(x) m = MatMul(x, w1) b = Relu(m) n = MatMul(b, w2) y = Cast<to=1>(n)",
        x=["N", 4],
        dtypes={"x": dtype},
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (4, 8)), ("w2", (8, 3))):
        array = rng.normal(size=shape).astype(helper.tensor_dtype_to_np_dtype(dtype))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    analysis = analyze(ir.from_proto(model))
    cut = prune(analysis, half(analysis))
    weight = cut.model.graph.initializers["w1"].const_value
    assert weight is not None
    assert weight.dtype == ir.DataType(dtype)
    assert list(weight.shape) == [4, 4]
    if dtype == TensorProto.BFLOAT16:
        return  # onnxruntime's CPU has no MatMul in bfloat16
    assert verify.check(ir.from_proto(model), cut.plan, cut.model, feeds_of(model, analysis)).passed


def test_local_functions_are_inlined_and_the_plan_still_fits_the_original_file() -> None:
    nodes = "a = Conv(x, w1) b = own.Act(a) c = Conv(b, w2) d = own.Act(c) y = Conv(d, w3)"
    model = tiny(nodes, x=["N", 3, 5, 5], weights={**CONVS, "w3": (2, 4, 1, 1)}, domains=("own",))
    inner = [helper.make_node("Sigmoid", ["i"], ["s"]), helper.make_node("Mul", ["i", "s"], ["o"])]
    model.functions.append(
        helper.make_function("own", "Act", ["i"], ["o"], inner, [helper.make_opsetid("", 17)])
    )
    found = trial(model, batches=(1, 3))
    assert [g.size for g in found.analysis.groups] == [6, 4]
    assert found.proof.relative_error < 1e-6


def test_weights_inside_local_functions_are_cut_too() -> None:
    model = tiny("a = Conv(x, w1) b = own.Layer(a) y = Conv(b, w2)", x=["N", 3, 5, 5],
                 weights={"w1": (6, 3, 1, 1), "w2": (2, 5, 1, 1)}, domains=("own",))  # fmt: skip
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(5, 6, 1, 1)).astype(np.float32))
    inner = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Conv", ["i", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["o"]),
    ]
    model.functions.append(
        helper.make_function("own", "Layer", ["i"], ["o"], inner, [helper.make_opsetid("", 17)])
    )
    found = trial(model)
    assert [g.size for g in found.analysis.groups] == [6, 5]
    assert found.proof.relative_error < 1e-6


def test_external_weights_are_sliced_when_they_are_written(tmp_path: Path) -> None:
    from condensec import io

    model = mlp(features=300, hidden=(400,))
    ir.save(ir.from_proto(model), tmp_path / "big.onnx", external_data="big.bin", size_threshold_bytes=100)
    original = io.load(tmp_path / "big.onnx")
    cut = prune(analyze(original), {"g0": range(0, 400, 4)})
    tensor = cut.model.graph.initializers["fc0.weight"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert list(tensor.shape) == [100, 300]
    expected = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "fc0.weight"))[::4]
    assert np.array_equal(tensor.numpy(), expected)
    io.save(cut.model, tmp_path / "small.onnx")
    feeds = {"input": np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)}
    assert verify.check(original, cut.plan, io.load(tmp_path / "small.onnx"), feeds).passed


def test_a_branch_is_never_left_without_a_channel() -> None:
    """The units of one Gather are one group; a Slice takes two of them, and just those are asked to go."""
    nodes = """a = Conv(x, w1) b = Gather<axis=1>(a, order) p, q = Split<axis=1>(b, sizes) r = Relu(p)
        c = Conv(r, w2)
        s = Sigmoid(q) d = Conv(s, w3) y = Add(c, d)"""
    order, sizes = np.array([5, 0, 3, 1, 4, 2]), np.array([2, 4])
    weights = {"w1": (6, 3, 1, 1), "w2": (4, 2, 1, 1), "w3": (4, 4, 1, 1), "order": order, "sizes": sizes}
    model = tiny(nodes, x=["N", 3, 5, 5], weights=weights)
    analysis = analyze(ir.from_proto(model))
    assert [g.size for g in analysis.groups] == [6]
    units = analysis.groups[0]
    view = [
        int(i)
        for a in units.atoms
        for i in np.flatnonzero(analysis.axes.units(analysis.weight_layouts["w1"][0], a) >= 0)
    ]  # type: ignore[arg-type]
    keep = [i for i, channel in enumerate(view) if channel not in (5, 0)]
    found = trial(model, units={"g0": keep})
    assert len(found.cut.plan.groups[0].kept) == 5  # one of the two came back
    assert found.proof.relative_error < 1e-6


# -- deeper cuts --------------------------------------------------------------------------------------------


def test_healed_weights_are_carried_into_a_deeper_cut() -> None:
    model = residual_cnn(width=8)
    analysis = analyze(ir.from_proto(model))
    first = prune(analysis, {g.id: range(0, g.size, 2) for g in analysis.groups})
    healed = {
        n: v.const_value.numpy() + 1
        for n, v in first.model.graph.initializers.items()
        if v.const_value and v.const_value.dtype == ir.DataType.FLOAT
    }
    second = prune(analysis, {g.id: range(0, g.size, 4) for g in analysis.groups})
    deeper = carried(healed, first.plan, second.plan)
    for name in first.plan.slices:
        expected = second.model.graph.initializers[name].const_value
        assert expected is not None
        assert np.array_equal(deeper[name], expected.numpy() + 1), name
    model_now = with_weights(second.model, deeper)
    tensor = model_now.graph.initializers["fc.weight"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), deeper["fc.weight"])


def test_units_that_were_cut_cant_come_back() -> None:
    analysis = analyze(ir.from_proto(mlp(hidden=(8,))))
    first, second = prune(analysis, {"g0": [0, 1, 2]}), prune(analysis, {"g0": [0, 3]})
    healed = {"fc0.weight": np.zeros((3, 16), np.float32)}
    with pytest.raises(PostconditionError, match="would bring back units"):
        carried(healed, first.plan, second.plan)


def test_a_shared_bias_that_splits_later_keeps_its_healed_values() -> None:
    nodes = "a = Conv(x, w1, b) c = Relu(a) d = Conv(c, w2, b) e = Relu(d) y = Conv(e, w3)"
    weights = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (4, 6, 1, 1), "b": (6,)}
    analysis = analyze(ir.from_proto(tiny(nodes, x=["N", 3, 5, 5], weights=weights)))
    first = prune(analysis, {"g0": [0, 2, 4, 5], "g1": [0, 2, 4, 5]})
    second = prune(analysis, {"g0": [0, 4], "g1": [2, 5]})
    deeper = carried({"b": np.array([10, 12, 14, 15], np.float32)}, first.plan, second.plan)
    found = sorted(tuple(deeper[name]) for name in second.plan.splits)
    assert found == [(10, 14), (12, 15)]


def test_two_branches_of_a_concatenation_are_cut_apart() -> None:
    found = trial(concat_net(width=8), units={"g1": [0], "g2": [1, 3]})
    assert found.proof.relative_error < 1e-6
    assert found.weight("mix.conv.weight").shape[1] == 8 + 1 + 2


# -- layers -------------------------------------------------------------------------------------------------


def test_residual_blocks_whose_layouts_agree_can_be_removed() -> None:
    model = residual_cnn(width=8)
    analysis = analyze(ir.from_proto(model))
    assert [layer.weighted for layer in analysis.layers] == [("block1.a.conv", "block1.b.conv")]
    cut = prune(analysis, half(analysis), layers=["l0"])
    plan = Plan.from_json(cut.plan.to_json())
    assert plan.removed_layers[0].nodes[-1] == "block1.add_out"
    assert not [n for n in cut.model.graph if "block1.a" in (n.name or "")]
    assert not [n for n in cut.model.graph.initializers if "block1.a" in n]
    for batch in (1, 3):
        proof = verify.check(ir.from_proto(model), plan, cut.model, feeds_of(model, analysis, batch=batch))
        assert proof.relative_error < 1e-6
    assert replay(analysis, plan).plan == plan
    kept = verify.check(
        ir.from_proto(model), replace(plan, removed_layers=()), cut.model, feeds_of(model, analysis)
    )
    assert not kept.passed


def test_layers_one_behind_the_other_can_all_go() -> None:
    model = transformer_encoder(layers=2, hidden=16, heads=4, ffn=24)
    analysis = analyze(ir.from_proto(model))
    assert len(analysis.layers) == 4  # attention and feed-forward, twice
    for chosen in (["l1", "l2"], ["l0", "l1", "l2", "l3"], ["l3"]):
        cut = prune(analysis, half(analysis, seed=len(chosen)), layers=chosen)
        proof = verify.check(ir.from_proto(model), cut.plan, cut.model, feeds_of(model, analysis))
        assert proof.relative_error < 1e-5, chosen
    with pytest.raises(PreconditionError, match="no layer is called l9"):
        prune(analysis, {}, layers=["l9"])


def test_a_block_that_changes_its_width_is_no_layer() -> None:
    names = {n for layer in analyze(ir.from_proto(residual_cnn(width=8))).layers for n in layer.nodes}
    assert not [n for n in names if n.startswith("block2")]
