"""Outputs whose length depends on the data: refused where it does, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny
from onnx import TensorProto, helper

from condensec.comparable import check_comparable, check_finite_outputs, check_repeats
from condensec.data import Samples
from condensec.errors import ModelError
from condensec.runner import Session

X = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)


def places(of: str, dims: list[str | None]) -> onnx.ModelProto:
    """Where a value is not zero: ``[rows, 2]``; of the input above zero, or of ones of its shape."""
    value = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], name="relu"),
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], name="ones", value=value),
        helper.make_node("NonZero", [of], ["found"], name="find"),
        helper.make_node("Transpose", ["found"], ["places"], name="turn", perm=[1, 0]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])]
    outputs = [helper.make_tensor_value_info("places", TensorProto.INT64, dims)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def checked(model: onnx.ModelProto, x: np.ndarray) -> None:
    check_comparable(Session(model), ir.from_proto(model), Samples({"x": x}))


@pytest.mark.parametrize("dims", [["rows", 2], [None, 2]])
def test_rows_that_come_and_go_are_refused_and_their_node_is_named(dims: list[str | None]) -> None:
    with pytest.raises(ModelError, match=r"'places' has 0 to 5 rows.*before NonZero") as caught:
        checked(places("positive", dims), X)
    assert caught.value.node == "find"
    assert caught.value.exit_code == 2


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(ModelError, match="'places' is empty"):
        checked(places("positive", ["rows", 2]), -np.abs(X))


def test_as_many_rows_for_every_sample_pass() -> None:
    counts = {len(Session(places("ones", ["rows", 2])).run({"x": X[i : i + 1]})["places"]) for i in range(8)}
    checked(places("ones", ["rows", 2]), X)
    assert counts == {6}


def test_an_original_that_gives_no_numbers_is_refused_and_says_for_which_row() -> None:
    outputs = {"y": np.array([[1.0, 2.0], [3.0, np.inf], [np.nan, 0.0]]), "k": np.arange(3)}
    with pytest.raises(
        ModelError, match=r"'y' of the model itself.*in 2 of 3 rows, the first of them 1"
    ) as caught:
        check_finite_outputs(outputs, Samples({"x": X[:3]}))
    assert "leave such samples out" in str(caught.value)
    with pytest.raises(ModelError, match="made up"):
        check_finite_outputs(outputs, Samples({"x": X[:3]}, synthetic=True))
    check_finite_outputs({"y": np.ones((3, 2)), "k": np.arange(3)}, Samples({"x": X[:3]}))


def noisy(draw: str) -> onnx.ModelProto:
    """``[N, 6]``, relu, and what a node makes of it, added to it."""
    known = {"half": np.float32(0.5), "on": np.bool_(True), "off": np.bool_(False)}
    return tiny(f"h = Relu(x) drawn = {draw} y = Add(h, drawn)", x=["N", 6], weights=known)


@pytest.mark.parametrize(
    ("draw", "named", "told"),
    [
        ("Dropout(h, half, on)", "Dropout1", "for inference"),
        ("RandomNormalLike(h)", "RandomNormalLike1", "an input"),
    ],
)
def test_an_original_that_chance_decides_is_refused_and_its_node_is_named(
    draw: str, named: str, told: str
) -> None:
    model = noisy(draw)
    with pytest.raises(ModelError, match=r"'y' of the model itself is random") as caught:
        check_repeats(ir.from_proto(model), {"x": X})
    assert caught.value.node == named
    assert told in str(caught.value)


def test_a_dropout_that_is_off_is_not_random() -> None:
    model = noisy("Dropout(h, half, off)")
    check_repeats(ir.from_proto(model), {"x": X})
    assert np.array_equal(Session(model).run({"x": X})["y"], 2 * np.maximum(X, 0))
