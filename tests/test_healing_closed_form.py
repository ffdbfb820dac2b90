"""Closed-form repair: exact where the kept units can say it all, and never a change for the worse."""

from __future__ import annotations

from collections.abc import Callable

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import half, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_feeds
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.healing import closed_form, solve, weight_view
from condensec.healing.judge import with_weights
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.plan import Plan
from condensec.runner import Session

C = 6  # kept hidden units; the other six are their twins
Slices = dict[str, dict[int, tuple[int, ...]]]


def _graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[int | str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "twins",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _twins(kind: str) -> tuple[onnx.ModelProto, Slices, Samples]:
    """A hidden layer whose second half equals its first, and the cut that removes the second half."""
    rng = np.random.default_rng(0)
    keep = tuple(range(C))
    if kind in ("gemm", "matmul"):
        first = rng.standard_normal((5, C))
        weights = {"w1": np.tile(first, (1, 2)), "b1": np.tile(rng.standard_normal(C), 2)}
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "one"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
        ]
        if kind == "gemm":
            weights |= {"w2": rng.standard_normal((4, 2 * C)), "b2": rng.standard_normal(4)}
            nodes.append(helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "two", transB=1))
            axis = 1
        else:
            weights |= {"w2": rng.standard_normal((2 * C, 4)), "b2": rng.standard_normal(4)}
            nodes.append(helper.make_node("MatMul", ["r", "w2"], ["m"], "two"))
            nodes.append(helper.make_node("Add", ["m", "b2"], ["y"], "bias"))
            axis = 0
        slices: Slices = {"w1": {1: keep}, "b1": {0: keep}, "w2": {axis: keep}}
        x = rng.standard_normal((400, 5)).astype(np.float32)
        return _graph(nodes, weights, ["N", 5]), slices, Samples({"x": x})
    first = rng.standard_normal((C, 3, 3, 3))
    weights = {"w1": np.tile(first, (2, 1, 1, 1)), "b1": np.tile(rng.standard_normal(C), 2)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h"], "one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
    ]
    if kind == "transposed":
        return _upsampling(nodes, weights, rng, keep)
    attributes = {
        "dense": {"pads": [1, 0, 1, 0], "strides": [2, 1], "dilations": [1, 2]},
        "pointwise": {},
        "same": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        "norm": {"pads": [1, 1, 1, 1]},
    }[kind]
    size = 1 if kind == "pointwise" else 3
    weights["w2"] = rng.standard_normal((4, 2 * C, size, size))
    if kind == "norm":
        weights |= {
            "s": rng.uniform(0.5, 2, 4), "t": rng.standard_normal(4),
            "m": rng.standard_normal(4), "v": rng.uniform(0.5, 2, 4),
        }  # fmt: skip
        nodes.append(helper.make_node("Conv", ["r", "w2"], ["c"], "two", **attributes))
        nodes.append(helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"], "bn"))
    else:
        weights["b2"] = rng.standard_normal(4)
        nodes.append(helper.make_node("Conv", ["r", "w2", "b2"], ["y"], "two", **attributes))
    slices = {"w1": {0: keep}, "b1": {0: keep}, "w2": {1: keep}}
    x = rng.standard_normal((160, 3, 8, 8)).astype(np.float32)
    return _graph(nodes, weights, ["N", 3, 8, 8]), slices, Samples({"x": x})


def _upsampling(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    rng: np.random.Generator,
    keep: tuple[int, ...],
) -> tuple[onnx.ModelProto, Slices, Samples]:
    """The second convolution is a transposed one."""
    weights |= {"w2": rng.standard_normal((2 * C, 4, 3, 2)), "b2": rng.standard_normal(4)}
    options = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "output_padding": [1, 0]}
    nodes.append(helper.make_node("ConvTranspose", ["r", "w2", "b2"], ["y"], "two", **options))
    slices: Slices = {"w1": {0: keep}, "b1": {0: keep}, "w2": {0: keep}}
    x = rng.standard_normal((120, 3, 6, 6)).astype(np.float32)
    return _graph(nodes, weights, ["N", 3, 6, 6]), slices, Samples({"x": x})


