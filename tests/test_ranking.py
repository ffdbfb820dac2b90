"""Curves out of scores: what a cut costs where nothing was measured."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from models import residual_cnn, transformer_encoder

from condensec.errors import ConfigError
from condensec.passes.groups import Analysis, analyze
from condensec.passes.ranking import ranked, shape_of
from condensec.passes.select import Goal, choose


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(ir.from_proto(residual_cnn()))


def drawn(analysis: Analysis, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.id: rng.random(g.size) * 10**i for i, g in enumerate(analysis.groups)}


def test_a_cut_costs_the_scores_of_the_units_that_go(analysis: Analysis) -> None:
    scores = drawn(analysis)
    curves = ranked(analysis, scores, "global").curves
    for group in analysis.groups:
        lowest = np.sort(scores[group.id])
        for gone in (0, 1, group.size // 2, group.size - 1):
            assert curves[group.id].at(group.size - gone) == pytest.approx(lowest[:gone].sum())


def test_local_curves_do_not_know_the_scale_of_a_group(analysis: Analysis) -> None:
    scores = drawn(analysis)
    scaled = {name: 7.0**i * s for i, (name, s) in enumerate(scores.items())}
    for how, same in (("local", True), ("global", False)):
        a, b = ranked(analysis, scores, how).curves, ranked(analysis, scaled, how).curves
        assert all(np.allclose(a[n].loss, b[n].loss) for n in a) is same


def test_isomorphic_curves_compare_groups_of_one_shape_and_level_the_others() -> None:
    analysis = analyze(ir.from_proto(transformer_encoder(layers=2)))
    shapes = {g.id: shape_of(analysis, g) for g in analysis.groups}
    neurons = [g.id for g in analysis.groups if g.kind == "neuron"]
    assert shapes[neurons[0]] == shapes[neurons[1]]
    assert len(set(shapes.values())) > 1
    scores = {g.id: np.ones(g.size) for g in analysis.groups}
    scores[neurons[0]] = np.full_like(scores[neurons[0]], 3.0)
    found = ranked(analysis, scores, "isomorphic").curves
    assert found[neurons[0]].loss[1] == pytest.approx(1.5)
    assert found[neurons[1]].loss[1] == pytest.approx(0.5)
    other = next(n for n, s in shapes.items() if s != shapes[neurons[0]])
    assert found[other].loss[1] == pytest.approx(1.0)


def test_the_choice_follows_the_ranking(analysis: Analysis) -> None:
    cheap = analysis.groups[1].id
    scores = {g.id: np.full(g.size, 1e-6 if g.id == cheap else 1.0) for g in analysis.groups}
    grid = {g.id: list(range(g.size, 0, -1)) for g in analysis.groups}
    goal = Goal("macs", lambda node: float(node.macs), 0.9 * analysis.macs())
    left = {
        how: choose(analysis, ranked(analysis, scores, how), [goal], grid).counts[cheap]
        for how in ("global", "local")
    }
    assert left["global"] < left["local"]


def test_other_rankings_are_refused(analysis: Analysis) -> None:
    with pytest.raises(ConfigError, match="no ranking is called 'upward'"):
        ranked(analysis, drawn(analysis), "upward")
