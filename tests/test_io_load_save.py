"""Loading lazily, saving atomically, and the interface a model states."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_builder import Builder
from model_tools import random_feeds
from models import (
    as_constant_nodes,
    concat_net,
    mlp,
    residual_cnn,
    run,
    save,
    transformer_encoder,
    with_batch,
)
from onnx import TensorProto, helper

from condensec import io
from condensec.errors import ConfigError, ModelError


def test_round_trip_computes_the_same(tmp_path: Path) -> None:
    for model in (residual_cnn(), as_constant_nodes(concat_net())):
        copy = tmp_path / "copy.onnx"
        io.save(io.load(save(model, tmp_path)), copy)
        feeds = random_feeds(model, 3)
        np.testing.assert_array_equal(run(onnx.load(copy), feeds), run(model, feeds))


def test_external_weights_go_inside_when_they_fit(tmp_path: Path) -> None:
    source = tmp_path / "in" / "model.onnx"
    source.parent.mkdir()
    onnx.save(mlp(), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = io.load(source)
    io.save(model, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.onnx"]
    feeds = random_feeds(mlp(), 3)
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "out.onnx"), feeds), run(mlp(), feeds))
    held = [v.const_value for v in model.graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) for t in held), "saving must not change the model"


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT", 1000)
    path = tmp_path / "big.onnx"
    io.save(io.load(save(mlp(), tmp_path)), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data", "model.onnx"]
    assert path.stat().st_size < (tmp_path / "big.onnx.data").stat().st_size
    feeds = random_feeds(mlp(), 3)
    np.testing.assert_array_equal(run(onnx.load(path), feeds), run(mlp(), feeds))
    io.save(io.load(path), path)  # onto itself
    np.testing.assert_array_equal(run(onnx.load(path), feeds), run(mlp(), feeds))


def test_a_failed_save_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(mlp(), tmp_path)
    before = path.read_bytes()
    model = io.load(path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("condensec.streaming.write", full)
    with pytest.raises(ConfigError, match=r"model\.onnx.*No space left"):
        io.save(model, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == before


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't write"):
        io.save(io.load(save(mlp(), tmp_path)), tmp_path / "no" / "m.onnx")


def test_sha256(tmp_path: Path) -> None:
    path = save(mlp(), tmp_path)
    assert io.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError):
        io.sha256(tmp_path / "none")


def test_external_data_is_not_read_before_it_is_used(tmp_path: Path) -> None:
    """A model of 1 GiB (a sparse file) loads in next to no memory and time."""
    rows, columns = 1 << 14, 1 << 14
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(4 * rows * columns))):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [tensor],
    )
    path = tmp_path / "big.onnx"
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(4 * rows * columns)
    io.load(path)  # imports are paid
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = io.load(path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert model.graph.initializers["w"].const_value.nbytes == 1 << 30  # type: ignore[union-attr]
    assert after - before < 10_000, "KiB"


def test_import_of_the_package_is_light() -> None:
    code = textwrap.dedent(
        """
        import sys, condensec
        heavy = [m for m in ("numpy", "onnx", "onnx_ir", "onnxruntime", "typer") if m in sys.modules]
        print(heavy)
        """
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- signature ---------------------------------------------------------------------------------------


def test_signature_of_an_image_model(tmp_path: Path) -> None:
    found = io.signature(io.load(save(residual_cnn(), tmp_path)))
    (spec,) = found.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("input", np.float32, ("N", 3, 16, 16))
    assert found.classes == 10
    fixed = io.signature(io.load(save(with_batch(residual_cnn(), 4), tmp_path)))
    assert fixed.inputs[0].shape[0] == 4


def test_every_spelling_of_dynamic(tmp_path: Path) -> None:
    model = mlp()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for text, wanted in (("?", None), ("", None), ("-1", None), ("batch", "batch")):
        dims[0].dim_param = text
        assert io.signature(io.load(save(model, tmp_path))).inputs[0].shape == (wanted, 16)
    for number in (-1, 0):
        dims[0].dim_value = number
        assert io.signature(io.load(save(model, tmp_path))).inputs[0].shape == (None, 16)


def test_initializers_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    model = mlp()
    model.ir_version = 3
    for w in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(w.name, w.data_type, w.dims))
    assert [s.name for s in io.signature(io.load(save(model, tmp_path))).inputs] == ["input"]


def test_token_inputs_know_their_table(tmp_path: Path) -> None:
    found = io.signature(io.load(save(transformer_encoder(), tmp_path)))
    bounds = {spec.name: spec.bound for spec in found.inputs}
    assert bounds["input_ids"] == 50
    assert bounds["attention_mask"] is None


def test_a_table_behind_casts_and_constant_nodes(tmp_path: Path) -> None:
    b = Builder(0)
    ids = b.input("ids", ["N", 3], TensorProto.INT32)
    wide = b.op("Cast", "cast", ids, to=TensorProto.INT64)
    table = b.normal("table", (7, 8), 1.0)
    b.op("Gather", "gather", table, b.op("Identity", "id", wide), outputs=["logits"], axis=0)
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, 8])
    graph = helper.make_graph(b.nodes, "g", b.inputs, [output], b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for variant in (model, as_constant_nodes(model)):
        assert io.signature(io.load(save(variant, tmp_path))).inputs[0].bound == 7


def test_inputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for info in (
        helper.make_tensor_value_info("s", TensorProto.STRING, [1]),
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
    ):
        model = mlp()
        model.graph.input.append(info)
        with pytest.raises(ModelError, match="'s'"):
            io.signature(io.load(save(model, tmp_path)))


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_are_read_as_dense_ones(tmp_path: Path, linear: bool) -> None:
    dense = np.zeros((4, 8), np.float32)
    dense[[0, 2, 3], [1, 3, 7]] = [1, -2, 3]
    places = np.flatnonzero(dense) if linear else np.argwhere(dense)
    values = onnx.numpy_helper.from_array(dense[dense != 0], "w")
    indices = onnx.numpy_helper.from_array(places.astype(np.int64), "")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", s]) for n, s in (("x", 4), ("y", 8))]
    sparse = [onnx.helper.make_sparse_tensor(values, indices, [4, 8])]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], sparse_initializer=sparse)
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    found = model.graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), dense)


def test_a_sparse_initializer_with_a_wrong_index_is_refused(tmp_path: Path) -> None:
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([[5, 0]], np.int64), "")
    sparse = [onnx.helper.make_sparse_tensor(values, indices, [4, 8])]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", s]) for n, s in (("x", 4), ("y", 8))]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], sparse_initializer=sparse)
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="sparse tensor 'w'"):
        io.load(tmp_path / "m.onnx")