def _behind(kind: str) -> tuple[onnx.ModelProto, Slices, Samples]:
    """Twins whose second weight reaches its MatMul by a detour."""
    model, slices, samples = _twins("matmul")
    graph = model.graph
    tensor = next(t for t in graph.initializer if t.name == "w2")
    array = numpy_helper.to_array(tensor)
    keep = tuple(range(C))
    made: list[onnx.NodeProto]
    if kind == "transpose":
        stored, made = array.T.copy(), [helper.make_node("Transpose", ["w2"], ["used"], "turn")]
        slices["w2"] = {1: keep}
    elif kind == "squeeze":
        stored, made = array[None], [helper.make_node("Squeeze", ["w2", "zero"], ["used"], "squeeze")]
        graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "zero"))
        slices["w2"] = {1: keep}
    else:
        scale = (np.abs(array).max(0) / 127).astype(np.float32)
        stored = np.rint(array / scale).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(scale, "scale"))
        made = [helper.make_node("DequantizeLinear", ["w2", "scale"], ["used"], "dq", axis=1)]
    tensor.CopyFrom(numpy_helper.from_array(stored, "w2"))
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "used" if name == "w2" else name
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *rest])
    return model, slices, samples


def _cut(model: onnx.ModelProto, slices: Slices) -> onnx.ModelProto:
    student = onnx.ModelProto()
    student.CopyFrom(model)
    for tensor in student.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for axis, kept in slices.get(tensor.name, {}).items():
            array = np.take(array, kept, axis)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return student


def _error(a: onnx.ModelProto, b: onnx.ModelProto, samples: Samples) -> float:
    """Squared difference of the outputs over the first one's variance."""
    one, two = (Session(m).run_samples(samples) for m in (a, b))
    name = next(iter(one))
    return float(np.square(one[name] - two[name]).mean() / one[name].var())


def _repair(teacher: onnx.ModelProto, student: onnx.ModelProto, samples: Samples, slices: Slices):  # type: ignore[no-untyped-def]
    plan = Plan("", 17, slices=slices)
    return closed_form.repair(ir.from_proto(teacher), ir.from_proto(student), samples, plan, threads=1)


@pytest.mark.parametrize("kind", ["gemm", "matmul", "dense", "pointwise", "same", "norm", "transposed"])
def test_twins_are_made_up_for(kind: str) -> None:
    """What the removed units said, their twins can say: the repaired student equals the teacher."""
    teacher, slices, samples = _twins(kind)
    student = _cut(teacher, slices)
    fresh = Samples({"x": samples.inputs["x"][::-1] * 0.9})
    assert _error(teacher, student, fresh) > 0.05
    result = _repair(teacher, student, samples, slices)
    assert "w2" in result.weights
    assert _error(teacher, with_weights(student, result.weights), fresh) < 1e-4
    done = next(layer for layer in result.layers if layer.weight == "w2")
    assert done.accepted
    assert done.after < 1e-4 < done.before


@pytest.mark.parametrize("kind", ["transpose", "squeeze", "integers"])
def test_weights_behind_other_operators(kind: str) -> None:
    """Re-solved where they are stored; integers come as near as their steps allow, and stay integers."""
    teacher, slices, samples = _behind(kind)
    student = _cut(teacher, slices)
    fresh = Samples({"x": samples.inputs["x"][::-1] * 0.9})
    before = _error(teacher, student, fresh)
    result = _repair(teacher, student, samples, slices)
    stored = {t.name: numpy_helper.to_array(t) for t in student.graph.initializer}["w2"]
    assert result.weights["w2"].shape == stored.shape
    assert result.weights["w2"].dtype == stored.dtype
    after = _error(teacher, with_weights(student, result.weights), fresh)
    # twins summed need twice the range of their integers: what is over is cut off
    assert after < (0.5 * before if kind == "integers" else 1e-4)


