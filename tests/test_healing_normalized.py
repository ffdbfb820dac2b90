"""Batch normalization that only the training has: what is given back is the file's own graph, folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from healing_tools import Setting, noisy
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.errors import ConfigError
from condensec.healing import HealOptions, heal, targets
from condensec.healing.judge import with_weights
from condensec.healing.normalized import EPSILON, normalize, samples_of
from condensec.healing.static import read
from condensec.healing.training import prepare
from condensec.healing.worker.norms import Norms
from condensec.healing.worker.optimizer import Flat
from condensec.runner import Session
from condensec.specs import parse_heal

PADS = {"pads": [1, 1, 1, 1]}


def network(*, layers: int = 3, width: int = 16, bias: bool = True, zeros: float = 0.0) -> onnx.ModelProto:
    """Convolutions and rectifiers without normalization, and a classifier; weights partly zero."""
    rng = np.random.default_rng(1)
    nodes, weights, x = [], {}, "x"
    for i in range(layers):
        inputs = 3 if i == 0 else width
        kernel = rng.standard_normal((width, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        kernel.flat[np.argsort(np.abs(kernel).ravel())[: int(zeros * kernel.size)]] = 0
        weights[f"w{i}"] = kernel
        names = [x, f"w{i}"]
        if bias:
            weights[f"b{i}"] = 0.2 * rng.standard_normal(width)
            names.append(f"b{i}")
        nodes.append(helper.make_node("Conv", names, [f"c{i}"], f"conv{i}", **PADS))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        x = f"r{i}"
    weights["v"] = rng.standard_normal((width, 5))
    nodes += [
        helper.make_node("ReduceMean", [x, "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    constants.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "network", ports, ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def setting(folder: Path) -> Setting:
    """A student that has lost four of five weights."""
    return Setting(folder, network(), network(zeros=0.8))


def test_a_broken_student_learns_and_what_comes_back_is_the_files(tmp_path: Path) -> None:
    """The metric of the file with the weights given back is the one the worker was judged by."""
    one = setting(tmp_path)
    zeros = tuple(f"w{i}" for i in range(3))
    wanted = Session(one.teacher).run_samples(one.validation)["y"]

    def closeness(outputs: Any, samples: Any) -> float:
        return -float(np.square(outputs["y"] - wanted).mean())

    def of_file(weights: Any) -> float:
        return closeness(Session(one.healed(weights)).run_samples(one.validation), None)

    result = one.heal(closeness, epochs=6, lr=0.02, batch_norm="on", zeros=zeros)
    assert result.after > 0.3 * result.before
    assert of_file(result.weights) == pytest.approx(result.after, rel=1e-4)
    assert of_file({}) == pytest.approx(result.before, rel=1e-4)
    assert set(result.weights) == {t.name for t in one.model.graph.initializer} - {"axes"}
    given = {t.name: numpy_helper.to_array(t) for t in one.model.graph.initializer}
    for name in zeros:
        assert not np.any(result.weights[name][given[name] == 0])


def test_normalization_can_be_told_from_none(tmp_path: Path) -> None:
    """The control: the same run without it ends elsewhere."""
    weights = []
    for kind in ("on", "off"):
        (tmp_path / kind).mkdir()
        found = setting(tmp_path / kind).heal(epochs=2, lr=0.02, batch_norm=kind)
        weights.append(found.weights["w1"])
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


def _without_worker(model: onnx.ModelProto) -> Any:
    """Graphs of a part of 32 samples, and its feeds."""
    feeds = {"x": np.random.default_rng(2).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    answers = Session(model).run(feeds)

    def choose(graph: Any, barriers: Any) -> Any:
        from condensec.healing import losses

        return losses.choose(graph, answers, None, {"mse": 1.0}, 1.0)

    return prepare(model, feeds, choose, None, batch_norm=True), feeds


def _standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnx's own batch normalization in place of onnxruntime-training's internal one."""
    for node in model.graph.node:
        if node.op_type == "BatchNormInternal":
            node.op_type, node.domain = "BatchNormalization", ""
            del node.output[3:]
    return model


