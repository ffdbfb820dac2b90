"""Bodies of If, Loop and Scan take part in cuts, and each cut is held to the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import feeds_of, tiny, trial

from condensec import verify
from condensec.data import Samples
from condensec.errors import HealError
from condensec.fidelity import output_error
from condensec.passes import criteria
from condensec.passes.criteria import GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import prune
from condensec.passes.sensitivity import measure
from condensec.passes.supergraph import build
from condensec.runner import Session

IMAGE = ["N", 3, 6, 6]
TOKENS = ["N", 5, 3]
CONVS = {"w1": (8, 3, 1, 1), "w2": (6, 8, 1, 1), "w3": (4, 6, 1, 1), "w4": (4, 8, 1, 1), "w5": (2, 4, 1, 1)}
DENSE = {"w1": (3, 8), "w2": (8, 6), "w3": (6, 8), "wh": (8, 8), "wo": (8, 2)}
LOOP = {"M": np.int64(3), "go": np.array(True)}
BRANCHES = """k = If(flag)<then_branch = t () => (float[] r) { c = Conv(b, w2) d = Relu(c) r = Conv(d, w3) },
    else_branch = e () => (float[] r2) { c = Conv(b, w4) r2 = Relu(c) }> y = Conv(k, w5)"""


def own(model: onnx.ModelProto, path: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Put seeded weights into a body, given as ``output[attribute]``."""
    output, attribute = path.rstrip("]").split("[")
    node = next(n for n in model.graph.node if output in n.output)
    body = next(a.g for a in node.attribute if a.name == attribute)
    for number, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(number).standard_normal(shape).astype(np.float32) / 2
        body.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def captured(flag: bool = True) -> onnx.ModelProto:
    """Weights of the main graph, used in branches of different depth."""
    nodes = f"a = Conv(x, w1) b = Relu(a) {BRANCHES}"
    return tiny(nodes, x=IMAGE, weights={**CONVS, "flag": np.array(flag)})


def own_weights(flag: bool = True) -> onnx.ModelProto:
    """Different weights in either branch, under the same names."""
    nodes = """a = Conv(x, w1) b = Relu(a)
        k = If(flag)<then_branch = t () => (float[] r) { c = Conv(b, v) d = Relu(c) r = Conv(d, u) },
            else_branch = e () => (float[] r) { c = Conv(b, v) d = Sigmoid(c) r = Conv(d, u) }>
        y = Conv(k, w5)"""
    model = tiny(nodes, x=IMAGE, weights={"w1": CONVS["w1"], "w5": CONVS["w5"], "flag": np.array(flag)})
    own(model, "k[then_branch]", v=(6, 8, 1, 1), u=(4, 6, 1, 1))
    return own(model, "k[else_branch]", v=(10, 8, 1, 1), u=(4, 10, 1, 1))


def inside_and_outside(flag: bool = True) -> onnx.ModelProto:
    """One weight, used before the If and in one of its branches."""
    nodes = """p = MatMul(x, w1) q = MatMul(p, wh) b = Relu(q)
        k = If(flag)<then_branch = t () => (float[] r) { r = MatMul(b, wh) },
            else_branch = e () => (float[] r2) { r2 = Tanh(b) }>
        y = MatMul(k, wo)"""
    return tiny(nodes, x=TOKENS, weights={**_dense("w1", "wh", "wo"), "flag": np.array(flag)})


def _dense(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: DENSE[name] for name in names}


def carried() -> onnx.ModelProto:
    """A Loop that carries its state through two products; one output a step."""
    nodes = """h0 = MatMul(x, w1)
        hT, hs = Loop(M, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn, float[] s) {
            co = Identity(c) a = MatMul(h, w2) r = Relu(a) m = MatMul(r, w3) hn = Add(m, h) s = Relu(hn) }>
        q = ReduceSum<keepdims=0>(hs, ax) z = Add(q, hT) y = MatMul(z, wo)"""
    weights = {**_dense("w1", "w2", "w3", "wo"), **LOOP, "ax": np.array([0])}
    return tiny(nodes, x=TOKENS, weights=weights)