def _sharing(*, behind: bool) -> tuple[onnx.ModelProto, Slices, Samples]:
    """Twins whose second weight is read by two branches with biases of their own, or once behind itself."""
    rng = np.random.default_rng(0)
    keep = tuple(range(C))
    weights = {"w1": np.tile(rng.standard_normal((5, C)), (1, 2)), "b1": np.tile(rng.standard_normal(C), 2)}
    weights |= {
        "w2": rng.standard_normal((4, 2 * C)),
        "a2": rng.standard_normal(4),
        "b2": rng.standard_normal(4),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "a2"], ["a"], transB=1),
    ]
    if behind:
        weights["up"] = rng.standard_normal((4, 2 * C))
        nodes.append(helper.make_node("MatMul", ["a", "up"], ["q"]))
    else:
        weights["w0"] = np.tile(rng.standard_normal((5, C)), (1, 2))
        nodes += [helper.make_node("MatMul", ["x", "w0"], ["p"]), helper.make_node("Tanh", ["p"], ["q"])]
    nodes += [
        helper.make_node("Gemm", ["q", "w2", "b2"], ["b"], transB=1),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    slices: Slices = {"w1": {1: keep}, "b1": {0: keep}, "w2": {1: keep}, "w0": {1: keep}, "up": {1: keep}}
    x = rng.standard_normal((500, 5)).astype(np.float32)
    return _graph(nodes, weights, ["N", 5]), slices, Samples({"x": x})


def test_a_shared_weight_is_solved_for_all_its_readers() -> None:
    teacher, slices, samples = _sharing(behind=False)
    student = _cut(teacher, slices)
    result = _repair(teacher, student, samples, slices)
    assert [layer.weight for layer in result.layers].count("w2") == 1
    assert {"w2"} <= set(result.weights)
    assert not {"a2", "b2"} & set(result.weights)
    fresh = Samples({"x": samples.inputs["x"][::-1] * 0.9})
    assert _error(teacher, student, fresh) > 0.05
    assert _error(teacher, with_weights(student, result.weights), fresh) < 1e-4


def test_a_shared_weight_behind_itself_is_left_and_named() -> None:
    """What its second reader gets depends on it: there is no system to solve at once."""
    teacher, slices, samples = _sharing(behind=True)
    result = _repair(teacher, _cut(teacher, slices), samples, slices)
    assert "w2" not in result.weights
    assert [name for name, reason in result.skipped if "behind another" in reason] == ["w2"]


@pytest.mark.parametrize(("norm", "shape"), [(False, (4,)), (False, (1, 4)), (True, (4,))], ids=str)
def test_a_bias_that_stays_is_reckoned_with(norm: bool, shape: tuple[int, ...]) -> None:
    """Two layers read one bias: it stays, and the weights are solved for what comes before it is added."""
    rng = np.random.default_rng(0)
    keep = tuple(range(C))
    weights = {"w1": np.tile(rng.standard_normal((5, C)), (1, 2)), "bias": 3 + rng.standard_normal(shape)}
    weights |= {"w2": rng.standard_normal((2 * C, 4)), "w3": rng.standard_normal((2 * C, 4))}
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    slices: Slices = {"w1": {1: keep}, "w2": {0: keep}, "w3": {0: keep}}
    if norm:
        weights |= {name: rng.uniform(0.5, 2, 4) for name in "stmv"}
        for name in ("w2", "w3"):
            weights[name] = weights[name].T[:, :, None]
            slices[name] = {1: keep}
        nodes += [
            helper.make_node("Reshape", ["r", "wide"], ["u"]),
            helper.make_node("Conv", ["u", "w2", "bias"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["a"]),
            helper.make_node("Conv", ["u", "w3", "bias"], ["b"]),
        ]
    else:
        nodes += [helper.make_node("Gemm", ["r", w, "bias"], [y]) for w, y in (("w2", "a"), ("w3", "b"))]
    nodes.append(helper.make_node("Sub", ["a", "b"], ["y"]))
    teacher = _graph(nodes, weights, ["N", 5])
    if norm:
        teacher.graph.initializer.append(numpy_helper.from_array(np.asarray([0, -1, 1], np.int64), "wide"))
    samples = Samples({"x": rng.standard_normal((400, 5)).astype(np.float32)})
    student = _cut(teacher, slices)
    result = _repair(teacher, student, samples, slices)
    assert "bias" not in result.weights
    assert {"w2", "w3"} <= set(result.weights)
    assert _error(teacher, with_weights(student, result.weights), samples) < 1e-4


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(3)), st.integers(0, 2), st.booleans())
def test_a_view_writes_what_it_reads(order: list[int], gap: int, integers: bool) -> None:
    """Stored -> used -> stored is the same; every axis of the used weight is the one it says it is."""
    rng = np.random.default_rng(0)
    stored = rng.integers(-100, 100, (2, 3, 4))
    weights = {"w": stored.astype(np.int8 if integers else np.float32), "gap": np.asarray([gap], np.int64)}
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=order),
        helper.make_node("Unsqueeze", ["t", "gap"], ["u"]),
    ]
    if integers:
        weights["s"] = np.float32(0.25)
        nodes.append(helper.make_node("DequantizeLinear", ["u", "s"], ["q"]))
    view = weight_view.follow(
        nodes[-1].output[0], {n.output[0]: n for n in nodes}, weights, lambda name: True
    )
    assert view is not None
    used = view.read(weights["w"])
    assert used.dtype == np.float32
    assert np.array_equal(view.write(used), weights["w"])
    assert view.write(used).dtype == weights["w"].dtype
    for axis in range(used.ndim):
        home = view.axis(axis)
        assert (home is None) == (axis == gap)
        if home is not None:
            only = np.zeros_like(weights["w"])
            place = tuple(1 if a == home else slice(None) for a in range(3))
            only[place] = weights["w"][place]
            wanted = np.zeros_like(used)
            place = tuple(1 if a == axis else slice(None) for a in range(4))
            wanted[place] = used[place]
            assert np.array_equal(view.read(only), wanted)


