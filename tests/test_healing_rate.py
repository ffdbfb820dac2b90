"""The step size is found by trying, validation keeps to its share, and the same run repeats itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from healing_tools import Setting, noisy

from condensec.healing.worker import probe
from condensec.healing.worker.optimizer import Flat, Optimizer, Settings


def test_the_best_trial_wins_and_longer_runs_take_longer_steps() -> None:
    trials = [probe.Trial(0.002, 0.9), probe.Trial(0.008, 0.7), probe.Trial(0.032, math.inf)]
    assert probe.choose(trials, before=0.7, steps=24, total=24) == 0.008
    grown = [probe.choose(trials, 0.7, 24, total) for total in (24, 240, 2400, 1e9)]
    assert grown == sorted(grown)
    assert grown[1] == pytest.approx(0.008 * 10**probe.GROWTH)
    assert grown[-1] == probe.LARGEST
    harm = [probe.Trial(0.0007, 0.9), probe.Trial(0.002, 1.1)]
    assert probe.choose(harm, 0.5, 24, 1e9) == pytest.approx(0.0007 * probe.MOST_GROWTH)
    assert probe.choose([probe.Trial(0.05, 0.1)], 0.1, 24, 1e9) == 0.05  # a rate that was tried isn't cut


def test_no_rate_grows_where_much_was_broken() -> None:
    trials = [probe.Trial(0.002, 0.9), probe.Trial(0.008, 0.7)]
    rates = [probe.choose(trials, before, 24, 2400) for before in (0.7, 0.8, 1.0, 1.4, 7.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[1] > rates[2] > rates[3] == rates[4] == 0.008


def test_short_runs_are_not_tried_and_trials_stay_a_part_of_long_ones() -> None:
    assert probe.plan(70) == ((), 0)
    for total in (72, 144, 384, 1000, 1e6):
        rates, steps = probe.plan(total)
        assert (2 if total < 144 else 3) <= len(rates) <= 5
        assert len(rates) * steps <= 0.34 * total


def _quadratic(kind: str, lr: float, steps: int = 150) -> float:
    """Distance to the minimum of a badly scaled quadratic bowl after some steps, over that at the start."""
    rng = np.random.default_rng(0)
    weights = Flat({"w": rng.standard_normal((8, 8)), "b": rng.standard_normal(8)})
    goal = weights.buffer + 0.5 * rng.standard_normal(72).astype(np.float32)
    slope = rng.uniform(1e-3, 1e-1, 72).astype(np.float32)
    gradients = weights.like()
    optimizer = Optimizer(weights, gradients, Settings(kind=kind, lr=lr), 0.9)
    start = float(np.abs(weights.buffer - goal).sum())
    for i in range(steps):
        gradients.buffer[:] = slope * (weights.buffer - goal)
        optimizer.step(i / steps, optimizer.gradient_norm())
    return float(np.abs(weights.buffer - goal).sum()) / start


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_both_optimizers_take_steps_of_the_same_size(kind: str) -> None:
    """One grid of rates serves both: at the same rate both come nearer, and none of them stands still."""
    assert _quadratic(kind, 0.02) < 0.6
    assert _quadratic(kind, 1e-6) > 0.99  # the control: it is the rate that moves them


def test_a_diverged_run_restarts_from_its_weights_alone() -> None:
    weights = Flat({"w": np.ones((2, 2))})
    gradients = weights.like()
    optimizer = Optimizer(weights, gradients, Settings(), 0.9)
    gradients.buffer[:] = 1.0
    optimizer.step(0.5, 2.0)
    assert not np.array_equal(weights.buffer, np.ones(4))
    optimizer.restart(np.ones(4, np.float32))
    assert optimizer.step_count == 0
    assert all(not optimizer.state()[name].any() for name in ("first", "second"))
    assert np.array_equal(optimizer.average, np.ones(4))


@pytest.mark.parametrize(
    "build",
    [models.depthwise_se_cnn, models.transformer_encoder, models.residual_cnn],
    ids=lambda f: f.__name__,
)
def test_the_found_rate_is_as_good_as_the_fixed_one(tmp_path: Path, build: Any) -> None:
    teacher = build()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    said: list[str] = []
    found = setting.heal(epochs=12, batch=32, progress=lambda share, text: said.append(text))
    fixed = setting.heal(epochs=12, batch=32, lr=0.008)
    assert any("by short runs" in text for text in said)
    assert found.after < 1.03 * fixed.after < fixed.before


def test_epochs_give_the_same_weights_every_time(tmp_path: Path) -> None:
    teacher = models.transformer_encoder()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    one, two = (setting.heal(epochs=10, batch=32) for _ in range(2))
    assert one.weights
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_tiny_epochs_are_not_validated_one_by_one(tmp_path: Path) -> None:
    """Two steps an epoch, a validation as large as three of them: not every epoch has one, the last has."""
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=64)
    result = setting.heal(epochs=200, batch=32)
    between = {round(b.epoch - a.epoch, 6) for a, b in itertools.pairwise(result.loss_curve)}
    assert min(between) >= 5
    assert result.loss_curve[-1].epoch == 200
    assert len(result.loss_curve) >= 5


def test_a_time_budget_is_kept_within_a_twentieth(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=64)
    result = setting.heal(minutes=0.1, batch=16)
    assert result.seconds == pytest.approx(6.0, rel=0.05)
    assert len(result.loss_curve) <= 14


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, teacher, count=64)
    patient = setting.heal(epochs=400, batch=32, lr=0.05, patience=3)
    losses = [r.validation_loss for r in patient.loss_curve]
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert patient.steps < 400 * 2
    assert patient.after == min(losses)
    forever = setting.heal(epochs=60, batch=32, lr=0.05)
    assert forever.loss_curve[-1].epoch == 60  # the control: without patience it goes on


def test_sgd_and_averaging_heal_too(tmp_path: Path) -> None:
    teacher = models.residual_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    variants: dict[str, dict[str, Any]] = {
        "sgd": {"optimizer": "sgd"},
        "raw": {"average": 0.0},
        "slow": {"average": 0.9999},
    }
    results = {name: setting.heal(epochs=4, batch=32, lr=0.008, **more) for name, more in variants.items()}
    assert all(r.after < 0.9 * r.before for r in results.values())
    raw, slow = (dict(results[k].weights) for k in ("raw", "slow"))
    assert any(not np.array_equal(raw[name], slow[name]) for name in raw)
