"""Augmented training samples: what is asked for is done, safely, and the teacher answers for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from healing_tools import Setting, noisy
from hypothesis import given, settings
from hypothesis import strategies as st

from condensec.data import Samples
from condensec.errors import CondensecError, ConfigError, DataError
from condensec.healing.augment import crop, flip, resolve
from condensec.healing.teacher import Teacher
from condensec.healing.views import Views
from condensec.specs import parse_augment


def _images(count: int = 12, shape: tuple[int, ...] = (3, 8, 8)) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        {"x": rng.standard_normal((count, *shape)).astype(np.float32)}, labels=np.arange(count) % 3
    )


def test_flip_mirrors_some_images_whole() -> None:
    samples = _images(40)
    x = samples.inputs["x"]
    y = flip({"x": x}, np.random.default_rng(1))["x"]
    mirrored = [bool(np.array_equal(b, a[..., ::-1])) for a, b in zip(x, y, strict=True)]
    same = [bool(np.array_equal(a, b)) for a, b in zip(x, y, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32


@settings(max_examples=25, deadline=None)
@given(margin=st.integers(1, 4), seed=st.integers(0, 99))
def test_crop_takes_a_window_of_the_reflected_image(margin: int, seed: int) -> None:
    x = np.arange(5 * 2 * 6 * 7, dtype=np.float32).reshape(5, 2, 6, 7)
    y = crop(margin)({"x": x}, np.random.default_rng(seed))["x"]
    wide = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    for before, after in zip(wide, y, strict=True):
        found = [
            (r, c)
            for r in range(2 * margin + 1)
            for c in range(2 * margin + 1)
            if np.array_equal(before[:, r : r + 6, c : c + 7], after)
        ]
        assert found


def test_same_seed_view_and_place_give_the_same_samples() -> None:
    samples = _images(32)
    augment = resolve("flip,crop=2", samples, seed=5, batch=8)
    assert augment is not None
    one, two, other = augment(samples, 3, 0), augment(samples, 3, 0), augment(samples, 4, 0)
    assert np.array_equal(one.inputs["x"], two.inputs["x"])
    assert not np.array_equal(one.inputs["x"], other.inputs["x"])
    # the second half on its own is what it was as a part of the whole
    half = augment(samples.subset(np.arange(16, 32)), 3, 16)
    assert np.array_equal(half.inputs["x"], one.inputs["x"][16:])


@pytest.mark.parametrize(
    ("spec", "samples", "words"),
    [
        ("flip", Samples({"x": np.zeros((4, 8), np.float32)}), r"no \[N,C,H,W\] image"),
        ("flip", Samples({"x": np.zeros((4, 8, 8, 3), np.float32)}), "channels last"),
        ("crop=8", _images(), "only 8x8"),
        (
            "flip",
            Samples({"x": np.zeros((4, 3, 8, 8), np.float32)}, labels=np.zeros((4, 8, 8), np.int64)),
            "labels aren't one number",
        ),
        ("no_such_module_here:f", _images(), "No module named"),
        ("healing_tools:no_such_thing", _images(), "there's no 'no_such_thing'"),
        ("rotate", _images(), "can't be read; write flip"),
    ],
)
def test_what_is_not_there_or_not_safe_is_refused(spec: str, samples: Samples, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(spec, samples, seed=0, batch=4)
    assert "\n" not in str(caught.value)


def _nan(batch: Any, rng: Any) -> Any:
    batch["x"][0] = np.nan
    return batch


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda batch, rng: {**batch, "x": batch["x"][:, 1:]}, r"shape \(4, 2, 8, 8\).*given \(4, 3, 8"),
        (lambda batch, rng: {**batch, "x": batch["x"].astype(np.int32)}, "as int32, it was given float32"),
        (_nan, "NaN or infinity in 'x'"),
        (lambda batch, rng: {}, "no array 'x'"),
        (lambda batch, rng: {**batch, "z": batch["x"]}, "an array 'z' it wasn't given"),
        (lambda batch, rng: batch["x"], "gave ndarray, not a dict"),
        (lambda batch, rng: 1 / 0, "failed: ZeroDivisionError"),
    ],
    ids=["shape", "dtype", "nan", "missing", "odd", "array", "raises"],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(function: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        resolve(function, _images(), seed=0, batch=4)
    assert "\n" not in str(caught.value)


def test_double_precision_and_labels_are_taken_as_they_come() -> None:
    def double(batch: Any, rng: Any) -> Any:
        return {"x": batch["x"].astype(np.float64) * 2, "labels": 2 - batch["labels"]}

    samples = _images()
    augment = resolve(double, samples, seed=0, batch=4)
    assert augment is not None
    changed = augment(samples, 0, 0)
    assert changed.inputs["x"].dtype == np.float32
    assert np.array_equal(changed.inputs["x"], 2 * samples.inputs["x"])
    assert samples.labels is not None
    assert changed.labels is not None
    assert np.array_equal(changed.labels, 2 - samples.labels)


def test_steps_are_read_in_order() -> None:
    assert parse_augment("flip, crop=4,a.b:c") == ("flip", "crop=4", "a.b:c")
    for bad in ("", "flip=1", "crop", "crop=0", "crop=-1", "flip,,crop=2", "module:"):
        with pytest.raises(ConfigError):
            parse_augment(bad)


def test_views_are_made_ahead_and_dropped_behind(tmp_path: Path) -> None:
    made: list[int] = []

    def make(view: int, folder: Path, is_stopped: Any) -> dict[str, str]:
        folder.mkdir(parents=True)
        made.append(view)
        return {"x": str(folder)}

    with Views(make, tmp_path, 0, 7) as views:
        paths = [Path(views.get(epoch)["x"]) for epoch in (0, 0, *range(1, 7))]
    assert made == [0, 1, 2, 3]  # each serves two epochs
    assert paths[0] == paths[1] == paths[2] != paths[3] == paths[4] != paths[5]
    assert [p.exists() for p in (paths[0], paths[3], paths[5], paths[7])] == [False, False, False, True]
    made.clear()
    with Views(make, tmp_path / "turns", 2, None) as views:
        turns = [views.get(epoch)["x"] for epoch in range(5)]
    assert turns[0] == turns[2] == turns[4] != turns[1]
    assert sorted(made) == [0, 1]


def test_an_unfinished_view_ends_with_the_heal(tmp_path: Path) -> None:
    started = threading.Event()

    def make(view: int, folder: Path, is_stopped: Any) -> dict[str, str]:
        started.set()
        while view and not is_stopped():
            pass
        return {}

    with Views(make, tmp_path, 0, None) as views:
        views.get(0)
        assert started.wait(5)
    assert threading.active_count() < 20


@pytest.mark.parametrize("views", [0, 1])
def test_the_teacher_answers_for_the_changed_samples(
    tmp_path: Path, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written beside a changed sample is the teacher's output on just that sample."""
    from condensec.runner import Session

    teacher = models.residual_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=96)
    written: list[tuple[Any, Any]] = []
    real = Teacher.write

    def write(self: Any, samples: Any, folder: Any, **more: Any) -> Any:
        files = real(self, samples, folder, **more)
        if more.get("augment") is not None:
            written.append(({k: np.load(v) for k, v in files.items()}, more["view"]))
        return files

    monkeypatch.setattr(Teacher, "write", write)
    result = setting.heal(epochs=3, batch=16, augment="flip,crop=2", views=views)
    assert result.after < result.before
    assert {view for _, view in written} == ({0} if views else {0, 1})
    for arrays, _ in written:
        inputs = arrays["input"]
        assert not np.array_equal(inputs, setting.train.inputs["input"])
        answer = Session(teacher).run_samples(Samples({"input": inputs}))["logits"]
        assert np.allclose(arrays["heal.target.logits"], answer, atol=1e-4)


def test_a_function_that_breaks_on_the_way_ends_the_heal_in_one_line(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=96)
    raw = setting.student.read_bytes()
    calls = []

    def breaks(batch: Any, rng: Any) -> Any:
        calls.append(1)
        if len(calls) > 8:
            batch["input"][0, 0] = np.inf
        return batch

    with pytest.raises(CondensecError, match="gave NaN or infinity in 'input'") as caught:
        setting.heal(epochs=9, batch=32, augment=breaks)
    assert "\n" not in str(caught.value)
    assert setting.student.read_bytes() == raw


def test_augmentation_helps_where_samples_are_few(tmp_path: Path) -> None:
    """Forty images, the teacher answering for mirrored and shifted ones: nearer to it on new images."""
    teacher = models.residual_cnn(width=8)
    setting = Setting(tmp_path, teacher, noisy(teacher), count=40)
    setting.train = Samples(setting.train.inputs)
    setting.validation = Samples(setting.validation.inputs)
    plain = setting.heal(epochs=60, batch=20, lr=0.008)
    varied = setting.heal(epochs=60, batch=20, lr=0.008, augment="flip,crop=3")
    assert varied.after < 0.95 * plain.after
