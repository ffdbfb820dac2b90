"""Which units live and die together: on models small enough to say by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny, trial
from graph_builder import Builder
from models import (
    BUILDERS,
    as_constant_nodes,
    concat_net,
    depthwise_se_cnn,
    grouped_cnn,
    mlp,
    option_a_cnn,
    residual_cnn,
    split_net,
    transformer_encoder,
)
from onnx import TensorProto, helper

from condensec.errors import ModelError
from condensec.passes.groups import Analysis, analyze
from condensec.passes.rules import rule


def analysis_of(model: onnx.ModelProto, **options: object) -> Analysis:
    return analyze(ir.from_proto(model), **options)  # type: ignore[arg-type]


def places(analysis: Analysis) -> list[set[str]]:
    return [{f"{a.tensor}:{a.axis}" for a in g.axes} for g in analysis.groups]


def test_mlp_as_in_the_literature_a_neuron_is_a_row_a_bias_and_a_column() -> None:
    analysis = analysis_of(mlp(hidden=(8, 6)))
    assert places(analysis) == [
        {"fc0.weight:0", "fc0.bias:0", "fc1.weight:0"},
        {"fc1.weight:1", "fc1.bias:0", "fc.weight:1"},
    ]
    assert [(g.kind, g.size) for g in analysis.groups] == [("neuron", 8), ("neuron", 6)]
    assert {f.reason for f in analysis.frozen} == {
        "multiplied with an axis of the data",
        "graph output 'logits'",
    }


def test_resnet_as_in_depgraph_the_stage_is_one_group_and_each_block_has_an_inner_one() -> None:
    """DepGraph (Fang et al. 2023, fig. 3): every layer that writes to a residual stream is coupled."""
    analysis = analysis_of(residual_cnn(width=8))
    found = places(analysis)
    stage1 = next(p for p in found if "stem.conv.weight:0" in p)
    assert {
        "block1.b.conv.weight:0",
        "block1.b.bn.scale:0",
        "block1.a.conv.weight:1",
        "block2.shortcut.conv.weight:1",
    } <= stage1
    assert "block1.a.conv.weight:0" not in stage1
    inner = next(p for p in found if "block1.a.conv.weight:0" in p)
    assert inner == {
        "block1.a.conv.weight:0",
        *(f"block1.a.bn.{n}:0" for n in ("scale", "bias", "mean", "var")),
        "block1.b.conv.weight:1",
    }
    stage2 = next(p for p in found if "block2.b.conv.weight:0" in p)
    assert {"block2.shortcut.conv.weight:0", "fc.weight:1"} <= stage2
    assert [g.size for g in analysis.groups] == [8, 8, 16, 16]
    assert all(g.kind == "channel" and g.exact for g in analysis.groups)


def test_mobilenet_as_in_depgraph_expansion_depthwise_and_gate_are_coupled() -> None:
    found = places(analysis_of(depthwise_se_cnn(width=8)))
    expansion = next(p for p in found if "block1.expand.conv.weight:0" in p)
    assert {
        "block1.dw.conv.weight:0",
        "block1.project.conv.weight:1",
        "block1.se.reduce.weight:1",
        "block1.se.expand.weight:0",
    } <= expansion
    assert "block1.dw.conv.weight:1" not in expansion


def test_resnext_as_in_depgraph_groups_and_channels_of_a_group_are_cut_apart() -> None:
    analysis = analysis_of(grouped_cnn(width=8, groups=4))
    sizes = {g.size for g in analysis.groups if any(a.tensor == "block.grouped.conv.weight" for a in g.axes)}
    assert sizes == {4}  # 4 groups; 4 channels of a group, in and out
    trial(grouped_cnn(width=8, groups=4), batches=(1, 3))


def test_densenet_as_in_depgraph_a_concatenation_couples_each_branch_with_its_piece_of_the_norm() -> None:
    analysis = analysis_of(concat_net(width=8))
    found = places(analysis)
    left, right = (next(p for p in found if f"{n}.conv.weight:0" in p) for n in ("left", "right"))
    assert left != right
    assert {"bn.scale:0", "mix.conv.weight:1"} <= left & right


def test_bert_as_in_the_literature_heads_head_dims_neurons_and_one_hidden_size() -> None:
    analysis = analysis_of(transformer_encoder(layers=2, hidden=16, heads=4, ffn=24))
    kinds = [(g.kind, g.size) for g in analysis.groups]
    assert kinds.count(("hidden", 16)) == 1
    assert kinds.count(("head", 4)) == 2
    assert kinds.count(("neuron", 24)) == 2
    assert kinds.count(("head_dim", 4)) == 4  # q with k, and v, in each layer
    hidden = next(g for g in analysis.groups if g.kind == "hidden")
    assert not hidden.exact
    touched = {a.tensor for a in hidden.axes}
    assert {"embed.weight", "layer1.ffn2.weight", "layer0.attention.q.weight", "fc.weight"} <= touched
    head = next(g for g in analysis.groups if g.kind == "head")
    assert head.exact
    assert {a.tensor.rsplit(".", 2)[-2] for a in head.axes if a.tensor.endswith("weight")} == {
        "q",
        "k",
        "v",
        "out",
    }


def test_grouped_query_attention_couples_a_kv_head_with_its_query_heads() -> None:
    nodes = """q = MatMul(x, wq) k = MatMul(x, wk) q4 = Reshape(q, zq) k4 = Reshape(k, zk)
        qt = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,1,3]>(k4) ku = Unsqueeze(kt, two) ke = Expand(ku, ze) kr = Reshape(ke, zr)
        kp = Transpose<perm=[0,1,3,2]>(kr) s = MatMul(qt, kp) p = Softmax(s) c = MatMul(p, kr)
        ct = Transpose<perm=[0,2,1,3]>(c) cf = Reshape(ct, zf) y = MatMul(cf, wo)"""
    ints = {
        "zq": (0, 5, 4, 3),
        "zk": (0, 5, 2, 3),
        "two": (2,),
        "ze": (2, 2, 2, 5, 3),
        "zr": (2, 4, 5, 3),
        "zf": (2, 5, 12),
    }
    weights = {
        "wq": (6, 12),
        "wk": (6, 6),
        "wo": (12, 6),
        **{n: np.array(v, np.int64) for n, v in ints.items()},
    }
    found = trial(tiny(nodes, x=[2, 5, 6], weights=weights), keep=0.5)
    assert found.proof.passed
    kv = next(g for g in found.analysis.groups if g.kind == "kv_head")
    assert {a.tensor for a in kv.axes} == {"wq", "wk", "wo"}
    assert found.weight("wk").shape[1] * 2 in (found.weight("wq").shape[1], 2 * found.weight("wq").shape[1])


def test_option_a_shortcut_couples_through_the_padding() -> None:
    found = trial(option_a_cnn(width=8), batches=(1, 3))
    assert found.proof.passed
    assert found.removed > 0


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_test_model_is_cut_right_as_stored_and_with_constant_nodes(builder: str, seed: int) -> None:
    model = BUILDERS[builder]()
    stored = trial(model, seed=seed, batches=(1, 3))
    assert stored.removed > 0
    assert stored.proof.relative_error < 1e-5
    disguised = trial(as_constant_nodes(model), seed=seed, batches=(1, 3))
    assert disguised.proof.relative_error < 1e-5
    assert disguised.cut.plan.groups == stored.cut.plan.groups
    assert disguised.cut.plan.slices == stored.cut.plan.slices


@pytest.mark.parametrize(
    "options",
    [
        {"shape_arithmetic": True},
        {"decomposed_norm": True},
        {"shape_arithmetic": True, "decomposed_norm": True},
    ],
)
def test_transformers_with_shape_arithmetic_and_norms_in_pieces(options: dict[str, bool]) -> None:
    found = trial(transformer_encoder(hidden=16, heads=4, ffn=24, **options), batches=(1, 3))  # type: ignore[arg-type]
    assert found.proof.relative_error < 1e-5
    assert len(found.analysis.groups) == 9


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22])
@pytest.mark.parametrize("builder", ["residual_cnn", "grouped_cnn", "concat_net"])
def test_the_same_cut_at_every_opset(builder: str, opset: int) -> None:
    model = BUILDERS[builder]()
    model.opset_import[0].version = opset  # the operators of these models mean the same since opset 7
    found = trial(model, batches=(1, 3))
    assert found.proof.relative_error < 1e-5
    assert found.cut.plan.groups == trial(BUILDERS[builder]()).cut.plan.groups
    assert found.cut.plan.opset == opset


def test_attributes_of_old_opsets_follow_the_cut() -> None:
    nodes = """a = Conv<pads=[1,1,1,1]>(x, w1) p, q = Split<axis=1, split=[2,4]>(a)
        s = Slice<axes=[1], starts=[1], ends=[9]>(q)
        d = Pad<pads=[0,1,0,0,0,2,0,0]>(s) u = Unsqueeze<axes=[4]>(d) v = Squeeze<axes=[4]>(u)
        c = Concat<axis=1>(v, p) y = Conv(c, w2)"""
    found = trial(
        tiny(nodes, x=["N", 3, 6, 6], weights={"w1": (6, 3, 3, 3), "w2": (4, 8, 1, 1)}, opset=9),
        seed=1,
        batches=(1, 3),
    )
    assert found.removed > 0
    assert found.proof.relative_error < 1e-6


# -- what can't be cut, and why ---------------------------------------------------------------------------


def reasons(model: onnx.ModelProto, **options: object) -> set[str]:
    return {f.reason for f in analysis_of(model, **options).frozen}


CONVS = {"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1)}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("b = LRN<size=3>(a)", "LRN scales each channel by its neighbours"),
        ("b = CumSum(a, one)", "CumSum runs along this axis"),
        ("b = Gather<axis=1>(a, i)", "indexed by the data"),
        (
            "z = ReverseSequence<batch_axis=0, time_axis=1>(a, lens) b = Identity(z)",
            "operator ReverseSequence has no rule",
        ),
    ],
)
def test_frozen_axes_carry_a_reason_a_user_can_act_on(nodes: str, reason: str) -> None:
    weights = {**CONVS, "one": np.int64(1), "lens": np.array([3, 3], np.int64)}
    inputs = {"x": [2, 3, 6, 6], "i": [6]}
    model = tiny(
        f"a = Conv<pads=[1,1,1,1]>(x, w1) {nodes} y = Conv(b, w2)",
        x=inputs,
        weights=weights,
        dtypes={"i": TensorProto.INT64},
    )
    assert reason in reasons(model)
    assert trial(model).proof.passed


def test_an_output_freezes_what_it_shows() -> None:
    model = tiny("a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)", x=["N", 3, 6, 6], weights=CONVS, y=["y", "b"])
    assert "graph output 'b'" in reasons(model)
    assert not analysis_of(model).groups


def test_a_shape_that_is_an_output_freezes_the_axis() -> None:
    nodes = "a = Conv(x, w1) b = Relu(a) s = Shape(b) k = Gather(s, one) y = Conv(b, w2)"
    model = tiny(nodes, x=["N", 3, 6, 6], weights={**CONVS, "one": np.int64(1)})
    model.graph.output.append(helper.make_tensor_value_info("k", TensorProto.INT64, None))
    assert "graph output 'k'" in reasons(model)


def test_freeze_leaves_nodes_and_weights_alone_by_name() -> None:
    model = residual_cnn(width=8)
    assert len(analysis_of(model, freeze="block1").groups) == 2
    assert "named by --freeze" in reasons(model, freeze="^stem.conv.weight$")
    assert len(analysis_of(model, freeze="nothing like it").groups) == 4


def test_optional_outputs_without_a_name_and_nodes_without_names() -> None:
    model = residual_cnn(width=8)
    model.graph.node.insert(3, helper.make_node("Dropout", ["stem.relu_out"], ["dropped", ""]))
    for node in model.graph.node:
        node.name = ""
        for i, name in enumerate(node.input):
            if name == "stem.relu_out" and node.op_type == "Conv":
                node.input[i] = "dropped"
    found = trial(model, batches=(1, 3))
    assert found.removed == 24
    assert found.proof.relative_error < 1e-5


def test_a_rule_that_fails_freezes_its_node_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from condensec.passes import rules

    def broken(ctx: object, node: ir.Node) -> None:
        raise ValueError("axes of 3 and 4 units can't be the same")

    rules.load_all()
    monkeypatch.setitem(rules._RULES, "Relu", broken)
    model = tiny(
        "a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Sigmoid(c) y = Conv(d, w3)",
        x=["N", 3, 6, 6],
        weights={**CONVS, "w3": (2, 4, 1, 1)},
    )
    analysis = analysis_of(model)
    assert [g.size for g in analysis.groups] == [4]
    assert any("Relu" in f.reason and "3 and 4" in f.reason for f in analysis.frozen)


def test_two_rules_for_one_operator_are_an_error() -> None:
    with pytest.raises(ValueError, match="two rules for Relu"):
        rule("Relu")(lambda ctx, node: None)


def test_sizes_that_cannot_follow_freeze_the_group_at_analysis_time() -> None:
    """The target of the Reshape is the square root of something dynamic: nothing can make it follow."""
    nodes = """a = MatMul(x, w1) s = Shape(a) n = Slice(s, zero, one) nn = Mul(n, n) f = Cast<to=1>(nn)
        r = Sqrt(f)
        t = Cast<to=7>(r) h = Add(t, four) hm = Sub(h, t) c = Mul(hm, t) d = Div(c, t)
        z = Concat<axis=0>(t, d, three)
        b = Reshape(a, z) e = Transpose<perm=[0,2,1]>(b) g = ReduceSum<keepdims=0>(e, one)
        y = MatMul(g, w2)"""
    weights = {
        "w1": (5, 12),
        "w2": (4, 2),
        "zero": np.array([0]),
        "one": np.array([1]),
        "three": np.array([3]),
        "four": np.array([4]),
    }
    model = tiny(nodes, x=["N", 5], weights=weights)
    found = trial(model, batches=(1, 3))
    assert found.proof.passed
    assert any("can't follow" in f.reason for f in found.analysis.frozen) or found.removed


def test_inputs_without_shapes_are_an_error_that_says_what_to_do() -> None:
    model = tiny("y = Relu(x)", x=["N", 3])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no shape"):
        analysis_of(model)
    assert analysis_of(model, shapes={"x": (1, 3)}).world.inputs == {"x": (2, 3)}


def test_the_share_of_reachable_macs() -> None:
    assert analysis_of(residual_cnn()).reachable() == 1.0
    frozen = analysis_of(residual_cnn(), freeze=".")
    assert frozen.reachable() == 0.0
    assert not frozen.groups


def test_macs_of_a_convolution_by_hand_and_after_a_cut() -> None:
    model = tiny("a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)", x=["N", 3, 6, 6], weights=CONVS)
    analysis = analysis_of(model)
    assert analysis.macs() == 6 * 3 * 9 * 16 + 4 * 6 * 16
    kept = analysis.kept({"g0": [0, 5]})
    assert analysis.macs(kept.sizes) == 2 * 3 * 9 * 16 + 4 * 2 * 16


def test_two_analyses_of_one_model_agree() -> None:
    model = transformer_encoder(hidden=16, heads=4, ffn=24)
    first, second = analysis_of(model), analysis_of(model)
    assert [(g.id, g.kind, g.size, g.axes) for g in first.groups] == [
        (g.id, g.kind, g.size, g.axes) for g in second.groups
    ]


def test_a_gated_unit_and_its_split_stay_in_step() -> None:
    found = trial(split_net(width=8), keep=0.25, batches=(1, 3))
    assert found.proof.relative_error < 1e-5
    assert found.weight("gate.conv.weight").shape[0] % 2 == 0


def test_open_sizes_that_dont_fit_are_found_by_running_the_model() -> None:
    """Height and width are stated as open, but only 32 fits the linear layer in the middle."""
    nodes = """a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w1) b = Relu(a)
        c = Flatten(b) d = MatMul(c, w2) e = Relu(d) y = MatMul(e, w3)"""
    weights = {"w1": (6, 3, 3, 3), "w2": (6 * 16 * 16, 8), "w3": (8, 2)}
    model = tiny(nodes, x=["N", 3, "H", "W"], weights=weights)
    found = trial(model, batches=(1, 3))
    assert found.analysis.world.inputs["x"][2:] == (32, 32)
    assert [g.size for g in found.analysis.groups] == [6, 8]
    assert found.proof.relative_error < 1e-5


def test_values_that_nothing_can_infer_are_learnt_from_one_run() -> None:
    """How many rows NonZero finds is known only when it has run."""
    nodes = """m = MatMul(x, w1) a = Relu(m) g = Greater(p, zero) n = NonZero(g) q = Squeeze(n, first)
        t = Gather<axis=0>(a, q) u = MatMul(t, w2) y = ReduceSum<keepdims=0>(u, first)"""
    weights = {"w1": (4, 6), "w2": (6, 3), "zero": np.float32(0), "first": np.array([0])}
    found = trial(tiny(nodes, x={"x": ["N", 4], "p": ["N"]}, weights=weights))
    assert [g.size for g in found.analysis.groups] == [6]
    assert found.proof.passed


def test_a_chain_of_thousands_of_residual_blocks_is_one_group_and_one_for_each() -> None:
    """Deeper than Python's stack, and no set grows with its length."""
    b, x, blocks = Builder(0), "x", 1100
    b.input("x", ["N", 4])
    for k in range(blocks):
        y = b.op("Relu", f"relu{k}", b.gemm(f"a{k}", x, 4, 4))
        x = b.op("Add", f"add{k}", b.gemm(f"b{k}", y, 4, 4), x if k else b.gemm("stem", x, 4, 4))
    b.gemm("fc", x, 4, 2, "y")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(b.nodes, "deep", b.inputs, outputs, b.initializers)
    analysis = analysis_of(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    assert len(analysis.groups) == blocks + 1
    assert max(len(g.axes) for g in analysis.groups) > 2 * blocks
    assert len(analysis.layers) == blocks - 1  # the first one adds two projections


def test_a_shuffle_behind_a_shuffle_that_is_split_again_is_cut() -> None:
    nodes = """a = Conv(x, w1) b = Reshape(a, r) c = Transpose<perm=[0,2,1,3,4]>(b) d = Reshape(c, q)
        e = Reshape(d, r) f = Transpose<perm=[0,2,1,3,4]>(e) g = Reshape(f, q)
        h, i = Split<axis=1>(g, z) j = Relu(h) y0 = Conv(j, w2) y1 = Conv(i, w3) y = Add(y0, y1)"""
    weights = {
        "w1": (6, 3, 1, 1), "w2": (4, 2, 1, 1), "w3": (4, 4, 1, 1),
        "r": np.array([0, 2, 3, 5, 5]), "q": np.array([0, 6, 5, 5]), "z": np.array([2, 4]),
    }  # fmt: skip
    found = trial(tiny(nodes, x=["N", 3, 5, 5], weights=weights))
    assert found.removed > 0
    assert found.proof.relative_error < 1e-6


@pytest.mark.parametrize("opset", [9, 11, 12, 13])
def test_sizes_put_together_by_old_operators_are_known(opset: int) -> None:
    """Exporters up to opset 12 wrote Unsqueeze with its axes as an attribute between Shape and Reshape."""
    b = Builder(0)
    x = b.conv("first", b.input("x", [1, 3, 6, "W"]), 3, 8)
    shape, sizes = b.op("Shape", "shape", x), []
    for axis in range(4):
        b.const(f"i{axis}", np.array(axis, np.int64))
        sizes.append(b.op("Gather", f"size{axis}", shape, f"i{axis}", axis=0))
    sizes = [sizes[0], b.op("Mul", "features", sizes[1], sizes[2]), sizes[3]]
    axes = {"axes": [0]} if opset < 13 else {}
    extra = [] if axes else [b.ints("zero", 0)]
    parts = [b.op("Unsqueeze", f"part{i}", size, *extra, **axes) for i, size in enumerate(sizes)]
    rows = b.op("Reshape", "rows", x, b.op("Concat", "target", *parts, axis=0))
    y = b.op("MatMul", "last", b.op("Transpose", "turned", rows, perm=[0, 2, 1]), b.normal("w", (48, 5), 0.1))
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
    graph = helper.make_graph(b.nodes, "old", b.inputs, [output], b.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    analysis = analysis_of(model, shapes={"x": (1, 3, 6, 7)})
    assert places(analysis) == [{"first.weight:0", "w:0"}]
    assert analysis.reachable() == 1.0