def test_what_cannot_be_undone_is_no_view() -> None:
    weights = {
        "w": np.ones((2, 6), np.float32),
        "s": np.asarray([3, 4], np.int64),
        "b": np.ones(6, np.float32),
    }
    for node in (helper.make_node("Reshape", ["w", "s"], ["u"]), helper.make_node("Add", ["w", "b"], ["u"])):
        assert weight_view.follow("u", {"u": node}, weights, lambda name: True) is None
    fine = helper.make_node("Identity", ["w"], ["u"])
    assert weight_view.follow("u", {"u": fine}, weights, lambda name: True) is not None
    assert weight_view.follow("u", {"u": fine}, weights, lambda name: name != "w") is None


def _depthwise(groups: int) -> tuple[onnx.ModelProto, onnx.ModelProto, Samples]:
    """The student's grouped weights are disturbed; its inputs are those of the teacher."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((8, 8 // groups, 3, 3)), "b": rng.standard_normal(8)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=groups, pads=[1, 1, 1, 1])]
    teacher = _graph(nodes, weights, ["N", 8, 6, 6])
    student = _graph(
        nodes, {**weights, "w": weights["w"] * rng.uniform(0.3, 1.5, (8, 1, 1, 1))}, ["N", 8, 6, 6]
    )
    return teacher, student, Samples({"x": rng.standard_normal((100, 8, 6, 6)).astype(np.float32)})


@pytest.mark.parametrize("groups", [8, 2])
def test_grouped_and_depthwise_convolutions(groups: int) -> None:
    teacher, student, samples = _depthwise(groups)
    result = _repair(teacher, student, samples, {})
    assert _error(teacher, with_weights(student, result.weights), samples) < 1e-5


def test_fixed_batch_and_constant_nodes() -> None:
    teacher, slices, samples = _twins("dense")
    student = _cut(teacher, slices)
    teacher, student = (
        models.as_constant_nodes(models.with_batch(_typed(m), 16)) for m in (teacher, student)
    )
    result = _repair(teacher, student, samples, slices)
    assert _error(teacher, with_weights(student, result.weights), samples) < 1e-4


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    inferred = onnx.shape_inference.infer_shapes(model)
    assert inferred.graph.output[0].type.tensor_type.elem_type
    return inferred


def test_frozen_layers_are_left() -> None:
    teacher, slices, samples = _twins("dense")
    student = _cut(teacher, slices)
    plan = Plan("", 17, slices=slices)
    models_of = (ir.from_proto(teacher), ir.from_proto(student))
    free = closed_form.repair(*models_of, samples, plan, threads=1)
    held = closed_form.repair(*models_of, samples, plan, threads=1, freeze="^w2$")
    assert "w2" in free.weights
    assert "w2" not in held.weights
    assert ("w2", "frozen by the user") in held.skipped


def test_an_open_batch_written_as_minus_one_is_repaired_all_the_same() -> None:
    """PaddlePaddle's exporter writes -1 as the size of an open dim."""
    teacher, slices, samples = _twins("gemm")
    student = _cut(teacher, slices)
    expected = _repair(teacher, student, samples, slices).weights
    for model in (teacher, student):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    found = _repair(teacher, student, samples, slices).weights
    assert expected.keys() == found.keys() != set()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_an_uncut_student_is_left_alone() -> None:
    teacher, _, samples = _twins("dense")
    result = _repair(teacher, teacher, samples, {})
    assert dict(result.weights) == {}
    assert all(not layer.accepted for layer in result.layers)