def cell(zeros: str = "ConstantOfShape(s0)", axis: int = 0) -> onnx.ModelProto:
    """A Scan that is an RNN cell, backwards; its state starts as zeros of a computed shape."""
    nodes = f"""sh = Shape(x) n = Gather(sh, one) n1 = Unsqueeze(n, at) s0 = Concat<axis=0>(n1, hid)
        h0 = {zeros}
        hT, hs = Scan<num_scan_inputs=1, scan_input_directions=[1], scan_input_axes=[{axis}],
            scan_output_axes=[{axis}], body = b (float[] h, float[] e) => (float[] hn, float[] s) {{
            a = MatMul(h, wh) d = MatMul(e, w1) t = Add(a, d) hn = Tanh(t) s = Identity(hn) }}>(h0, x)
        q = Relu(hs) y = MatMul(q, wo)"""
    sizes = {"hid": np.array([8]), "one": np.int64(1 - axis), "at": np.array([0]), "zero": np.float32(0)}
    return tiny(nodes, x=[4, 2, 3], weights={**_dense("w1", "wh", "wo"), **sizes})


def nested() -> onnx.ModelProto:
    """An If in a Loop, on a condition that changes from step to step."""
    nodes = """h0 = MatMul(x, w1)
        hT = Loop(M, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn) {
            co = Identity(c) even = Mod(i, two) flag = Equal(even, nil)
            k = If(flag)<then_branch = t () => (float[] r) {
                    p = MatMul(h, w2) q = Relu(p) r = MatMul(q, w3) },
                else_branch = e () => (float[] r) { r = MatMul(h, wh) }>
            hn = Add(k, h) }>
        y = MatMul(hT, wo)"""
    return tiny(nodes, x=TOKENS, weights={**DENSE, **LOOP, "two": np.int64(2), "nil": np.int64(0)})


def with_sizes() -> onnx.ModelProto:
    """Shape arithmetic in a body: heads are split and joined with sizes of the data."""
    nodes = """h = MatMul(x, w1)
        k = If(flag)<then_branch = t () => (float[] r) {
            s = Shape(h) n = Gather(s, nil) n1 = Unsqueeze(n, at) to = Concat<axis=0>(n1, rest)
            u = Reshape(h, to) v = Tanh(u) back = Concat<axis=0>(n1, flat) r = Reshape(v, back) },
            else_branch = e () => (float[] r2) { r2 = Relu(h) }>
        y = MatMul(k, wo)"""
    sizes = {"nil": np.int64(0), "at": np.array([0]), "rest": np.array([5, 2, 4]), "flat": np.array([5, 8])}
    return tiny(nodes, x=TOKENS, weights={**_dense("w1", "wo"), **sizes, "flag": np.array(True)})


def norm_in_body() -> onnx.ModelProto:
    """A norm in a branch, whose result leaves it at once."""
    nodes = """h = MatMul(x, w1)
        k = If(flag)<then_branch = t () => (float[] r) { r = LayerNormalization(h, g, b) },
            else_branch = e () => (float[] r2) { r2 = Relu(h) }>
        y = MatMul(k, wo)"""
    weights = {**_dense("w1", "wo"), "g": (8,), "b": (8,), "flag": np.array(True)}
    return tiny(nodes, x=TOKENS, weights=weights)


def squeezed() -> onnx.ModelProto:
    """What exporters make of `squeeze`: branches of different rank, decided by a size."""
    nodes = """h = MatMul(x, w1) s = Shape(x) n = Gather(s, one) flag = Equal(n, one)
        k = If(flag)<then_branch = t () => (float[] r) { r = Squeeze(h, at) },
            else_branch = e () => (float[] r2) { r2 = Identity(h) }>
        a = Relu(k) y = MatMul(a, wo)"""
    weights = {**_dense("w1", "wo"), "one": np.int64(1), "at": np.array([1])}
    return tiny(nodes, x=["N", 1, 3], weights=weights)


def attends() -> onnx.ModelProto:
    """A state that is multiplied with itself: zero where it is cut, in every step."""
    nodes = """h0 = MatMul(x, w1)
        hT = Loop(M, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn) {
            co = Identity(c) kt = Transpose<perm=[0,2,1]>(h) s = MatMul(h, kt) p = Softmax(s)
            hn = MatMul(p, h) }>
        y = MatMul(hT, wo)"""
    return tiny(nodes, x=TOKENS, weights={**_dense("w1", "wo"), **LOOP})


def restricted() -> onnx.ModelProto:
    """The same, but the state isn't zero where it is cut: sums are restricted in the body."""
    model = attends()
    loop = next(n for n in model.graph.node if n.op_type == "Loop")
    body = next(a.g for a in loop.attribute if a.name == "body")
    body.node[-1].output[0] = "hs"
    body.node.append(onnx.helper.make_node("Sigmoid", ["hs"], ["hn"]))
    return model


