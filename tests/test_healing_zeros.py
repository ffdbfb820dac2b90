"""Zeros that come while a network trains: how many, which, and that only whole results count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from healing_tools import Setting

from condensec.healing import Thin
from condensec.healing.worker.optimizer import Flat, Optimizer, Settings
from condensec.healing.worker.zeros import LEVELS, UNTIL, Zeros


def flat() -> Flat:
    rng = np.random.default_rng(0)
    return Flat({"a": rng.standard_normal((8, 25)), "b": rng.standard_normal(10), "c": np.ones(4)})


def mask(zeros: Zeros, share: float) -> np.ndarray:
    found = zeros.reach(share)
    return np.zeros(214, np.bool_) if found is None else found


def test_the_share_of_zeros_rises_as_a_cubic_and_what_is_zero_stays() -> None:
    weights = flat()
    zeros = Zeros(weights, counts={"a": 160, "c": 1})
    before = np.zeros(weights.buffer.size, np.bool_)
    counts = []
    for share in (0.0, 0.1, 0.25, 0.4, 0.5, 0.9):
        now = mask(zeros, share)
        assert not np.any(before & ~now)
        weights.buffer[now] = 0.0
        counts.append(int(now[:200].sum()))
        before = now
    wanted = [
        160 * (1 - (1 - min(1.0, int(LEVELS * s / UNTIL + 1e-9) / LEVELS)) ** 3) for s in (0.1, 0.25, 0.4)
    ]
    assert counts[0] == 0
    assert counts[1:4] == [round(x) for x in wanted]
    assert counts[4:] == [160, 160]
    assert zeros.complete
    assert not before[200:210].any(), "what isn't asked for keeps its weights"
    assert before[210:].sum() == 1


def test_the_cheapest_go_and_prices_count() -> None:
    weights = flat()
    size = np.abs(weights.views["a"]).ravel()
    plain = mask(Zeros(weights, counts={"a": 50}), 1.0)[:200]
    assert size[plain].max() <= size[~plain].min()
    prices = np.random.default_rng(1).uniform(0.1, 10, (8, 25))
    dear = mask(Zeros(weights, counts={"a": 50}, prices={"a": prices}), 1.0)[:200]
    cost = size**2 * prices.ravel()
    assert cost[dear].max() <= cost[~dear].min()
    assert not np.array_equal(plain, dear)


def test_zeros_that_stay_are_those_there_now_in_the_tensors_named() -> None:
    weights = flat()
    weights.buffer[::2] = 0.0
    zeros = Zeros(weights, ["b"])
    assert zeros.complete
    assert not zeros.is_due(1.0)
    assert mask(zeros, 1.0).nonzero()[0].tolist() == list(range(200, 210, 2))
    assert Zeros(weights).reach(1.0) is None


def test_fixed_zeros_have_neither_moments_nor_an_average() -> None:
    weights = flat()
    gradients = weights.like()
    optimizer = Optimizer(weights, gradients, Settings(lr=0.01), 0.9)
    gradients.buffer[:] = 1.0
    optimizer.step(0.5, 1.0)
    zeros = mask(Zeros(weights, counts={"a": 100}), 1.0)
    optimizer.fix(zeros)
    for _ in range(3):
        gradients.buffer[:] = 1.0
        optimizer.step(0.5, optimizer.gradient_norm())
    for buffer in (weights.buffer, optimizer.average, optimizer.first, optimizer.second):
        assert not buffer[zeros].any()
        assert not np.signbit(weights.buffer[zeros]).any()
        assert buffer[~zeros].any()


@pytest.mark.parametrize("budget", [{"epochs": 8}, {"minutes": 0.2}], ids=["epochs", "minutes"])
def test_what_comes_back_has_all_the_zeros(tmp_path: Path, budget: dict[str, float]) -> None:
    teacher = models.residual_cnn()
    setting = Setting(tmp_path, teacher, teacher)  # nothing with zeros can be better than that
    sizes = {t.name: int(np.prod(t.dims)) for t in teacher.graph.initializer if len(t.dims) == 4}
    counts = {name: int(0.8 * size) for name, size in sizes.items()}
    options: dict[str, Any] = {"batch": 16, "lr": 0.01, "losses": {"kl": 1.0}, **budget}
    result = setting.heal(thin=Thin(counts), **options)
    for name, count in counts.items():
        assert np.count_nonzero(result.weights[name] == 0) == count
    others = [name for name in result.weights if name not in counts]
    assert all(np.count_nonzero(result.weights[name] == 0) == 0 for name in others)
    early = [r for r in result.loss_curve if r.epoch == 0]
    assert early, "the network without zeros was judged"
    assert result.after > early[0].validation_loss, "it isn't what came back, although it was better"
    once = setting.heal(**options)
    assert once.after < result.after, "the control: without zeros it stays as good as it was"