def test_nothing_is_accepted_that_does_not_hold_out() -> None:
    """A teacher with noise for answers: what least squares finds on few samples doesn't hold on others."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 30)).astype(np.float32)
    y = rng.standard_normal((40, 3)).astype(np.float32)
    held = np.arange(40) >= 32
    weight = np.zeros((30, 3), np.float32)
    problem = solve.Problem(x, y, held, rectified=False, offset=None)
    found = solve.fit(problem, weight, y.mean(0), free_bias=True)
    assert found.after <= found.before
    # Without hold-out, on the other hand, eight degrees of freedom too few explain everything.
    change = np.linalg.lstsq(x[~held], y[~held] - y.mean(0), rcond=None)[0]
    assert problem.error(x[held] @ change + y.mean(0), np.flatnonzero(held)) > found.after


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(("rows", "features"), [(30, 90), (90, 30)])
@pytest.mark.parametrize("rounds", [0, 2])
def test_fewer_rows_than_features_are_the_same_equations(
    rows: int, features: int, free: bool, rounds: int
) -> None:
    """Both ways to solve give the ridge solution, and so lose the same."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((rows, features)) + 0.5).astype(np.float32)
    y = rng.standard_normal((rows, 3)).astype(np.float32)
    problem = solve.Problem(x, y, np.zeros(rows, np.bool_), rounds > 0, None)
    start = (np.zeros((features, 3), np.float32), np.zeros(3, np.float32))
    weight, bias = solve._System(problem, slice(None), start, free).solve(0.01, rounds)
    centred = x.astype(np.float64) - (x.mean(0) if free else 0)
    gram = centred.T @ centred
    regular = gram + 0.01 * np.trace(gram) / features * np.eye(features)
    target = y.astype(np.float64)
    for _ in range(rounds + 1):
        change = np.linalg.solve(regular, centred.T @ target)
        shift = target.mean(0) - x.mean(0) @ change if free else np.zeros(3)
        guess = x @ change + shift
        target = problem.relaxed(guess, slice(None)) if rounds else target
    np.testing.assert_allclose(weight, change, atol=2e-5)
    np.testing.assert_allclose(bias, shift, atol=2e-5)


