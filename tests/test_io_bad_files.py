"""Every file that can't be a model is refused with one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp, save, transformer_encoder
from onnx import TensorProto, helper, numpy_helper

from condensec import io
from condensec.errors import ModelError


def refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        io.load(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    for word in words:
        assert word in text
    return caught.value


def test_a_good_file_is_not_refused(tmp_path: Path) -> None:
    assert len(io.load(save(mlp(), tmp_path)).graph.outputs) == 1


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no such file")
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", "is a folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello, I am no model\n" * 20, "is a text file"),
        ("größe\n".encode() * 200, "is a text file"),
        (b'{"a": 1}', "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\x00\x00\x00\x00ORTM" + bytes(50), ".ort file"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (b"\x80\x02}q\x00." * 9, "damaged"),
        (bytes(100), "damaged"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    refused(path, words)


def test_truncated_at_every_length(tmp_path: Path) -> None:
    """Cut off anywhere, the file is refused: by the parser, or since the graph or the opset is missing."""
    whole = mlp(features=2, hidden=(2,), classes=2).SerializeToString()
    path = tmp_path / "cut.onnx"
    last_fields = len(onnx.load_model_from_string(whole).opset_import[0].SerializeToString()) + 2
    for length in [*range(0, len(whole) - last_fields, 7), len(whole) - last_fields]:
        path.write_bytes(whole[:length])
        refused(path)


def test_damaged_files_are_refused_or_read_never_worse(tmp_path: Path) -> None:
    whole = transformer_encoder().SerializeToString()
    path = tmp_path / "damaged.onnx"
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, 2500, rng.integers(1, 5)):  # the nodes come first, the weights later
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            io.signature(io.load(path))
        except ModelError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refusals > 50


def test_unknown_domain_names_the_node(tmp_path: Path) -> None:
    model = mlp()
    model.graph.node[1].domain = "my.company"
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    error = refused(save(model, tmp_path), "my.company", model.graph.node[1].name)
    assert error.node == model.graph.node[1].name


def test_unknown_domain_inside_a_branch_is_found(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Secret", [], ["y"], name="deep", domain="evil")],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert refused(save(model, tmp_path), "evil").node == "deep"


def test_domain_of_a_local_function_is_known(tmp_path: Path) -> None:
    model = mlp()
    relu = helper.make_function(
        "local", "MyRelu", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model.functions.append(relu)
    model.opset_import.append(helper.make_opsetid("local", 1))
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "MyRelu", "local"
    assert io.load(save(model, tmp_path)).functions
    node.op_type = "Other"
    refused(save(model, tmp_path), "Other", "local")


@pytest.mark.parametrize(("opset", "words"), [(6, "oldest"), (99, "newest")])
def test_opset_bounds(tmp_path: Path, opset: int, words: str) -> None:
    model = mlp()
    model.opset_import[0].version = opset
    refused(save(model, tmp_path), f"opset {opset}", words)


def test_no_graph_no_output_no_opset(tmp_path: Path) -> None:
    model = mlp()
    del model.graph.output[:]
    refused(save(model, tmp_path), "no output")
    model = mlp()
    del model.opset_import[:]
    refused(save(model, tmp_path), "no opset")
    model = mlp()
    model.ClearField("graph")
    refused(save(model, tmp_path), "no graph")


def test_newer_ir_version(tmp_path: Path) -> None:
    model = mlp()
    model.ir_version = 200
    refused(save(model, tmp_path), "IR version 200")


# -- external data -----------------------------------------------------------------------------------


def external(tmp_path: Path) -> Path:
    """A model whose weights lie in ``weights.bin``."""
    path = tmp_path / "model.onnx"
    onnx.save(
        mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )  # fmt: skip
    return path


def redirect(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read_where_it_should_be(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = io.load(path)
    wanted = {w.name: numpy_helper.to_array(w) for w in mlp().graph.initializer}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), wanted[name])


def test_external_data_missing(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert refused(path, "weights.bin", "missing").node


def test_external_data_shorter_than_stated(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert refused(path, "weights.bin", "too short").node == "fc.bias"


def test_external_data_stated_shorter_than_the_tensor(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = "4"
    path.write_bytes(proto.SerializeToString())
    refused(path, "states 4 bytes")


@pytest.mark.parametrize("location", ["/etc/passwd", "C:\\weights.bin", "\\\\server\\weights.bin"])
def test_external_data_absolute(tmp_path: Path, location: str) -> None:
    path = external(tmp_path)
    redirect(path, location)
    refused(path, "absolute")


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "..\\weights.bin"])
def test_external_data_that_climbs_out(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    redirect(path, location)
    refused(path, "outside the model's folder")


def test_external_data_behind_a_link_that_leads_out(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    os.symlink(tmp_path / "weights.bin", inner / "weights.bin")
    refused(path, "outside the model's folder")


def test_external_data_behind_a_linked_folder_and_hard_links(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    os.symlink(inner, tmp_path / "alias")
    assert io.load(tmp_path / "alias" / "model.onnx").graph.outputs  # the folder itself may be a link
    os.link(inner / "weights.bin", tmp_path / "other.bin")
    refused(path, "hard link")


def test_external_data_location_is_a_folder(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "sub").mkdir()
    redirect(path, "sub")
    refused(path, "sub")
