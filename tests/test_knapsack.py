"""The knapsack and what is built on it, against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import concat_net, residual_cnn, transformer_encoder

from condensec.passes.allocate import allocate, weighted
from condensec.passes.groups import Analysis, analyze
from condensec.passes.knapsack import knapsack
from condensec.passes.select import Goal, NodeShape, Widths, choose, objective
from condensec.passes.sensitivity import Curve, LayerLoss, Sensitivity
from condensec.passes.widths import items_of

ITEM = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=5)


def best_by_force(losses: list[list[float]], costs: list[list[float]], capacity: float) -> float:
    """Least loss of all combinations that fit; inf where none does."""
    found = np.inf
    for levels in product(*(range(len(one)) for one in losses)):
        if sum(c[k] for c, k in zip(costs, levels, strict=True)) <= capacity:
            found = min(found, sum(x[k] for x, k in zip(losses, levels, strict=True)))
    return found


@given(items=st.lists(ITEM, min_size=1, max_size=5), capacity=st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_whole_costs_are_solved_exactly(items: list[list[tuple[int, int]]], capacity: int) -> None:
    losses = [np.array([a for a, _ in item], float) for item in items]
    costs = [np.array([b for _, b in item], float) for item in items]
    expected = best_by_force([x.tolist() for x in losses], [c.tolist() for c in costs], capacity)
    found = knapsack(losses, costs, capacity, buckets=capacity)
    if found is None:
        assert expected == np.inf
        return
    assert sum(c[k] for c, k in zip(costs, found, strict=True)) <= capacity
    assert sum(x[k] for x, k in zip(losses, found, strict=True)) == expected


@given(items=st.lists(ITEM, min_size=1, max_size=5), capacity=st.floats(0.5, 80), scale=st.floats(0.1, 7))
@settings(max_examples=200, deadline=None)
def test_any_costs_fit_and_lose_no_more_than_a_slightly_smaller_knapsack(
    items: list[list[tuple[int, int]]], capacity: float, scale: float
) -> None:
    losses = [np.array([a for a, _ in item], float) for item in items]
    costs = [scale * np.array([b for _, b in item], float) for item in items]
    buckets = 500
    found = knapsack(losses, costs, capacity, buckets)
    smaller = capacity * (1 - (len(items) + 1) / buckets)
    bound = best_by_force([x.tolist() for x in losses], [c.tolist() for c in costs], smaller)
    if found is None:
        assert bound == np.inf
        return
    assert sum(c[k] for c, k in zip(costs, found, strict=True)) <= capacity * (1 + 1e-9)
    assert sum(x[k] for x, k in zip(losses, found, strict=True)) <= bound


def test_a_knapsack_that_counts_losses_backwards_would_be_noticed() -> None:
    losses, costs = [np.array([0.0, 5.0]), np.array([0.0, 1.0])], [np.array([3.0, 1.0])] * 2
    assert knapsack(losses, costs, 4.0, buckets=4) == [0, 1]
    assert knapsack([-x for x in losses], costs, 4.0, buckets=4) == [1, 1]
    assert knapsack(losses, costs, 1.9) is None
    assert knapsack([np.zeros(2)], [np.array([0.0, 1.0])], 0.0) == [0]


def macs(node: NodeShape) -> float:
    return float(node.macs)


def parameters(node: NodeShape) -> float:
    return float(node.weights)


def random_losses(analysis: Analysis, seed: int) -> Sensitivity:
    """Convex curves of random height, and random losses of layers."""
    rng = np.random.default_rng(seed)
    curves = {}
    for g in analysis.groups:
        gone = np.arange(g.size) / g.size
        loss = np.exp(rng.normal() * 1.5) * gone ** rng.uniform(1, 3)
        curves[g.id] = Curve(tuple(range(g.size, 0, -1)), tuple(float(x) for x in loss))
    layers = {x.id: LayerLoss(float(np.exp(rng.normal()))) for x in analysis.layers}
    return Sensitivity(curves, 1, 0.0, layers)


def grid_of(analysis: Analysis, step: int = 2, layers: bool = False) -> dict[str, list[int]]:
    grid = {g.id: [g.size, *[n for n in range(g.size - 1, 0, -1) if n % step == 0]] for g in analysis.groups}
    return {**grid, **({x.id: [1, 0] for x in analysis.layers} if layers else {})}


def lost(analysis: Analysis, losses: Sensitivity, counts: dict[str, int]) -> float:
    return objective(items_of(analysis, counts), losses, Widths(analysis, []).at(counts), counts)


MODELS = [residual_cnn, concat_net, lambda: transformer_encoder(layers=2, hidden=16, heads=4, ffn=24)]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layers", [False, True])
def test_all_together_never_loses_more_than_descent(build: object, seed: int, layers: bool) -> None:
    analysis = analyze(ir.from_proto(build()))  # type: ignore[operator]
    losses, grid = random_losses(analysis, seed), grid_of(analysis, 1 + seed % 3, layers)
    dense = Widths(analysis, [Goal("", macs, 0.0), Goal("", parameters, 0.0)]).totals
    goals = [Goal("macs", macs, 0.5 * dense[0]), Goal("params", parameters, 0.6 * dense[1])][: 1 + seed % 2]
    greedy = choose(analysis, losses, goals, grid)
    found = allocate(analysis, losses, goals, grid)
    assert found.reached == greedy.reached
    if not greedy.reached:
        return
    assert lost(analysis, losses, dict(found.counts)) <= lost(analysis, losses, dict(greedy.counts)) + 1e-9
    exact = Widths(analysis, goals).at(found.counts).totals
    assert np.allclose(exact, found.totals)
    assert all(total <= g.limit for total, g in zip(exact, goals, strict=True))
    assert all(n in grid[name] for name, n in found.counts.items())


def test_it_finds_what_descent_misses_and_the_best_there_is_of_a_small_model() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    items = analysis.groups
    grid = {g.id: [g.size, g.size // 2, max(1, g.size // 4)] for g in items}
    gains, gaps = [], []
    for seed in range(20):
        losses = random_losses(analysis, seed)
        goals = [Goal("macs", macs, 0.45 * analysis.macs())]
        best = np.inf
        for levels in product(*(grid[g.id] for g in items)):
            counts = {g.id: n for g, n in zip(items, levels, strict=True)}
            if Widths(analysis, goals).at(counts).totals[0] <= goals[0].limit:
                best = min(best, lost(analysis, losses, counts))
        greedy = lost(analysis, losses, dict(choose(analysis, losses, goals, grid).counts))
        found = lost(analysis, losses, dict(allocate(analysis, losses, goals, grid).counts))
        assert found >= best - 1e-9, "better than the best there is: it doesn't keep the limit"
        gains.append(greedy / best)
        gaps.append(found / best)
    assert max(gains) > 1.05, "descent was always best: this comparison would prove nothing"
    assert np.mean(gaps) < 1.02
    assert np.mean(gaps) < np.mean(gains)


def test_a_layer_that_costs_little_goes_and_what_is_in_it_stays_whole() -> None:
    analysis = analyze(ir.from_proto(transformer_encoder(layers=2, hidden=16, heads=4, ffn=24)))
    grid = grid_of(analysis, 1, layers=True)
    free = {x.id: LayerLoss(0.0) for x in analysis.layers[:1]}
    curves = {g.id: Curve((g.size, 1), (0.0, 10.0)) for g in analysis.groups}
    losses = Sensitivity(curves, 1, 0.0, {**{x.id: LayerLoss(50.0) for x in analysis.layers}, **free})
    found = allocate(analysis, losses, [Goal("macs", macs, 0.85 * analysis.macs())], grid)
    assert [x.id for x in analysis.layers if not found.counts[x.id]] == [analysis.layers[0].id]
    inside = Widths(analysis, []).at(found.counts)
    idle = [g for g in analysis.groups if inside.idle(g)]
    assert idle
    assert all(found.counts[g.id] == g.size for g in idle)


def test_what_was_cut_stays_cut_and_factors_steer() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    losses, grid = random_losses(analysis, 0), grid_of(analysis, 1)
    goals = [Goal("macs", macs, 0.5 * analysis.macs())]
    start = {g.id: g.size // 2 for g in analysis.groups[:2]}
    found = allocate(analysis, losses, goals, grid, start)
    assert all(found.counts[name] <= n for name, n in start.items())
    spared = analysis.groups[-1].id
    steered = allocate(analysis, weighted(losses, {spared: 1e6}), goals, grid)
    assert steered.counts[spared] == analysis.group(spared).size
    assert allocate(analysis, losses, goals, grid).counts == allocate(analysis, losses, goals, grid).counts