def test_rectified_form_beats_the_plain_one_behind_a_relu() -> None:
    """Where only max(., 0) counts, fitting the negative side costs accuracy on the positive."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4000, 8)).astype(np.float32)
    y = np.maximum(x @ rng.standard_normal((8, 4)), 0).astype(np.float32) - 1.5 * (
        rng.random((4000, 4)) < 0.4
    )
    held = np.arange(4000) >= 3000
    weight, bias = np.zeros((8, 4), np.float32), np.zeros(4, np.float32)
    fits = {
        form: solve.fit(
            solve.Problem(x, y.astype(np.float32), held, form, None), weight, bias, free_bias=True
        )
        for form in (True, False)
    }
    judge = solve.Problem(x, y.astype(np.float32), held, True, None)
    rows = np.flatnonzero(held)
    errors = {form: judge.error(x[rows] @ f.weight + f.bias, rows) for form, f in fits.items()}
    assert errors[True] < 0.95 * errors[False]


@pytest.mark.parametrize(
    "build",
    [
        models.residual_cnn, models.option_a_cnn, models.depthwise_se_cnn, models.grouped_cnn,
        models.concat_net, models.split_net, models.transformer_encoder, models.mlp,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_real_cuts_come_nearer_to_the_original(build: Callable[[], onnx.ModelProto]) -> None:
    """Half of every group gone: on samples it hasn't seen, the repaired student is nearer to the original."""
    model = build()
    feeds = random_feeds(model, 300, seed=5)
    analysis = analyze(ir.from_proto(model), {k: v[:2].shape for k, v in feeds.items()})
    cut = prune(analysis, half(analysis))
    samples = Samples({k: v[:240] for k, v in feeds.items()})
    fresh = Samples({k: v[240:] for k, v in feeds.items()})
    result = closed_form.repair(analysis.model, cut.model, samples, cut.plan, threads=1)
    assert not result.skipped
    original, student = ir.to_proto(analysis.model), ir.to_proto(cut.model)
    before = _error(original, student, fresh)
    after = _error(original, with_weights(student, result.weights), fresh)
    assert after < 0.8 * before, (before, after)
    shapes = {t.name: tuple(t.dims) for t in student.graph.initializer}
    assert all(w.shape == shapes[name] and w.dtype == np.float32 for name, w in result.weights.items())


def test_same_seed_same_weights() -> None:
    teacher, slices, samples = _twins("dense")
    student = _cut(teacher, slices)
    one, two = (_repair(teacher, student, samples, slices) for _ in range(2))
    assert all(np.array_equal(one.weights[n], two.weights[n]) for n in one.weights)


def test_rows_that_lost_units_are_not_the_originals() -> None:
    """With heads in the batch axis a shared product sees fewer rows after a cut: nothing can be matched."""
    nodes = """c = Conv<pads=[1,1,1,1]>(x, w1) s = Shape(c) n = Gather<axis=0>(s, first) m = Mul(n, heads)
        u = Unsqueeze(m, zero) t = Concat<axis=0>(u, two, rest) r = Reshape(c, t) a = MatMul(r, wm)
        q = Softmax<axis=-1>(a) b = Reshape(q, back) d = Conv(b, w2) y = GlobalAveragePool(d)"""
    weights = {
        "w1": (6, 3, 3, 3), "wm": (16, 16), "w2": (4, 6, 1, 1),
        "first": np.int64(0), "heads": np.int64(3), "zero": np.array([0]), "two": np.array([2]),
        "rest": np.array([-1]), "back": np.array([-1, 6, 4, 4]),
    }  # fmt: skip
    model = ir.from_proto(tiny(nodes, x=["N", 3, 4, 4], weights=weights))
    analysis = analyze(model, {"x": (2, 3, 4, 4)})
    heads = next(group for group in analysis.groups if group.size == 3)
    cut = prune(analysis, {heads.id: [0, 2]})
    samples = Samples({"x": np.random.default_rng(0).standard_normal((64, 3, 4, 4)).astype(np.float32)})
    found = closed_form.repair(model, cut.model, samples, cut.plan)
    assert dict(found.skipped)["wm"].startswith("units were cut out of its rows")
    assert "w2" in {one.weight for one in found.layers}, "the others are repaired"
