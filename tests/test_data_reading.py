"""Data in: what fits is read (mapped, not copied), what doesn't is refused by the array's name."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condensec import data
from condensec.data import Samples, Signature, TensorSpec
from condensec.data.npz import read_npy, read_npz
from condensec.errors import ConfigError, DataError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGES = Signature((TensorSpec("x", F32, ("N", 2, 4)),), (TensorSpec("logits", F32, ("N", 5)),))
TOKENS = Signature(
    (TensorSpec("ids", I64, ("N", "S"), bound=9), TensorSpec("mask", I64, ("N", "S"))),
    (TensorSpec("y", F32, ("N", "S", 3)),),
)


def images(n: int = 6, **others: Any) -> dict[str, Any]:
    x = np.arange(n * 8, dtype=np.float32).reshape(n, 2, 4)
    return {"x": x, "labels": np.arange(n) % 5, **others}


def refused(spec: Any, *words: str, signature: Signature = IMAGES) -> DataError:
    with pytest.raises(DataError) as caught:
        data.load(spec, signature)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return caught.value


def npz(tmp_path: Path, name: str = "d.npz", **arrays: Any) -> Path:
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


# -- what is read --------------------------------------------------------------------------------------


def test_npz_is_mapped_and_equal(tmp_path: Path) -> None:
    path = npz(tmp_path, **images())
    samples = data.load(path, IMAGES)
    np.testing.assert_array_equal(samples.inputs["x"], images()["x"])
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert isinstance(samples.inputs["x"].base, np.memmap)
    assert len(samples) == 6
    assert not samples.synthetic
    assert samples.source == str(path)


@settings(max_examples=40, deadline=None)
@given(
    name=st.text("abcdefgh/._-é", min_size=1, max_size=20).filter(
        lambda n: not n.endswith((".", "/")) and n != "file"
    ),
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "<i8", "|u1", "|b1", "<f2", "<U3", "<c8"]),
    order=st.sampled_from("CF"),
    compressed=st.booleans(),
)
def test_npz_reads_as_numpy_does(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    shape: list[int],
    dtype: str,
    order: Any,
    compressed: bool,
) -> None:
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape).astype(dtype), order=order)
    (np.savez_compressed if compressed else np.savez)(path, **{name: array, "second": np.arange(3)})
    found = read_npz(path)
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found["second"], np.arange(3))


def test_npz_with_padding_and_other_zip_headers(tmp_path: Path) -> None:
    """A member's place comes from its own header: extra fields and a prefix don't shift it."""
    np.save(tmp_path / "x.npy", images()["x"])
    body = (tmp_path / "x.npy").read_bytes()
    path = tmp_path / "d.npz"
    with open(path, "wb") as file:
        file.write(b"#!prefix\n" * 11)  # as self-extracting archives have
        with zipfile.ZipFile(file, "w") as archive:
            info = zipfile.ZipInfo("x.npy")
            info.extra = struct.pack("<HH5s", 0x7777, 5, b"12345")
            archive.writestr(info, body)
            archive.writestr("labels.npy", (tmp_path / "x.npy").read_bytes())
    np.testing.assert_array_equal(read_npz(path)["x"], images()["x"])
    np.testing.assert_array_equal(read_npz(path)["labels"], images()["x"])


def test_compressed_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", **images())
    np.testing.assert_array_equal(data.load(tmp_path / "d.npz", IMAGES).inputs["x"], images()["x"])


def test_folder_of_npz_is_joined_in_sorted_order(tmp_path: Path) -> None:
    whole = images()
    npz(tmp_path, "b.npz", x=whole["x"][2:], labels=whole["labels"][2:])
    npz(tmp_path, "a.npz", x=whole["x"][:2], labels=whole["labels"][:2])
    samples = data.load(str(tmp_path), IMAGES)
    np.testing.assert_array_equal(samples.inputs["x"], whole["x"])
    np.testing.assert_array_equal(samples.labels, whole["labels"])


def test_folder_of_npy_and_single_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images()["x"])
    np.testing.assert_array_equal(data.load(tmp_path / "x.npy", IMAGES).inputs["x"], images()["x"])
    np.save(tmp_path / "labels.npy", images()["labels"])
    assert data.load(tmp_path, IMAGES).labels is not None


def test_mapping_callable_generator_and_samples() -> None:
    def endless(seed: int) -> Iterator[Any]:
        while True:
            yield {"x": images()["x"] + seed}, images()["labels"]

    assert len(data.load(images(), IMAGES)) == 6
    assert len(data.load(images, IMAGES)) == 6
    many = data.load(endless, IMAGES, seed=7)
    assert many.inputs["x"][0, 0, 0] == 7
    assert len(many) == 100_002, "an endless callable is stopped"
    again = data.load(many, IMAGES)
    assert isinstance(again, Samples)
    assert len(again) == len(many)


def test_module_and_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_batches.py").write_text(
        "import numpy as np\ndef batches():\n    for i in range(3):\n"
        "        yield {'x': np.full((2, 2, 4), i, np.float32)}, np.array([i, i])\n"
        "def broken():\n    raise KeyError('oh')\n"
        "def nothing():\n    return []\n"
        "def strange():\n    return [1, 2]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    samples = data.load("my_batches:batches", IMAGES)
    assert samples.inputs["x"][:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert str(tmp_path) not in sys.path
    refused("my_batches:broken", "KeyError", "oh")
    refused("my_batches:nothing", "no batch")
    refused("my_batches:strange", "batch 0", "dict of arrays")
    for spec, word in (
        ("my_batches:none", "no 'none'"),
        ("no_such_mod:x", "no_such_mod"),
        ("my_batches:number", "no callable"),
    ):
        with pytest.raises(ConfigError, match=word):
            data.load(spec, IMAGES)


def test_outputs_and_extras_come_along(tmp_path: Path) -> None:
    logits = np.ones((6, 5), np.float32)
    path = npz(tmp_path, **images(logits=logits, texts=np.array(list("abcdef")), table=np.zeros((3, 3))))
    samples = data.load(path, IMAGES)
    assert samples.outputs is not None
    np.testing.assert_array_equal(samples.outputs["logits"], logits)
    assert samples.extras["texts"].tolist() == list("abcdef")
    assert list(samples.extras) == ["texts"]
    assert any("'table'" in note for note in samples.notes)
    assert samples.subset([4, 1]).extras["texts"].tolist() == ["e", "b"]


# -- what is refused -------------------------------------------------------------------------------------


def test_missing_file_empty_file_wrong_kind(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "none.npz", "no such")
    (tmp_path / "zero.npz").touch()
    refused(tmp_path / "zero.npz", "empty")
    (tmp_path / "text.npz").write_text("hello")
    refused(tmp_path / "text.npz", "text.npz")
    (tmp_path / "t.csv").write_text("1,2")
    refused(tmp_path / "t.csv", "t.csv", ".npz")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no .npz")
    path = npz(tmp_path, **images())
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "cut off")


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    bomb = np.array([Bomb(), None], dtype=object)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", **images(), extra=bomb)  # type: ignore[arg-type]
        refused(tmp_path / "d.npz", "'extra'", "Python objects")
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    refused(tmp_path / "x.npy", "x.npy", "Python objects")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "raw.npz", "raw.npz")
    refused(images(x=bomb), "'x'", "objects")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused_or_read_never_worse(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", **images())
    whole = (tmp_path / "d.npz").read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "d.npz").write_bytes(damaged)
        try:
            data.load(tmp_path / "d.npz", IMAGES)
        except DataError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refusals > 100


def test_names_that_do_not_fit() -> None:
    refused({"y": images()["x"]}, "no array for input 'x'", "found: y")
    refused({}, "'x'", "nothing")
    refused({"input_x": 1, "X": images()["x"]}, "'x'")
    refused({"x": images()["x"], "lables": np.zeros(6, int)}, "'lables'", "rename it to 'labels'")
    refused({"x": images()["x"], "logit": np.zeros((6, 5))}, "'logit'", "'logits'")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((6, 2, 5), np.float32), "6x2x5"),
        (np.zeros((6, 8), np.float32), "6x8"),
        (np.zeros((2, 4), np.float32), "samplesx2x4"),
        (np.float32(3), "sample axis"),
        (np.zeros((0, 2, 4), np.float32), "empty"),
        (np.zeros((6, 2, 4), np.int64), "int64"),
        (np.zeros((6, 2, 4), np.uint8), "uint8"),
        (np.zeros((6, 2, 4), bool), "bool"),
        (np.zeros((6, 2, 4), np.complex64), "complex64"),
        (np.full((6, 2, 4), 1e300), "largest float32"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit(array: Any, words: str) -> None:
    assert refused({"x": array}, "'x'", words).node == "x"


def test_nan_and_infinity_are_found_wherever_they_are() -> None:
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")):
        arrays = images(3_000)
        arrays["x"][2_345, 1, 2] = bad
        refused(arrays, "'x'", word, "sample 2345")
    mixed = images()
    mixed["x"][1, 0, 0], mixed["x"][2, 0, 0] = np.inf, -np.inf
    refused(mixed, "sample 1")
    huge = images()
    huge["x"][:] = 3e38  # the sum overflows, the values don't
    assert len(data.load(huge, IMAGES)) == 6


def test_counts_that_differ() -> None:
    refused(images() | {"labels": np.zeros(5, int)}, "'labels' 5", "'x' 6")
    ids = np.ones((4, 3), np.int64)
    refused({"ids": ids, "mask": ids[:3]}, "'ids' 4", "'mask' 3", signature=TOKENS)


def test_dims_of_one_name_have_one_size() -> None:
    ids = np.ones((4, 3), np.int64)
    refused({"ids": ids, "mask": np.ones((4, 5), np.int64)}, "dim 'S'", signature=TOKENS)
    assert len(data.load({"ids": ids, "mask": ids}, TOKENS)) == 4


def test_tokens_outside_their_table() -> None:
    ids = np.ones((4, 3), np.int64)
    ids[2, 1] = 9
    refused({"ids": ids, "mask": ids}, "'ids'", "9 rows", signature=TOKENS)


def test_labels_outside_the_classes() -> None:
    for label in (5, -1, 255):
        labels = np.arange(6) % 5
        labels[3] = label
        refused(images() | {"labels": labels}, f"label {label} in sample 3", "5 classes", "'logits'")
    refused(images() | {"labels": np.zeros(0, int)}, "'labels'", "empty")
    refused(images() | {"labels": np.array([object()] * 6)}, "'labels'")


# -- safe conversions --------------------------------------------------------------------------------------


def test_conversions_within_one_kind_are_told() -> None:
    samples = data.load(images() | {"x": images()["x"].astype(np.float64)}, IMAGES)
    assert samples.inputs["x"].dtype == np.float32
    assert any("float64" in note for note in samples.notes)
    swapped = data.load(images() | {"x": images()["x"].astype(">f4")}, IMAGES)
    assert swapped.inputs["x"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(swapped.inputs["x"], images()["x"])
    ids = np.ones((4, 3), np.int32)
    assert data.load({"ids": ids, "mask": ids}, TOKENS).inputs["ids"].dtype == np.int64


def test_integers_that_would_overflow_are_refused() -> None:
    narrow = Signature((TensorSpec("i", np.dtype(np.int32), ("N", 1)),), ())
    assert data.load({"i": np.ones((3, 1), np.int64)}, narrow).inputs["i"].dtype == np.int32
    refused({"i": np.full((3, 1), 1 << 40)}, "don't fit int32", signature=narrow)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(6.0) % 5,
        (np.arange(6) % 5)[:, None],
        np.eye(5)[np.arange(6) % 5],
        (np.arange(6) % 5).astype(np.uint8),
    ],
)
def test_labels_in_other_clothes(labels: Any) -> None:
    found = data.load(images() | {"labels": labels}, IMAGES).labels
    assert found is not None
    assert found.tolist() == [0, 1, 2, 3, 4, 0]


def test_a_single_npy_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images()["x"])
    assert isinstance(read_npy(tmp_path / "a.npy").base, np.memmap)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from the system")
def test_reading_big_data_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.npz"
    np.savez(path, x=np.ones((2_000_000, 2, 4), np.float32))  # 64 MB
    code = f"""
import resource
import numpy as np
from condensec import data
spec = data.TensorSpec("x", np.dtype(np.float32), ("N", 2, 4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = data.load({str(path)!r}, data.Signature((spec,), ()))
next(iter(data.split(samples).train.batches(32))).inputs["x"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 40_000, "KiB"