def endless() -> onnx.ModelProto:
    """A Loop without a trip count, which decides by itself."""
    nodes = """h0 = MatMul(x, w1)
        hT = Loop(, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn) {
            s = Constant<value_int=2>() co = Less(i, s) a = MatMul(h, w2) r = Relu(a) m = MatMul(r, w3)
            hn = Add(m, h) }>
        y = MatMul(hT, wo)"""
    weights = {**_dense("w1", "w2", "w3", "wo"), "go": np.array(True)}
    return tiny(nodes, x=TOKENS, weights=weights)


def swapped() -> onnx.ModelProto:
    """Two states that change places; one starts as a weight, one branch gives back what it captures."""
    nodes = """h0 = MatMul(x, w1)
        a, b2 = Loop(M, go, h0, init)<body = b (int64 i, bool c, float[] h, float[] g)
                => (bool co, float[] hn, float[] gn) {
            co = Identity(c) hn = If(c)<then_branch = t () => (float[] r) { p = Add(h, g) r = MatMul(p, wh) },
                else_branch = e () => (float[] r) { r = Identity(h) }>
            gn = Tanh(g) }>
        z = Add(a, b2) y = MatMul(z, wo)"""
    return tiny(nodes, x=TOKENS, weights={**_dense("w1", "wh", "wo"), **LOOP, "init": (8,)})


def layered() -> onnx.ModelProto:
    """A residual block in a body."""
    nodes = """h0 = MatMul(x, w1)
        hT = Loop(M, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn) {
            co = Identity(c) z = Relu(h) a = MatMul(z, w2) r = Relu(a) m = MatMul(r, w3) n = Add(m, z)
            hn = Tanh(n) }>
        y = MatMul(hT, wo)"""
    return tiny(nodes, x=TOKENS, weights={**_dense("w1", "w2", "w3", "wo"), **LOOP})


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], set[int]]] = {
    "captured": (captured, {8, 6, 4}),
    "captured, else": (lambda: captured(False), {8, 6, 4}),
    "own weights": (own_weights, {8, 6, 10, 4}),
    "own weights, else": (lambda: own_weights(False), {8, 6, 10, 4}),
    "inside and outside": (inside_and_outside, {8}),
    "inside and outside, else": (lambda: inside_and_outside(False), {8}),
    "carried": (carried, {8, 6}),
    "cell": (cell, {8}),
    "cell, axis 1": (lambda: cell(axis=1), {8}),
    "cell, expanded": (lambda: cell("Expand(zero, s0)"), {8}),
    "nested": (nested, {8, 6}),
    "with sizes": (with_sizes, {2, 4}),
    "norm in body": (norm_in_body, {8}),
    "squeezed": (squeezed, {8}),
    "attends": (attends, {8}),
    "restricted": (restricted, {8}),
    "endless": (endless, {8, 6}),
    "swapped": (swapped, {8}),
    "layered": (layered, {8, 6}),
}


def kinds(graph: ir.Graph) -> list[str]:
    """Operators with bodies, everywhere."""
    return sorted(n.op_type for n in graph.all_nodes() if n.op_type in ("If", "Loop", "Scan"))


