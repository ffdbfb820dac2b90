"""Which round's weights are given back where the metric can't tell some of them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from condensec.healing.choice import Choice, Score

RIGHT = np.r_[np.ones(90), np.zeros(10)]
ONE_LESS = np.r_[np.zeros(3), np.ones(89), np.zeros(8)]  # three others wrong, two others right


def chosen(rounds: Sequence[Score], choice: Choice | None = None) -> Score:
    """What is kept of some rounds."""
    choice = choice or Choice()
    for one in rounds:
        choice.take(one)
    assert choice.best is not None
    return choice.best


def trained(seed: int, count: int = 600) -> tuple[list[Score], list[float]]:
    """Twelve rounds of a training that gets better by a quarter of a point each, and how good they are.

    The loss goes by the truth with little noise; the metric is the share of right answers.
    """
    rng = np.random.default_rng(seed)
    hard, truths, rounds = rng.random(count), [], []
    for i in range(12):
        truth = 0.88 + 0.0025 * i
        right = (hard + 0.04 * rng.standard_normal(count) < truth).astype(np.float64)
        loss = 1 - truth + 0.001 * rng.standard_normal()
        truths.append(truth)
        rounds.append(Score(i, float(right.mean()), float(loss), right))
    return rounds, truths


def test_the_trained_round_is_taken_and_not_the_lucky_one() -> None:
    """Over two hundred trainings; the control takes the highest metric."""
    ours, highest = [], []
    for seed in range(200):
        rounds, truths = trained(seed)
        ours.append(truths[chosen(rounds).number])
        highest.append(truths[max(rounds, key=lambda r: r.value).number])
    assert np.mean(ours) > np.mean(highest) + 0.002
    assert np.mean(ours) > 0.88 + 0.0025 * 10


def test_a_metric_that_is_behind_by_more_than_chance_counts_before_the_loss() -> None:
    worse = np.r_[np.ones(80), np.zeros(20)]
    rounds = [
        Score(0, 0.5, 3.0, np.tile([0.0, 1.0], 50)),
        Score(1, 0.9, 2.0, RIGHT),
        Score(2, 0.8, 1.0, worse),
    ]
    assert rounds[2].is_behind(rounds[1])
    assert chosen(rounds).number == 1
    other = np.roll(RIGHT, 10)  # as many right, others: nothing tells them apart but the loss
    assert chosen([*rounds[:2], Score(2, 0.9, 1.0, other)]).number == 2
    assert chosen([*rounds[:2], Score(2, 0.89, 1.0, ONE_LESS)]).number == 2


def test_what_the_guard_needs_is_not_given_up_for_what_it_refuses() -> None:
    rounds = [Score(1, 0.9, 2.0, RIGHT), Score(2, 0.89, 1.0, ONE_LESS)]
    assert chosen(rounds).number == 2
    assert chosen(rounds, Choice(lambda value: value >= 0.895)).number == 1
    assert chosen(rounds, Choice(lambda value: value >= 0.95)).number == 2  # neither is: no matter
    lower = [Score(r.number, -1 + r.value, r.loss, r.samples) for r in rounds]  # a metric that is to be low
    assert chosen(lower, Choice(lambda value: value <= 0.105, -1.0)).number == 1
    assert chosen(lower, Choice(lambda value: value <= 0.2, -1.0)).number == 2


def test_what_training_gives_back_is_never_worse_than_what_it_was_given() -> None:
    start = Score(0, 0.9, 2.0, RIGHT)
    assert chosen([start, Score(1, 0.89, 1.0, ONE_LESS)]).number == 0
    assert chosen([start, Score(1, -math.inf, 1.0)]).number == 0


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_without_scores_of_samples_the_metric_decides_and_the_loss_where_it_is_the_same(
    seed: int, count: int
) -> None:
    found = np.random.default_rng(seed).integers(0, 5, (count, 2))
    rounds = [Score(i, float(value), float(loss)) for i, (value, loss) in enumerate(found)]
    best = chosen(rounds)
    assert (best.value, -best.loss) == max((r.value, -r.loss) for r in rounds)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(5, 40))
def test_the_choice_is_of_the_rounds_that_may_be_and_has_the_lowest_loss_when_it_was_made(
    seed: int, count: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    rounds = []
    for i in range(count):
        right = (rng.random(size) < 0.7).astype(np.float64)
        rounds.append(Score(i, float(right.mean()), float(rng.random()), right))
    choice = Choice()
    best = chosen(rounds, choice)
    assert choice.peak is not None
    assert choice.peak.value == max(r.value for r in rounds)
    assert best.value >= rounds[0].value
    assert not best.is_behind(choice.peak)
    later = [r for r in rounds if r.number > best.number and r.value >= rounds[0].value]
    assert all(r.loss >= best.loss or r.is_behind(choice.peak) for r in later)
