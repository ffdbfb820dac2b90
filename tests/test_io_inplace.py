"""A model file read without its large weights is the model that protobuf reads; else protobuf reads it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from condensec import inplace, io, streaming
from condensec.errors import ModelError
from condensec.filetensor import FileTensor, sliced

WEIGHTS = {
    "floats": np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32),
    "halves": np.random.default_rng(1).normal(size=(64, 3, 3, 3)).astype(np.float16),
    "bytes": np.random.default_rng(2).integers(0, 255, (70, 9)).astype(np.uint8),
    "flags": np.random.default_rng(3).integers(0, 2, (300,)).astype(np.bool_),
    "small": np.arange(6, dtype=np.int64),
    "scalar": np.float32(3),
}


@pytest.fixture(autouse=True)
def small_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inplace, "LARGE", 256)
    monkeypatch.setattr(inplace, "WORTH", 1)


def model(*extra: TensorProto) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in WEIGHTS.items()]
    tensors[0].doc_string = "the first"
    nodes = [helper.make_node("MatMul", ["x", "floats"], ["y"], name="m")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, ["N", 40])],
        [helper.make_tensor_value_info("y", 1, ["N", 30])],
        [*tensors, *extra],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder: Path, content: bytes | onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def outcome(path: Path) -> object:
    """What loading a file gives: its serialized content, or the error."""
    try:
        loaded = io.load(path)
        return ir.to_proto(loaded).SerializeToString(deterministic=True)
    except ModelError as error:
        return str(error)


def held(path: Path) -> list[str]:
    """Names of the weights that stay in the file."""
    initializers = io.load(path).graph.initializers
    return [n for n, v in initializers.items() if isinstance(v.const_value, FileTensor)]


def whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(inplace, "read", lambda path: None)
        return outcome(path)


def test_the_same_model_with_its_large_weights_left_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, model())
    assert held(path) == ["floats", "halves", "bytes", "flags"]
    loaded = io.load(path)
    for name, array in WEIGHTS.items():
        tensor = loaded.graph.initializers[name].const_value
        assert tensor is not None
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == np.asarray(array).dtype
        assert (tensor.name, tensor.nbytes) == (name, np.asarray(array).nbytes)
    assert loaded.graph.initializers["floats"].const_value.doc_string == "the first"  # type: ignore[union-attr]
    assert outcome(path) == whole(path, monkeypatch)


def test_types_of_half_a_byte_are_read_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = helper.make_tensor("four", TensorProto.INT4, [40, 40], bytes(800), raw=True)
    brain = helper.make_tensor("brain", TensorProto.BFLOAT16, [40, 40], bytes(range(200)) * 16, raw=True)
    path = written(tmp_path, model(tensor, brain))
    assert "four" not in held(path)
    assert "brain" in held(path)
    assert outcome(path) == whole(path, monkeypatch)


@pytest.mark.parametrize("kind", ["float_data", "double_data"])
def test_weights_that_are_packed_numbers_stay_in_the_file_too(kind: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(20, 30))
    packed = TensorProto(name="packed", dims=array.shape, data_type=1 if kind == "float_data" else 11)
    getattr(packed, kind).extend(array.reshape(-1))
    path = written(tmp_path, model(packed))
    assert "packed" in held(path)
    found = io.load(path).graph.initializers["packed"].const_value
    assert found is not None
    assert np.array_equal(found.numpy(), numpy_helper.to_array(packed))


def test_small_models_are_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inplace, "WORTH", 1 << 20)
    assert held(written(tmp_path, model())) == []


# -- files that aren't ordinary -------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    return streaming.tag(number, len(content)) + content


def rebuilt(*initializers: bytes, graphs: int = 1) -> bytes:
    """A model file whose graph has these as further fields; with the graph in several parts, if asked to."""
    proto = model()
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    extra = b"".join(field(5, content) for content in initializers)
    if graphs == 2:
        return proto.SerializeToString() + field(7, graph) + field(7, extra)
    return proto.SerializeToString() + field(7, graph + extra)


def tensor(name: str, raw: bytes = bytes(1024), dims: tuple[int, ...] = (16, 16), kind: int = 1) -> bytes:
    return TensorProto(name=name, dims=dims, data_type=kind, raw_data=raw).SerializeToString()


UNUSUAL: dict[str, bytes] = {
    "several graphs, which protobuf merges": rebuilt(tensor("more"), graphs=2),
    "bytes that were given twice, the last count": rebuilt(tensor("more") + field(9, bytes([1]) * 1024)),
    "fewer bytes than its shape says": rebuilt(tensor("more", bytes(1000))),
    "more bytes than its shape says": rebuilt(tensor("more", bytes(1028))),
    "a negative size": rebuilt(tensor("more", dims=(-16, -16))),
    "no type": rebuilt(tensor("more", kind=0)),
    "an unknown type": rebuilt(tensor("more", kind=99)),
    "no name": rebuilt(tensor("")),
    "a name that isn't text": rebuilt(tensor("") + field(8, b"\xff\xfe")),
    "an external weight with bytes": rebuilt(tensor("more") + b"\x70\x01"),
    "two weights of one name": rebuilt(tensor("floats")),
    "a field nobody knows": rebuilt(tensor("more") + field(77, b"?")),
    "a group": rebuilt(tensor("more") + b"\x0b\x0c"),
    "field zero": rebuilt(tensor("more") + b"\x02\x00"),
    "a number without end": rebuilt(tensor("more") + b"\x08" + b"\xff" * 12),
    "a length beyond the file": rebuilt(tensor("more") + b"\x4a\xff\xff\xff\xff\x0f"),
    "packed dims": rebuilt(field(1, b"\x10\x10") + b"\x10\x01" + field(8, b"more") + field(9, bytes(1024))),
    "bytes first": rebuilt(field(9, bytes(1024)) + b"\x08\x10\x08\x10\x10\x01" + field(8, b"more")),
    "packed numbers of another type": rebuilt(
        TensorProto(name="more", dims=[16, 16], data_type=14, float_data=range(512)).SerializeToString()
    ),
    "numbers one by one": rebuilt(
        b"\x08\x10\x08\x10\x10\x01" + field(8, b"more") + b"\x25\x00\x00\x80\x3f" * 256
    ),
    "an empty graph behind": rebuilt(graphs=2),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_unusual_files_are_what_protobuf_takes_them_for(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, UNUSUAL[what])
    expected = whole(path, monkeypatch)
    try:
        assert outcome(path) == expected
    except ValueError as error:  # bytes that don't fit their shape, found when somebody asks for them
        with pytest.raises(ValueError, match=str(error)[:20]):
            whole(path, monkeypatch)


def test_packed_sizes_and_other_orders_of_fields_are_left_in_the_file(tmp_path: Path) -> None:
    for what in ("packed dims", "bytes first"):
        assert "more" in held(written(tmp_path, UNUSUAL[what]))


def test_a_file_cut_off_anywhere_is_what_protobuf_takes_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = model().SerializeToString()
    for length in range(1, len(content), 97):
        path = written(tmp_path, content[:length])
        assert outcome(path) == whole(path, monkeypatch), length


def test_damaged_files_are_what_protobuf_takes_them_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = model().SerializeToString()
    structure = [*range(120), *range(4900, 5100), *range(len(content) - 120, len(content))]
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.choice(structure, rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path = written(tmp_path, bytes(damaged))
        try:
            expected = whole(path, monkeypatch)
        except Exception:  # a model that loads and can't be written again: nothing to compare
            continue
        kept += 1
        assert outcome(path) == expected
    assert kept > 100


# -- the open file --------------------------------------------------------------------------------------


def test_a_file_that_is_replaced_still_gives_its_weights(tmp_path: Path) -> None:
    path = written(tmp_path, model())
    loaded = io.load(path)
    io.save(loaded, path)
    again = io.load(path)
    os.remove(path)
    for one in (loaded, again):
        found = one.graph.initializers["floats"].const_value
        assert found is not None
        assert np.array_equal(found.numpy(), WEIGHTS["floats"])


def test_a_file_that_becomes_shorter_is_told_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, model())
    found = io.load(path).graph.initializers["floats"].const_value
    assert found is not None
    os.truncate(path, 100)
    with pytest.raises(ModelError, match="has become shorter while it was in use"):
        found.numpy()


@pytest.fixture
def open_files() -> Path:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no /proc")
    return folder


def test_files_are_closed_with_the_last_weight(tmp_path: Path, open_files: Path) -> None:
    path = written(tmp_path, model())
    gc.collect()
    before = len(list(open_files.iterdir()))
    found = io.load(path).graph.initializers["floats"].const_value
    assert isinstance(found, FileTensor)
    rows = found.rows
    del found
    gc.collect()
    assert len(list(open_files.iterdir())) == before + 1
    assert np.array_equal(rows(3, 5), WEIGHTS["floats"][3:5])
    del rows
    gc.collect()
    assert len(list(open_files.iterdir())) == before


# -- slices ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([1, 40, 1 << 22])
)
def test_slices_of_a_weight_in_a_file_are_numpys(sizes: list[int], seed: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.normal(size=sizes).astype(np.float32)
    indices = {
        axis: np.flatnonzero(rng.random(size) < 0.6) if rng.random() < 0.8 else np.arange(size)
        for axis, size in enumerate(sizes)
        if rng.random() < 0.7
    }
    indices = {axis: kept for axis, kept in indices.items() if len(kept)}
    expected = array
    for axis, kept in indices.items():
        expected = np.take(expected, kept, axis=axis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condensec.filetensor.CHUNK", chunk)
        source = FileTensor(lambda a, b: array[a:b], ir.DataType.FLOAT, ir.Shape(sizes), name="w")
        found = sliced(source, indices)
        assert np.array_equal(found.numpy(), expected)
        assert np.array_equal(np.concatenate([rows for _, rows in found.chunks()]), expected)
        twice = sliced(found, {0: np.array([found.shape.numpy()[0] - 1])})
        assert np.array_equal(twice.numpy(), expected[-1:])
    assert (found.name, tuple(found.shape.numpy())) == ("w", expected.shape)
