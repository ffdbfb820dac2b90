"""The runner: every form of a model, errors that name the node, fixed and dynamic batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_tools import random_feeds, save, with_batch
from models import mlp, residual_cnn, transformer_encoder
from onnx import TensorProto, helper, numpy_helper

from condensec import serialized
from condensec.data.side import sample_axis
from condensec.errors import DataError, ModelError, PostconditionError, PreconditionError
from condensec.runner import Session, available_providers, runtime_version


@dataclass(frozen=True)
class Rows:
    inputs: dict[str, np.ndarray]


def graph(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inits = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    body = helper.make_graph(list(nodes), "g", [x], [y], inits)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IMAGE = {"x": np.zeros((1, 4, 8, 8), np.float32)}


def test_every_form_of_a_model_gives_the_same(tmp_path: Path) -> None:
    model = residual_cnn()
    feeds = random_feeds(model, 3)
    path = save(model, tmp_path)
    before = model.SerializeToString(deterministic=True)
    forms = [model, path, str(path), path.read_bytes(), ir.load(path), ir.from_proto(model)]
    results = [Session(form).run(feeds)["logits"] for form in forms]
    for result in results[1:]:
        np.testing.assert_array_equal(results[0], result)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("limit", [serialized.INLINE_LIMIT, 100])
@pytest.mark.parametrize("external", [False, True])
def test_weights_beside_the_model_and_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, external: bool
) -> None:
    model = residual_cnn()
    feeds = random_feeds(model)
    expected = Session(model).run(feeds)["logits"]
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=external, location="m.data", size_threshold=16)
    monkeypatch.setattr(serialized, "INLINE_LIMIT", limit)
    for form in (path, ir.load(path)):
        for extra in ((), (model.graph.node[0].output[0],)):
            got = Session(form, extra_outputs=extra).run(feeds, ["logits"])["logits"]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_to_proto_brings_external_weights_inside(tmp_path: Path) -> None:
    model = residual_cnn()
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=16)
    proto = serialized.to_proto(path)
    (tmp_path / "m.data").unlink()
    feeds = random_feeds(residual_cnn())
    np.testing.assert_array_equal(
        Session(proto).run(feeds)["logits"], Session(residual_cnn()).run(feeds)["logits"]
    )


def test_extra_outputs_are_added_to_a_copy() -> None:
    model = mlp()
    feeds = random_feeds(model)
    inner = [node.output[0] for node in model.graph.node]
    values = Session(model, extra_outputs=inner).run(feeds)
    assert set(inner) <= set(values)
    assert len(model.graph.output) == 1
    np.testing.assert_allclose(values["logits"], Session(model).run(feeds)["logits"], rtol=1e-5, atol=1e-6)
    with pytest.raises(PreconditionError, match="'nothing' isn't a value"):
        Session(model, extra_outputs=["nothing"])


def test_a_failing_node_is_named() -> None:
    wrong = graph(
        helper.make_node("Conv", ["x", "w"], ["y"], name="stem"), w=np.zeros((4, 5, 3, 3), np.float32)
    )
    for optimize in (True, False):
        with pytest.raises(PostconditionError, match=r"Conv '(stem|y)': Input channels") as caught:
            Session(wrong, optimize=optimize).run(IMAGE)
        assert caught.value.node in ("stem", "y")  # the layout pass renames nodes to their outputs
        assert "\n" not in str(caught.value)
    reshape = graph(helper.make_node("Reshape", ["x", "s"], ["y"], name="flat"), s=np.array([7, -1]))
    with pytest.raises(PostconditionError, match=r"Reshape 'flat': .*cannot be reshaped") as caught:
        Session(reshape).run(IMAGE)
    assert "onnxruntime_src" not in str(caught.value)


def test_a_model_that_does_not_load_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No Op registered for Foo") as caught:
        Session(graph(helper.make_node("Foo", ["x"], ["y"], name="foo")))
    assert caught.value.node == "foo"
    path = tmp_path / "text.onnx"
    path.write_text("hello")
    for bad in (path, tmp_path / "missing.onnx", b"", b"hello world"):
        with pytest.raises(ModelError, match="can't load"):
            Session(bad)
        with pytest.raises(ModelError):
            Session(bad, extra_outputs=["x"])


def test_feeds_that_do_not_fit_are_data_errors() -> None:
    session = Session(residual_cnn())
    image = np.zeros((1, 3, 16, 16), np.float32)
    session.run({"input": image, "unused": image})
    for feeds, message in (
        ({}, "'input' isn't among"),
        ({"input": image.astype(np.float64)}, "is float64, the model wants float32"),
        ({"input": image[:, :2]}, "has shape 1x2x16x16, the model wants Nx3x16x16"),
        ({"input": image[0]}, "has shape 3x16x16"),
    ):
        with pytest.raises(DataError, match=message):
            session.run(feeds)


@pytest.mark.parametrize("fixed", [None, 1, 3, 8])
def test_run_samples_equals_one_at_a_time(fixed: int | None) -> None:
    model = residual_cnn()
    feeds = random_feeds(model, 7)
    single = Session(model)
    expected = np.concatenate([single.run({"input": feeds["input"][i : i + 1]})["logits"] for i in range(7)])
    session = Session(model if fixed is None else with_batch(model, fixed))
    assert session.batch_size == fixed
    got = session.run_samples(Rows(feeds), batch=4)
    assert got["logits"].shape == expected.shape
    np.testing.assert_allclose(got["logits"], expected, rtol=1e-4, atol=1e-5)


def test_run_samples_with_a_wrong_row_is_caught_by_the_comparison() -> None:
    """Negative control of the test above: another last sample gives another last row."""
    model = with_batch(residual_cnn(), 3)
    feeds = random_feeds(residual_cnn(), 7)
    other = {"input": feeds["input"].copy()}
    other["input"][-1] += 1
    a, b = (Session(model).run_samples(Rows(f))["logits"] for f in (feeds, other))
    np.testing.assert_array_equal(a[:-1], b[:-1])
    assert np.abs(a[-1] - b[-1]).max() > 1e-3


def test_outputs_without_a_sample_axis() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["x", "rows"], ["tokens"]),
    ]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("mean", "tokens")]
    rows = numpy_helper.from_array(np.array([-1, 2]), "rows")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], outs, [rows]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    data = np.arange(20, dtype=np.float32).reshape(5, 4)
    got = Session(model).run_samples(Rows({"x": data}), batch=2)
    assert got["mean"].shape == (3,)
    np.testing.assert_array_equal(got["tokens"], data.reshape(10, 2))


def compared(*names: str) -> onnx.ModelProto:
    """Every image of a call beside every text of it, as in CLIP; `names` of the two batches."""
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in [("a", [names[0], 3]), ("b", [names[1], 3]), ("y", list(names))]
    ]
    nodes = [
        helper.make_node("Transpose", ["b"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    body = helper.make_graph(nodes, "g", ports[:2], ports[2:])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("names", [("N", "N"), ("images", "texts")])
def test_samples_that_are_compared_with_one_another_run_in_calls_of_one_size(names: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 3)).astype(np.float32)
    got = Session(compared(*names)).run_samples(Rows({"a": a, "b": b}), batch=4)["y"]
    last = np.repeat(b[4:] @ a[4], 4)  # the fifth beside copies of itself
    np.testing.assert_allclose(got, np.vstack([a[:4] @ b[:4].T, last]), rtol=1e-5)


@pytest.mark.parametrize("stated", [[26, 1, 5], [1, "length"]])
def test_a_line_at_a_time_gives_its_positions_first(stated: list[int | str]) -> None:
    """Text recognisers of fixed batch: ``[positions, 1, classes]``, which some files state wrongly."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 26])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, stated)
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[2, 0, 1])
    body = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    lines = np.random.default_rng(0).standard_normal((3, 5, 26)).astype(np.float32)
    got = Session(model).run_samples(Rows({"x": lines}))["y"]
    np.testing.assert_array_equal(got, lines.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("batch", "output", "axis"),
    [
        (1, (26, 1, 5), 1),
        (1, (1, 5), 0),
        (1, (8, 4), None),  # nothing says which, and one sample a call: a new axis
        (1, (1, 1, 5), 0),
        (4, (26, 4, 5), 1),
        (4, (8, 4), 0),  # two of each sample
        (4, (26, 4, 4), 0),  # nobody can tell
    ],
)
def test_the_sample_axis_where_the_batch_is_fixed(
    batch: int, output: tuple[int, ...], axis: int | None
) -> None:
    assert sample_axis([("x", (batch, 3), True)], output) == axis