@pytest.mark.parametrize("name", MODELS)
def test_cuts_reach_into_bodies_and_are_exact(name: str) -> None:
    make, sizes = MODELS[name]
    model = make()
    found = trial(model)
    assert {g.size for g in found.analysis.groups} == sizes
    assert found.proof.relative_error < 1e-5
    assert kinds(found.cut.model.graph) == kinds(ir.from_proto(model).graph)
    assert not any(n.domain for n in found.cut.model.graph.all_nodes())
    onnx.shape_inference.infer_shapes(ir.to_proto(found.cut.model), strict_mode=True, data_prop=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_weight_is_caught_by_the_oracle(name: str) -> None:
    found = trial(MODELS[name][0]())
    caught = 0
    for graph in found.cut.model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            array = tensor.numpy()
            if array.dtype != np.float32 or array.ndim < 2:
                continue
            value.const_value = ir.Tensor(np.roll(array, 1, axis=0), name=value.name)
            feeds = feeds_of(found.original, found.analysis)
            proof = verify.check(ir.from_proto(found.original), found.cut.plan, found.cut.model, feeds)
            caught += not proof.passed
            value.const_value = tensor
    assert caught >= 2


def test_a_wrong_unit_of_a_weight_in_a_body_is_caught() -> None:
    found = trial(own_weights())
    name = "k[then_branch].u"
    assert name in found.cut.plan.slices
    wrong = {**found.cut.plan.slices, name: {1: (0, 1, 2)}}
    assert wrong[name] != found.cut.plan.slices[name]
    feeds = feeds_of(found.original, found.analysis)
    plan = replace(found.cut.plan, slices=wrong)
    assert not verify.check(ir.from_proto(found.original), plan, found.cut.model, feeds).passed


def test_sibling_bodies_with_equal_names_are_told_apart() -> None:
    found = trial(own_weights())
    slices = found.cut.plan.slices
    assert len(slices["k[then_branch].v"][0]) == 3
    assert len(slices["k[else_branch].v"][0]) == 5
    bodies = {g.name: g for g in found.cut.model.graphs()}
    assert [bodies[n].initializers["v"].shape for n in ("t", "e")] == [(3, 4, 1, 1), (5, 4, 1, 1)]


def test_names_of_nested_bodies() -> None:
    found = trial(nested())
    names = {n.name for n in found.analysis.model.graph}
    assert "MatMul_hT[body].k[then_branch].p" in names
    emitted = {o.name for n in found.cut.model.graph.all_nodes() for o in n.outputs}
    assert {"p", "q", "r", "hT", "hn"} <= emitted, "the file keeps its own names"


def test_what_is_zero_where_it_is_cut_is_followed_through_bodies() -> None:
    assert [g.exact for g in analyze(ir.from_proto(attends())).groups] == [True]
    found = trial(restricted())
    assert [g.exact for g in found.analysis.groups] == [False]
    assert {r.output for r in found.cut.plan.restrictions} == {"hT[body].s"}


def test_a_residual_block_in_a_body_goes_as_a_layer() -> None:
    found = trial(layered(), units={})
    (layer,) = found.analysis.layers
    cut = prune(found.analysis, {}, layers=[layer.id])
    assert [r.nodes[-1] for r in cut.plan.removed_layers] == ["hT[body].n"]
    feeds = feeds_of(found.original, found.analysis)
    original = ir.from_proto(found.original)
    assert verify.check(original, cut.plan, cut.model, feeds).relative_error < 1e-6
    assert "w2" not in cut.model.graph.initializers
    assert not verify.check(original, found.cut.plan, cut.model, feeds).passed


def test_freeze_reaches_into_bodies_by_name() -> None:
    assert {g.size for g in analyze(ir.from_proto(own_weights()), freeze=r"else_branch\].v").groups} == {6, 4}


def test_macs_of_a_loop_count_every_step() -> None:
    analysis = analyze(ir.from_proto(carried()))
    rows = 5
    assert analysis.macs() == rows * (3 * 8 + 8 * 2) + 3 * rows * 2 * 8 * 6
    assert analysis.reachable() == 1


def test_the_super_graph_masks_inside_bodies() -> None:
    found = trial(own_weights())
    graph = build(found.analysis)
    feeds = feeds_of(found.original, found.analysis)
    whole = Session(graph.model).run({**feeds, **graph.masks(found.analysis.kept({}))})
    plain = Session(ir.from_proto(found.original)).run(feeds)
    np.testing.assert_allclose(whole["y"], plain["y"], rtol=1e-5, atol=1e-6)
    cut = Session(found.cut.model).run(feeds)
    units = {g.id: g.kept for g in found.cut.plan.groups}
    masked = Session(graph.model).run({**feeds, **graph.masks(found.analysis.kept(units))})
    np.testing.assert_allclose(masked["y"], cut["y"], rtol=1e-5, atol=1e-6)
    assert np.abs(masked["y"] - plain["y"]).max() > 1e-2


def frozen(model: onnx.ModelProto) -> set[str]:
    """Reasons of frozen axes."""
    return {f.reason for f in analyze(ir.from_proto(model)).frozen}


def test_a_state_that_grows_is_frozen_with_a_reason() -> None:
    nodes = """h0 = MatMul(x, w1)
        hT = Loop(M, go, h0)<body = b (int64 i, bool c, float[] h) => (bool co, float[] hn) {
            co = Identity(c) hn = Concat<axis=1>(h, h) }>
        y = MatMul(hT, wo)"""
    model = tiny(nodes, x=TOKENS, weights={**_dense("w1", "wo"), **LOOP})
    model.graph.node[1].name = "grow"
    assert "Loop 'grow' carries it, and it grows" in frozen(model)
    assert trial(model).proof.passed


def test_branches_of_different_widths_are_frozen_with_a_reason() -> None:
    nodes = """h = MatMul(x, w1)
        k = If(flag)<then_branch = t () => (float[] r) { r = Relu(h) },
            else_branch = e () => (float[] r2) { r2 = MatMul(h, w2) }>
        m = ReduceMean<axes=[2], keepdims=1>(k) y = Mul(m, m)"""
    model = tiny(nodes, x=TOKENS, weights={**_dense("w1", "w2"), "flag": np.array(True)})
    assert any("the branches of If 'If1' differ" in reason for reason in frozen(model))
    assert trial(model).proof.passed


def test_bodies_of_unknown_operators_freeze_what_they_capture() -> None:
    nodes = """h = MatMul(x, w1) q = SequenceConstruct(h, h)
        m = SequenceMap(q)<body = b (float[] e) => (float[] o) { o = MatMul(e, w2) }>
        k = SequenceAt(m, nil) y = MatMul(k, wo)"""
    weights = {"w1": (3, 8), "w2": (8, 6), "wo": (6, 2), "nil": np.int64(0)}
    model = tiny(nodes, x=TOKENS, weights=weights)
    assert "w2" not in trial(model).cut.plan.slices
    assert trial(model).proof.passed


def evidence(model: onnx.ModelProto) -> tuple[Analysis, Evidence]:
    """An analysis, and samples of its inputs."""
    analysis = analyze(ir.from_proto(model))
    return analysis, Evidence(analysis, Samples(feeds_of(model, analysis, batch=16)))


@pytest.mark.parametrize("name", ["activation", "fluctuation", "obs", "thinet"])
def test_criteria_take_weights_where_activations_are_out_of_sight(name: str) -> None:
    analysis, samples = evidence(own_weights())
    scores = {g.size: criteria.get(name)(GroupView(analysis, g, {}, data=samples)) for g in analysis.groups}
    plain = {g.size: criteria.get("magnitude")(GroupView(analysis, g, {})) for g in analysis.groups}
    np.testing.assert_array_equal(scores[6], plain[6])
    assert not np.array_equal(scores[4], plain[4]), "what leaves the If can be seen"


def test_criteria_by_gradient_say_that_bodies_stop_them() -> None:
    analysis, samples = evidence(own_weights())
    with pytest.raises(HealError, match="don't pass through If 'If2'"):
        criteria.get("taylor")(GroupView(analysis, analysis.groups[0], {}, data=samples))


@pytest.mark.parametrize("name", ["own weights", "carried", "nested"])
def test_sensitivity_of_groups_in_bodies_is_what_cutting_them_costs(name: str) -> None:
    model = MODELS[name][0]()
    analysis = analyze(ir.from_proto(model))
    samples = Samples({n: np.repeat(a, 3, axis=0) for n, a in feeds_of(model, analysis, batch=4).items()})
    order = {g.id: np.arange(g.size) for g in analysis.groups}
    curves = measure(analysis, order, samples, ratios=(0.5,)).curves
    reference = Session(analysis.runnable).run(samples.inputs)
    errors = []
    for group in analysis.groups:
        cut = prune(analysis, {group.id: range(round(group.size * 0.5))}).model
        expected = output_error(reference, Session(cut).run(samples.inputs))
        assert curves[group.id].loss[1] == pytest.approx(expected, rel=1e-4)
        errors.append(expected)
    assert sum(error > 1e-4 for error in errors) >= 2  # a branch that isn't taken costs nothing


def test_sizes_that_come_out_of_an_if_hold_what_depends_on_them() -> None:
    nodes = """a = MatMul(x, w1)
        l = If(flag)<then_branch = t () => (int64[2] r) { r = Identity(one) },
            else_branch = e () => (int64[2] r2) { r2 = Identity(other) }>
        b = Reshape(a, l) y = MatMul(b, w2)"""
    sizes = {"one": np.array([-1, 6]), "other": np.array([-1, 6]), "flag": np.array(True)}
    found = trial(tiny(nodes, x=["N", 5], weights={"w1": (5, 6), "w2": (6, 3), **sizes}))
    assert any("chosen at run time" in f.reason for f in found.analysis.frozen)
    assert found.proof.passed
    free = trial(tiny("a = MatMul(x, w1) b = Reshape(a, one) y = MatMul(b, w2)", x=["N", 5],
                      weights={"w1": (5, 6), "w2": (6, 3), "one": np.array([-1, 6])}))  # fmt: skip
    assert free.removed == 3, "a constant of the same value follows the cut"
