"""Metrics on numbers worked out by hand, and on outputs that are broken."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from condensec import metrics
from condensec.data import Samples, Signature, TensorSpec
from condensec.errors import ConfigError, DataError
from condensec.metrics import METRICS, interval, resolve

F32 = np.dtype(np.float32)
SCORES = Signature((TensorSpec("x", F32, ("N", 1)),), (TensorSpec("y", F32, ("N", 4)),))
VECTOR = Signature((TensorSpec("x", F32, ("N", 1)),), (TensorSpec("y", F32, ("N", 4, 7)),))
Y = np.array([[9, 1, 2, 3], [1, 9, 8, 7], [5, 5, 0, 0]], np.float32)


def samples(labels: Any = None, n: int = 3, outputs: Any = None) -> Samples:
    return Samples({"x": np.zeros((n, 1), np.float32)}, None if labels is None else np.array(labels), outputs)


def test_top1_counts_the_first_of_ties() -> None:
    top1 = METRICS["top1"]
    assert top1.per_sample({"y": Y}, samples([0, 1, 0])).tolist() == [1, 1, 1]  # type: ignore[union-attr]
    assert top1.value({"y": Y}, samples([0, 2, 1])) == pytest.approx(1 / 3)
    assert top1.value({"y": Y[:, :, None, None]}, samples([0, 1, 0])) == 1


def test_top5_is_generous_and_top1_is_argmax() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, (200, 12)).astype(np.float32)  # with many ties
    labels = rng.integers(0, 12, 200)
    s = samples(labels, 200)
    assert METRICS["top1"].value({"y": y}, s) == np.mean(y.argmax(axis=1) == labels)
    best = np.argsort(-y, axis=1, kind="stable")[:, :5]
    assert METRICS["top5"].value({"y": y}, s) == np.mean((best == labels[:, None]).any(axis=1))


def test_broken_outputs_are_misses_not_hits() -> None:
    broken = np.full_like(Y, np.nan)
    assert METRICS["top1"].value({"y": broken}, samples([0, 0, 0])) == 0
    assert METRICS["agreement"].value({"y": broken}, samples(), {"y": broken}) == 0
    assert METRICS["cosine"].value({"y": broken}, samples(), {"y": Y}) == 0
    assert METRICS["mse"].value({"y": broken}, samples(), {"y": Y}) == np.inf
    assert METRICS["kl"].value({"y": broken}, samples(), {"y": Y}) == np.inf


def test_agreement_needs_no_labels() -> None:
    other = Y[:, ::-1].copy()
    assert METRICS["agreement"].value({"y": Y}, samples(), {"y": Y}) == 1
    assert METRICS["agreement"].value({"y": Y}, samples(), {"y": other}) == 0


def test_cosine_mse_kl_on_known_values() -> None:
    a = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [3, 4, 0, 0]], np.float32)
    b = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [6, 8, 0, 0]], np.float32)
    assert METRICS["cosine"].per_sample({"y": a}, samples(), {"y": b}) == pytest.approx([0, 1, 1])  # type: ignore[comparison-overlap]
    assert METRICS["mse"].per_sample({"y": a}, samples(), {"y": b}) == pytest.approx([0.5, 0, 6.25])  # type: ignore[comparison-overlap]
    p = np.array([[0.5, 0.25, 0.25, 0.0]] * 3)
    q = np.array([[0.25, 0.25, 0.25, 0.25]] * 3)
    wanted = 0.5 * np.log(2)
    assert METRICS["kl"].value({"y": q}, samples(), {"y": p}) == pytest.approx(wanted)
    logits = np.log(np.maximum(p, 1e-12)) + 5
    assert METRICS["kl"].value({"y": np.log(q) - 3}, samples(), {"y": logits}) == pytest.approx(wanted)
    assert METRICS["kl"].value({"y": Y}, samples(), {"y": Y}) == 0


def test_outputs_that_came_with_the_data_are_the_target() -> None:
    given = samples(outputs={"y": Y})
    assert METRICS["mse"].value({"y": Y}, given, {"y": Y + 1}) == 0


def test_misfits_are_refused() -> None:
    for metric, outputs, s, reference, word in (
        ("top1", {"y": Y}, samples(), None, "labels"),
        ("top1", {"y": Y}, samples([0, 1, 4]), None, "4 classes"),
        ("top1", {"y": np.zeros((3, 4, 7))}, samples([0, 1, 2]), None, "[N, C]"),
        ("agreement", {"y": Y}, samples(), None, "original"),
        ("cosine", {"y": Y}, samples(), {"y": Y[:, :2]}, "shape"),
        ("mse", {"y": Y}, samples(), {"z": Y}, "none of the outputs"),
    ):
        with pytest.raises(DataError) as caught:
            METRICS[metric].value(outputs, s, reference)
        assert word in str(caught.value)


def test_the_default_follows_the_data() -> None:
    assert resolve(None, samples([0, 1, 2]), SCORES).name == "top1"
    assert resolve(None, samples(), SCORES).name == "agreement"
    assert resolve(None, samples([0, 1, 2]), VECTOR).name == "cosine"
    assert resolve(None, samples([0.5, 1, 2]), SCORES).name == "agreement"
    with pytest.raises(ConfigError, match="'cosine'"):
        resolve("cosin", samples(), SCORES)
    with pytest.raises(DataError, match="needs labels"):
        resolve("top1", samples(), SCORES)


def test_points() -> None:
    assert METRICS["top1"].points_lost(0.93, 0.925) == pytest.approx(0.5)
    assert METRICS["cosine"].points_lost(1.0, 0.99) == pytest.approx(1.0)
    assert METRICS["mse"].points_lost(0.1, 0.3) == pytest.approx(0.2)
    assert METRICS["kl"].points_lost(0.3, 0.1) == pytest.approx(-0.2)


def test_metrics_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_metric")
    monkeypatch.setitem(__import__("sys").modules, "my_metric", module)

    def length(outputs: dict[str, Any], s: Samples) -> Any:
        return [1.0, 0.0, 0.5]

    def error(outputs: dict[str, Any], s: Samples) -> float:
        return float(outputs["y"].sum()) + len(s)

    error.higher_is_better = False  # type: ignore[attr-defined]
    error.unit_points = 1  # type: ignore[attr-defined]
    module.length, module.error = length, error  # type: ignore[attr-defined]
    module.bad = lambda outputs, s: 1 / 0  # type: ignore[attr-defined]
    module.wrong = lambda outputs, s: np.zeros((2, 2))  # type: ignore[attr-defined]
    module.nan = lambda outputs, s: float("nan")  # type: ignore[attr-defined]
    found = resolve("my_metric:length", samples(), SCORES)
    assert found.per_sample({"y": Y}, samples()).tolist() == [1, 0, 0.5]  # type: ignore[union-attr]
    assert found.value({"y": Y}, samples()) == 0.5
    assert found.points_lost(0.5, 0.49) == pytest.approx(1)
    found = resolve(error, samples(), SCORES)
    assert found.per_sample({"y": Y}, samples()) is None
    assert found.value({"y": Y}, samples()) == Y.sum() + 3
    assert found.points_lost(1, 3) == 2
    for name in ("bad", "wrong", "nan"):
        with pytest.raises(DataError, match=f"my_metric:{name}"):
            resolve(f"my_metric:{name}", samples(), SCORES).value({"y": Y}, samples())
    with pytest.raises(ConfigError, match="my_metric"):
        resolve("my_metric:none", samples(), SCORES)


def test_wilson_matches_published_values() -> None:
    """Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29, Wilson's score method."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        scores = np.r_[np.ones(hits), np.zeros(n - hits)]
        assert interval(scores, proportion=True) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_covers_the_normal_interval() -> None:
    scores = np.random.default_rng(0).normal(3, 2, 1000)
    low, high = interval(scores, seed=1)
    half = 1.96 * scores.std() / 1000**0.5
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)
    assert interval(scores, seed=1) == (low, high)
    assert interval(np.array([2.0])) == (2, 2)
    assert metrics.interval(np.array([1.0, np.inf])) == (1, np.inf)