def _statistics_in_numpy(found: Any, weights: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the worker's session would give."""
    model = _standard(found.statistics)
    names = {i.name for i in model.graph.input}
    given = {n: w for n, w in weights.items() if n in names}
    return dict(Session(model, optimize=False).run({"x": x, **given}))


def test_folding_gives_what_the_normalized_copy_computes(tmp_path: Path) -> None:
    """On the samples that means and variances were taken over, for any scales and shifts."""
    model = network()
    training, feeds = _without_worker(model)
    found = training.normalized
    assert [site.weight for site in found.sites] == ["w0", "w1", "w2"]
    rng = np.random.default_rng(3)
    scales = {site.scale: rng.uniform(0.5, 2, 16).astype(np.float32) for site in found.sites}
    weights = Flat({**training.weights, **scales})
    norms = Norms.__new__(Norms)  # its sessions need operators of onnxruntime-training
    sites = [(s.weight, s.bias, s.scale) for s in found.sites]
    norms._sites, norms._weights, norms._epsilon = sites, weights, EPSILON

    def measured(session: Any, views: Any) -> Any:
        values = list(_statistics_in_numpy(found, views, feeds["x"]).values())
        return [(m, s - m**2) for m, s in zip(values[::2], values[1::2], strict=True)]

    norms._measured = measured  # type: ignore[method-assign]
    norms._normalized = None
    folded = norms.folded(weights.buffer)
    loss = _standard(found.model)
    loss.graph.output[0].name = next(n.output[0] for n in loss.graph.node if n.op_type == "MatMul")
    loss.graph.output[0].type.tensor_type.ClearField("shape")
    given = {i.name: weights.views[i.name] for i in loss.graph.input if i.name in weights.views}
    targets_of = {i.name: np.zeros((32, 5), np.float32) for i in loss.graph.input if "target" in i.name}
    expected = next(iter(Session(loss, optimize=False).run({**feeds, **given, **targets_of}).values()))
    answer = Session(with_weights(model, folded.views)).run(feeds)["y"]
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    plain = Session(model).run(feeds)["y"]  # the control: it wasn't that before
    assert np.abs(plain - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("why", "changes"), [("nowhere for a shift to go", {"bias": False}), ("", {"layers": 2})]
)
def test_only_convolutions_with_a_bias_are_normalized(why: str, changes: Any) -> None:
    graph, _ = read(network(**changes), {"x": np.zeros((32, 3, 8, 8), np.float32)})
    names = [n for n in graph.constants if n[0] in "wbv"]
    found = normalize(graph, names)
    assert (found is None) == bool(why)
    assert found is None or len(found.sites) == 2


def test_weights_that_are_shared_or_frozen_are_left(tmp_path: Path) -> None:
    graph, _ = read(network(), {"x": np.zeros((32, 3, 8, 8), np.float32)})
    found = normalize(graph, ["w0", "w1", "b1", "w2", "b2"])
    assert found is not None
    assert [site.weight for site in found.sites] == ["w1", "w2"]
    for node in graph.nodes:
        if node.name == "conv2":
            node.input[2] = "b1"
    assert normalize(graph, ["w0", "b0", "w1", "b1", "w2"]).sites[0].weight == "w0"  # type: ignore[union-attr]
    few, _ = read(network(), {"x": np.zeros((2, 3, 8, 8), np.float32)})  # 128 values a channel say little
    assert normalize(few, ["w0", "b0"]) is None


def test_how_far_off_a_student_is(tmp_path: Path) -> None:
    """0 for the teacher itself, 1 for the mean, and far more for four of five weights gone."""
    one = setting(tmp_path)
    answers, _ = targets.sample(one.teacher, one.train, ["y"], 1)
    assert targets.off(one.teacher, one.train, answers, 1) == 0.0
    assert targets.off(one.student, one.train, answers, 1) > 0.3
    gone = one.healed({"v": np.full((16, 5), np.nan, np.float32)})
    assert targets.off(gone, one.train, answers, 1) > 0.3


def test_every_part_of_a_sorted_set_spans_it(tmp_path: Path) -> None:
    train = Samples({"x": np.arange(1000, dtype=np.float64), "unread": np.zeros(1000)})
    files = samples_of(train, ["x"], 16, tmp_path)
    assert list(files) == ["x"]
    found = np.load(files["x"])
    assert found.dtype == np.float32
    assert found.shape == (512,)
    for row in found.reshape(-1, 16):
        np.testing.assert_allclose(np.diff(row), 1000 / 16, rtol=0.05)
    few = samples_of(Samples({"x": np.arange(5.0)}), ["x"], 16, tmp_path)
    assert set(np.load(few["x"])) == set(range(5))


def by_character() -> onnx.ModelProto:
    """Tokens, a convolution of one position each, and the sum over those that count."""
    rng = np.random.default_rng(0)
    shapes = {"table": (30, 8), "w": (12, 8, 1, 1), "b": (12,), "v": (12, 4)}
    constants = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()
    ]
    constants += [numpy_helper.from_array(np.array(v), n) for n, v in {"last": [3], "ends": [2, 3]}.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["t", "last"], ["u"]),
        helper.make_node("Conv", ["u", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
        helper.make_node("Unsqueeze", ["m", "sides"], ["mask"]),
        helper.make_node("Mul", ["r", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "ends"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    constants.append(numpy_helper.from_array(np.array([1, 3]), "sides"))
    ports = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["N", "S"])
        for n in ("input_ids", "attention_mask")
    ]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "by_character", ports, ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("shorter", [True, False])
def test_padded_samples_are_trained_as_before(tmp_path: Path, shorter: bool) -> None:
    """Graphs of several lengths share their weights: none of them is normalized; the control: one length."""
    rng = np.random.default_rng(1)
    filled = rng.integers(2, 6, 128) if shorter else np.full(128, 32)
    filled[0] = 32
    mask = (np.arange(32) < filled[:, None]).astype(np.int64)
    train = Samples({"input_ids": rng.integers(1, 30, mask.shape) * mask, "attention_mask": mask})
    teacher, student = tmp_path / "t.onnx", tmp_path / "s.onnx"
    onnx.save(by_character(), teacher)
    onnx.save(noisy(by_character()), student)
    weights = []
    for kind in ("on", "off"):
        options = HealOptions(epochs=2, lr=0.01, batch_norm=kind)
        weights.append(heal(student, teacher, train, train, options, state=tmp_path / kind).weights["w"])
    assert np.array_equal(*weights) == shorter


def test_asked_for_by_name() -> None:
    spec = parse_heal("epochs=2,batch-norm=off")
    assert HealOptions(epochs=2, **spec.options).batch_norm == "off"
    with pytest.raises(ConfigError, match="batch-norm can't be 'yes'"):
        parse_heal("epochs=2,batch-norm=yes")