def test_samples_must_agree_in_number() -> None:
    model = transformer_encoder()
    feeds = random_feeds(model, 4)
    feeds["attention_mask"] = feeds["attention_mask"][:2]
    with pytest.raises(DataError, match="same number"):
        Session(model).run_samples(Rows(feeds))
    with pytest.raises(DataError, match="same number"):
        Session(residual_cnn()).run_samples(Rows({"input": np.zeros((0, 3, 16, 16), np.float32)}))


def test_prepared_runs_and_reports_errors() -> None:
    Session(residual_cnn()).prepared(random_feeds(residual_cnn()))()
    wrong = graph(helper.make_node("Conv", ["x", "w"], ["y"]), w=np.zeros((4, 5, 3, 3), np.float32))
    with pytest.raises(PostconditionError, match="Conv"):
        Session(wrong).prepared(IMAGE)


def test_optimised_graph_and_profile_are_written(tmp_path: Path) -> None:
    target = tmp_path / "optimised.onnx"
    session = Session(residual_cnn(), save_optimized=target, profile=tmp_path / "trace")
    session.run(random_feeds(residual_cnn()))
    assert session.end_profile().stat().st_size > 100
    ops = {node.op_type for node in onnx.load(target).graph.node}
    assert "BatchNormalization" not in ops
    assert "CPUExecutionProvider" in available_providers()
    assert runtime_version()[0].isdigit()
