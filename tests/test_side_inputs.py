"""Inputs without a sample axis: scalars, first states; made up, given, read, through the whole line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_builder import Builder
from onnx import TensorProto, helper

import condensec
from condensec import data
from condensec.cli import main
from condensec.data import Signature, TensorSpec
from condensec.data.side import batch_of, copies, sample_axis, side_inputs, single_call
from condensec.errors import ConfigError, DataError
from condensec.healing.side import ports
from condensec.model_signature import signature
from condensec.runner import Session
from condensec.serialized import to_ir
from condensec.specs import input_value, parse_input

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)


def recurrent(batch: int | str = "N") -> onnx.ModelProto:
    """``logits = mlp(x) * gain + state[0]`` and a next state ``[2, N, 4]``."""
    b = Builder(0)
    x = b.input("x", [batch, 8])
    state = b.input("state", [2, batch, 4])
    gain = b.input("gain", [])
    hidden = b.op("Relu", "relu", b.gemm("fc1", x, 8, 16))
    scaled = b.op("Mul", "scale", b.gemm("fc2", hidden, 16, 4), gain)
    first = b.op("Gather", "first", state, b.const("zero", np.array(0, np.int64)), axis=0)
    b.op("Add", "sum", scaled, first, outputs=["logits"])
    b.op("Add", "next", state, "logits", outputs=["next_state"])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4]),
        helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [2, batch, 4]),
    ]
    graph = helper.make_graph(b.nodes, "recurrent", b.inputs, outputs, b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent(), "model.onnx")
    return Path("model.onnx")


@pytest.mark.parametrize(
    ("shapes", "sides", "batch"),
    [
        ([("x", ("N", 3)), ("sr", ())], {"sr"}, None),
        ([("sr", ()), ("x", ("N", 3)), ("h", (2, "N", 4))], {"sr", "h"}, None),
        ([("x", ("N", 3)), ("h", (2, None, 4))], {"h"}, 1),  # is the dim the batch? nobody knows
        ([("x", (1, 3)), ("h", (2, 1, 4))], {"h"}, 1),
        ([("x", (4, 3)), ("mask", (4, 3))], set(), 4),
        ([("x", ("N", 3)), ("mask", (1, 3))], set(), 1),
        ([("x", ("N", 3)), ("mask", ("N", 3))], set(), None),
        ([("size", ())], {"size"}, None),
    ],
)
def test_which_inputs_have_no_sample_axis(shapes: Any, sides: set[str], batch: int | None) -> None:
    ports = [(name, shape, True) for name, shape in shapes]
    assert side_inputs(ports) == sides
    assert batch_of(ports) == batch
    unknown = [(name, shape, bool(shape)) for name, shape in shapes]
    assert not any(not shape for name, shape, _ in unknown if name in side_inputs(unknown))


def test_one_copy_is_handed_over_as_wide_as_the_batch() -> None:
    ports = [("x", ("N", 8), True), ("state", (2, "N", 4), True), ("gain", (), True)]
    state = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    feeds = {"x": X[:3], "state": copies(state, 3), "gain": copies(np.float32(2), 3)}
    one = single_call(ports, feeds)
    assert {name: array.shape for name, array in one.items()} == {"x": (3, 8), "state": (2, 3, 4), "gain": ()}
    assert (one["state"] == state).all()
    whole = single_call(ports, one)
    assert all(whole[name] is one[name] for name in one), "what has the model's rank stays"
    with pytest.raises(DataError, match="'gain' has no sample axis, but its value differs"):
        single_call(ports, {**feeds, "gain": np.array([1, 2, 2], np.float32)})


def test_outputs_have_samples_first(model: Path) -> None:
    assert sample_axis([("x", ("N", 8), True), ("h", (2, "N", 4), True)], (2, "N", 4)) == 1
    assert sample_axis([("x", ("N", 8), True)], (2, 4)) == 0
    assert sample_axis([("x", (None, 8), True), ("h", (2, None, 4), True)], (None, None, 4)) is None
    samples = data.load(
        {"x": X, "state": np.ones((2, 1, 4), np.float32), "gain": 3.0}, condensec_signature(model)
    )
    found = Session(model).run_samples(samples, batch=7)
    assert found["logits"].shape == (40, 4)
    assert found["next_state"].shape == (40, 2, 4)
    single = Session(model).run({"x": X[5:6], "state": np.ones((2, 1, 4), np.float32), "gain": np.float32(3)})
    np.testing.assert_allclose(found["next_state"][5], single["next_state"][:, 0], rtol=1e-5)


def condensec_signature(path: Path) -> Signature:
    from condensec import io

    return io.signature(io.load(path))


SIGNATURE = Signature(
    (
        TensorSpec("x", F32, ("N", 8)),
        TensorSpec("state", F32, (2, "N", 4)),
        TensorSpec("sr", I64, ()),
        TensorSpec("gain", F32, ()),
    ),
    (),
)


def test_made_up_values() -> None:
    made = data.synthetic(SIGNATURE, count=5)
    assert made.inputs["sr"].tolist() == [16_000] * 5
    assert made.inputs["gain"].tolist() == [1.0] * 5
    assert made.inputs["state"].shape == (5, 2, 1, 4)
    assert not made.inputs["state"].any()
    given = data.synthetic(SIGNATURE, count=5, values={"sr": np.array(8000), "x": np.array(0.5)})
    assert given.inputs["sr"].tolist() == [8000] * 5
    assert (given.inputs["x"] == 0.5).all()
    for values, words in (
        ({"rate": np.array(1)}, "--input rate: no such input"),
        ({"sr": np.array(1.5)}, "--input sr: 1.5 is no int64"),
        ({"sr": np.array([1, 2])}, "the input wants one number"),
        ({"x": np.zeros(7)}, "the shape is 7, the input wants 8"),
    ):
        with pytest.raises(DataError, match=words):
            data.synthetic(SIGNATURE, values=values)


def test_values_from_files() -> None:
    state = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    once = {"x": X, "state": state, "sr": np.int64(8000), "gain": np.float32(2)}
    rows = {"x": X, "state": copies(state, 40), "sr": np.full(40, 8000), "gain": np.full(40, 2, np.float32)}
    for arrays in (once, rows):
        loaded = data.load(arrays, SIGNATURE)
        assert len(loaded) == 40
        assert list(loaded.inputs) == ["x", "state", "sr", "gain"]
        assert (loaded.inputs["state"] == state).all()
        assert set(loaded.inputs["sr"].tolist()) == {8000}
        part = loaded.subset([3, 1])
        assert part.inputs["state"].shape == (2, 2, 1, 4)
    rows["sr"] = rows["sr"] + np.arange(40)
    with pytest.raises(DataError, match="'sr' differs between samples"):
        data.load(rows, SIGNATURE)
    del once["sr"]
    with pytest.raises(DataError, match=r"no array for input 'sr'.*give it with --input sr=VALUE"):
        data.load(once, SIGNATURE)
    assert data.load(once, SIGNATURE, values={"sr": np.array(8000)}).inputs["sr"][7] == 8000
    with pytest.raises(DataError, match="int64, the model wants float32"):
        data.load({**once, "sr": np.int64(1), "gain": np.int64(1)}, SIGNATURE)


def test_the_flag(tmp_path: Path) -> None:
    np.save(tmp_path / "state.npy", np.ones((2, 1, 4), np.float32))
    for text, value in (
        ("sr=16000", 16000),
        ("on=true", True),
        ("size=480,640", [480, 640]),
        ("g=-1e-3", -1e-3),
    ):
        name, written = parse_input(text)
        assert input_value(name, written).tolist() == value
    assert input_value(*parse_input(f"state={tmp_path}/state.npy")).shape == (2, 1, 4)
    for wrong in ("sr", "=3", "sr=", "sr=fast", "sr=1,,2", "sr=state.npz"):
        with pytest.raises(ConfigError, match="can't be read"):
            parse_input(wrong)
    with pytest.raises(DataError, match=r"no such file: none\.npy"):
        input_value("state", "none.npy")


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_whole_line_without_data(tmp_path: Path, batch: int | str) -> None:
    onnx.save(recurrent(batch), tmp_path / "model.onnx")
    report = condensec.compress(
        tmp_path / "model.onnx", keep=0.5, heal="closed-form", max_drop="inf", input={"gain": 2}
    )
    assert report.after.params < report.before.params
    assert report.verification.exact is not None
    assert report.verification.exact.passed
    cut = onnx.load(tmp_path / "model.condensed" / "host" / "model.onnx")
    assert [value.name for value in cut.graph.input] == ["x", "state", "gain"]
    settings = (tmp_path / "model.condensed" / "condensec.toml").read_text()
    assert '[input]\ngain = "2"' in settings


def test_the_whole_line_where_samples_are_compared_with_one_another(tmp_path: Path) -> None:
    b = Builder(0)
    image, text = b.input("image", ["images", 8]), b.input("text", ["texts", 6])
    seen = b.gemm("image2", b.op("Relu", "act1", b.gemm("image1", image, 8, 16)), 16, 4)
    read = b.gemm("text2", b.op("Relu", "act2", b.gemm("text1", text, 6, 16)), 16, 4)
    b.op("MatMul", "compare", seen, b.op("Transpose", "turn", read, perm=[1, 0]), outputs=["logits"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["images", "texts"])
    graph = helper.make_graph(b.nodes, "two_towers", b.inputs, [output], b.initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "model.onnx")
    report = condensec.compress(tmp_path / "model.onnx", keep=0.5, heal="closed-form", max_drop="inf")
    assert report.after.params < 0.6 * report.before.params
    assert report.verification.exact is not None
    assert report.verification.exact.passed


def test_the_whole_line_with_data_and_training(model: Path) -> None:
    np.savez("d.npz", x=X.repeat(4, axis=0), state=np.zeros((2, 1, 4), np.float32))
    report = condensec.compress(
        model, keep=0.5, data="d.npz", heal="epochs=2,closed-form=off", max_drop="inf", input=["gain=2"]
    )
    assert report.healing is not None
    assert report.healing.steps > 0
    assert "state" not in {part.name for part in report.healing.frozen}
    cut = onnx.load("model.condensed/model.onnx")
    assert [value.name for value in cut.graph.input] == ["x", "state", "gain"]


def test_plan_apply_and_verify(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("d.npz", x=X, state=np.zeros((2, 1, 4), np.float32), gain=np.float32(2))
    assert main(["plan", "model.onnx", "--keep", "0.5", "-o", "plan.json", "-q"]) == 0
    assert main(["apply", "model.onnx", "plan.json", "-o", "cut.onnx", "--input", "gain=3"]) == 0
    capsys.readouterr()
    assert main(["verify", "model.onnx", "plan.json", "cut.onnx", "--data", "d.npz", "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["passed"]
    assert proof["samples"] == 4
    assert main(["verify", "model.onnx", "plan.json", "model.onnx"]) == 1, "an uncut model isn't the cut one"
    assert "isn't the cut" in capsys.readouterr().err
    assert main(["verify", "model.onnx", "plan.json", "cut.onnx", "--input", "gain=fast"]) == 2
    assert main(["verify", "model.onnx", "plan.json", "cut.onnx", "--data", "none.npz"]) == 2


def test_inspect_sees_one_sample_and_nothing_frozen_by_the_batch(model: Path) -> None:
    found = condensec.inspect(model)
    assert found.shapes == {"x": (1, 8), "state": (2, 1, 4), "gain": ()}
    assert [group.size for group in found.groups] == [16]
    assert found.macs == 8 * 16 + 16 * 4
    assert not any("can't be worked out" in axis.reason for axis in found.frozen)


@pytest.mark.parametrize(
    ("written", "meant"), [(-1, None), (0, None), ("", None), ("?", None), ("N", "N"), (3, 3)]
)
def test_all_readers_of_a_model_mean_the_same_by_a_dim(written: int | str, meant: int | str | None) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [written, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [written, 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    wanted = [("x", (meant, 4), True)]
    assert ports(proto) == wanted
    assert signature(to_ir(proto)).ports == wanted
    assert Session(proto).ports == wanted
    assert Session(proto).outputs[0].shape == (meant, 4)
