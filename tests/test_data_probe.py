"""Made-up inputs for models that run at some shapes only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_builder import Builder
from models import concat_net, residual_cnn, save
from onnx import TensorProto, helper

from condensec import io
from condensec.data import synthetic
from condensec.errors import DataError, ModelError
from condensec.probe import runnable_shapes
from condensec.runner import Session


def needs(height: int, width: int | None = None) -> onnx.ModelProto:
    """A model that states dynamic sides, but has a weight that fits one height (and width) only."""
    b = Builder(0)
    x = b.input("x", ["N", 3, "H", "W"])
    b.op("Add", "add", x, b.normal("w", (1, 3, height, width or 1), 1.0), outputs=["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H", "W"])
    graph = helper.make_graph(b.nodes, "g", b.inputs, [output], b.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def shapes(model: onnx.ModelProto, folder: Path, **given: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    path = save(model, folder)
    signature = io.signature(io.load(path))
    found = runnable_shapes(path, signature, given)
    Session(path).run_samples(synthetic(signature, count=2, shapes=found))
    return found


def test_the_first_usual_shape_that_runs_is_taken(tmp_path: Path) -> None:
    assert shapes(needs(48), tmp_path) == {"x": (1, 3, 48, 320)}
    assert shapes(needs(640, 640), tmp_path) == {"x": (1, 3, 640, 640)}
    assert shapes(needs(1), tmp_path) == {"x": (1, 3, 224, 224)}


def test_nothing_is_tried_where_nothing_is_open(tmp_path: Path) -> None:
    for model in (residual_cnn(), concat_net()):
        assert shapes(model, tmp_path) == {}
    assert shapes(needs(37), tmp_path, x=(1, 3, 37, 5)) == {"x": (1, 3, 37, 5)}


def test_a_model_that_runs_at_no_usual_shape_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--shape x=.*--data") as caught:
        shapes(needs(37), tmp_path)
    assert caught.value.node == "x"


def test_lengths_of_sequences(tmp_path: Path) -> None:
    b = Builder(0)
    ids, mask = b.input("ids", ["N", "S"]), b.input("attention_mask", ["N", "S"])
    both = b.op("Add", "add", ids, mask)
    b.op("Add", "fit", both, b.const("w", np.ones((1, 128), np.float32)), outputs=["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S"])
    graph = helper.make_graph(b.nodes, "g", b.inputs, [output], b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert shapes(model, tmp_path) == {"ids": (1, 128), "attention_mask": (1, 128)}


def test_a_model_that_does_not_load_is_not_a_matter_of_shapes(tmp_path: Path) -> None:
    model = needs(48)
    model.graph.node[0].op_type = "NoSuchOperator"
    path = save(model, tmp_path)
    with pytest.raises(ModelError, match="NoSuchOperator"):
        runnable_shapes(path, io.signature(io.load(path)))
