"""Samples in the hand: rows, batches, splits, made-up inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import residual_cnn, run, save, transformer_encoder

from condensec import data, io
from condensec.data import Samples, Signature, TensorSpec
from condensec.errors import DataError

F32 = np.dtype(np.float32)


def numbered(n: int) -> Samples:
    x = np.arange(n, dtype=np.float32)[:, None]
    return Samples({"x": x}, labels=np.arange(n), outputs={"y": x * 2}, extras={"e": np.arange(n)})


def rows(samples: Samples) -> list[int]:
    return [int(v) for v in samples.inputs["x"][:, 0]]


def test_subset_keeps_all_arrays_together() -> None:
    part = numbered(10).subset([7, 2, 2]).subset([2, 0])
    assert rows(part) == [2, 7]
    assert part.labels is not None
    assert part.outputs is not None
    assert part.labels.tolist() == [2, 7]
    assert part.outputs["y"][:, 0].tolist() == [4, 14]
    assert part.extras["e"].tolist() == [2, 7]
    assert len(part) == 2


def test_subset_copies_nothing_before_it_is_asked() -> None:
    big = Samples({"x": np.broadcast_to(np.float32(0), (1 << 20, 1 << 12))})  # 16 GiB if it were real
    part = big.subset(np.random.default_rng(0).permutation(len(big)))
    assert next(iter(part.batches(4))).inputs["x"].shape == (4, 1 << 12)


def test_batches_and_first() -> None:
    samples = numbered(10)
    assert [rows(b) for b in samples.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert rows(samples.first(3)) == [0, 1, 2]
    assert samples.first(99) is samples
    assert sorted(rows(samples.shuffled(1))) == list(range(10))
    assert rows(samples.shuffled(1)) == rows(samples.shuffled(1)) != list(range(10))


def test_consecutive_rows_are_a_view() -> None:
    samples = numbered(10)
    assert np.shares_memory(samples.subset([3, 4, 5]).inputs["x"], samples.inputs["x"])


# -- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, 17, 100, 5000, 60_000])
def test_splits_are_disjoint_and_complete(n: int) -> None:
    parts = data.split(numbered(n), seed=3)
    found = [rows(p) for p in (parts.calibration, parts.train, parts.validation, parts.test)]
    assert sorted(i for part in found for i in part) == list(range(n))
    assert all(found)
    assert parts.note == ""


def test_split_shares_and_caps() -> None:
    def sizes(n: int) -> list[int]:
        s = data.split(numbered(n))
        return [len(s.calibration), len(s.train), len(s.validation), len(s.test)]

    assert sizes(100) == [10, 50, 20, 20]
    assert sizes(60_000) == [1024, 43_976, 5000, 10_000]


def test_split_depends_on_the_seed_only() -> None:
    a, b, c = (data.split(numbered(100), seed=s) for s in (1, 1, 2))
    assert rows(a.validation) == rows(b.validation) != rows(c.validation)


def test_held_out_samples_stay_held_out() -> None:
    held = Samples({"x": np.arange(1000, 1100, dtype=np.float32)[:, None]})
    parts = data.split(numbered(100), held, seed=0)
    assert sorted(rows(parts.calibration) + rows(parts.train)) == list(range(100))
    assert sorted(rows(parts.validation) + rows(parts.test)) == list(range(1000, 1100))
    assert len(parts.validation) == len(parts.test) == 50


@pytest.mark.parametrize("n", [1, 2, 15])
def test_tiny_sets_overlap_and_say_so(n: int) -> None:
    parts = data.split(numbered(n))
    assert f"only {n} samples" in parts.note
    assert all(len(p) == n for p in (parts.calibration, parts.train, parts.validation, parts.test))
    both = data.split(numbered(n), numbered(n))
    assert "calibration and training" in both.note
    assert "validation and test" in both.note


# -- made-up inputs ------------------------------------------------------------------------------------------


def test_synthetic_images_run_and_repeat(tmp_path: Path) -> None:
    model = residual_cnn()
    signature = io.signature(io.load(save(model, tmp_path)))
    samples = data.synthetic(signature, seed=1, count=32)
    assert samples.synthetic
    x = samples.inputs["input"]
    assert x.shape == (32, 3, 16, 16)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    assert x.mean(axis=(2, 3)).std() > 0.05, "something is left after a global pool"
    np.testing.assert_array_equal(x, data.synthetic(signature, seed=1, count=32).inputs["input"])
    assert np.any(x != data.synthetic(signature, seed=2, count=32).inputs["input"])
    assert run(model, dict(samples.inputs)).shape == (32, 10)


def test_synthetic_tokens_stay_inside_their_table(tmp_path: Path) -> None:
    model = transformer_encoder()
    samples = data.synthetic(io.signature(io.load(save(model, tmp_path))), count=64)
    ids, mask = samples.inputs["input_ids"], samples.inputs["attention_mask"]
    assert ids.shape == mask.shape == (64, 16)
    assert ids.min() == 0
    assert ids.max() == 49
    assert (mask == 1).all()
    assert np.isfinite(run(model, dict(samples.inputs))).all()


def test_synthetic_shapes_and_kinds() -> None:
    signature = Signature(
        (
            TensorSpec("image", F32, (None, 3, None, None)),
            TensorSpec("bytes", np.dtype(np.uint8), (1, 3, "H", "W")),
            TensorSpec("past_key", F32, ("B", 4, "past", 8)),
            TensorSpec("total_mask", np.dtype(np.int64), ("B", "past + seq")),
            TensorSpec("flag", np.dtype(bool), ("B", 2)),
            TensorSpec("position_ids", np.dtype(np.int64), ("B", "seq"), bound=5),
            TensorSpec("kind", np.dtype(np.int32), ("B", "seq")),
            TensorSpec("half", np.dtype(np.float16), ("B", 2)),
        ),
        (),
    )
    found = data.synthetic(signature, count=3, shapes={"past_key": (1, 4, 20, 8)}).inputs
    assert found["image"].shape == (3, 3, 224, 224)
    assert found["bytes"].max() > 200
    assert found["past_key"].shape == (3, 4, 20, 8)
    assert found["total_mask"].shape == (3, 36)
    assert found["flag"].all()
    assert found["position_ids"][0].tolist() == [0, 1, 2, 3, 4] * 3 + [0]
    assert set(np.unique(found["kind"])) == {0, 1}
    assert found["half"].dtype == np.float16
    for spec in signature.inputs:
        assert found[spec.name].dtype == spec.dtype


def test_synthetic_shapes_that_do_not_fit() -> None:
    signature = Signature((TensorSpec("x", F32, ("N", 3, None)),), ())
    assert data.synthetic(signature, count=2, shapes={"x": (1, 3, 7)}).inputs["x"].shape == (2, 3, 7)
    for shapes, word in (
        ({"y": (1,)}, "--shape y"),
        ({"x": (1, 4, 7)}, "x"),
        ({"x": (3, 7)}, "x"),
        ({"x": (1, 3, 0)}, "x"),
    ):
        with pytest.raises(DataError, match=word):
            data.synthetic(signature, shapes=shapes)
    unknown = Signature((TensorSpec("x", F32, (), rank_known=False),), ())
    with pytest.raises(DataError, match="--shape x="):
        data.synthetic(unknown)
    assert data.synthetic(unknown, count=2, shapes={"x": (1, 5)}).inputs["x"].shape == (2, 5)
    scalar = Signature((TensorSpec("x", F32, ()),), ())
    assert data.synthetic(scalar, count=2).inputs["x"].tolist() == [1.0, 1.0], "one copy a sample"


def test_the_first_samples_of_a_part_stand_for_all_of_it() -> None:
    """A file sorted by class: the first samples of every part that is looked at in part have all classes."""
    labels = np.repeat(np.arange(10), 500)
    samples = Samples({"x": labels.astype(np.float32)[:, None]}, labels)
    for parts in (data.split(samples, seed=1), data.split(samples, samples, seed=1)):
        for part in (parts.calibration, parts.validation, parts.test):
            counts = np.bincount(part.first(200).labels, minlength=10)
            assert counts.min() >= 5, counts
            np.testing.assert_array_equal(part.inputs["x"][:, 0], part.labels)
