"""Criteria on numbers: each finds what it should, on models where that is known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import tiny
from models import mlp, residual_cnn, transformer_encoder

from condensec.data import Samples
from condensec.errors import ConfigError
from condensec.fidelity import output_error
from condensec.healing.gradients import probes
from condensec.passes import criteria
from condensec.passes.criteria import GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.gradients import unit_gradients
from condensec.passes.groups import Analysis, analyze
from condensec.passes.sampling import run
from condensec.passes.select import unit_order
from condensec.passes.statistics import group_sites, moments, weights
from condensec.passes.supergraph import build
from condensec.runner import Session

BY_WEIGHTS = ("magnitude", "l2", "lamp", "fpgm", "bn-scale")
BY_DATA = ("activation", "fluctuation", "thinet", "obs")
BY_GRADIENT = ("taylor", "fisher")
ALIVE, DEAD = 5, 3


def two_layers(producer: np.ndarray, consumer: np.ndarray, relu: bool = True) -> Analysis:
    """``y = act(x @ producer) @ consumer``; one group, the middle."""
    act = "h = Relu(a)" if relu else "h = Identity(a)"
    model = tiny(
        f"a = MatMul(x, p)\n {act}\n y = MatMul(h, c)",
        x=["N", producer.shape[0]],
        weights={"p": producer.astype(np.float32), "c": consumer.astype(np.float32)},
    )
    return analyze(ir.from_proto(model))


def evidence_of(analysis: Analysis, count: int = 64, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    inputs = {}
    for value in analysis.model.graph.inputs:
        shape = (count, *analysis.world.inputs[value.name][1:])
        if value.dtype == ir.DataType.FLOAT:
            inputs[value.name] = rng.normal(size=shape).astype(np.float32)
        else:
            inputs[value.name] = rng.integers(0, 8, shape).astype(np.int64)
    return Evidence(analysis, Samples(inputs=inputs))


def scores(name: str, analysis: Analysis, evidence: Evidence | None = None, group: int = 0) -> np.ndarray:
    return criteria.get(name)(GroupView(analysis, analysis.groups[group], {}, 0, evidence))


def with_dead_units() -> Analysis:
    rng = np.random.default_rng(1)
    p, c = rng.normal(size=(4, ALIVE + DEAD)), rng.normal(size=(ALIVE + DEAD, 3))
    p[:, ALIVE:] *= 1e-3
    c[ALIVE:] *= 1e-3
    return two_layers(p, c)


@pytest.mark.parametrize("name", [n for n in (*BY_WEIGHTS, *BY_DATA, *BY_GRADIENT) if n != "fpgm"])
def test_units_that_do_nothing_go_first(name: str) -> None:
    analysis = with_dead_units()
    found = scores(name, analysis, evidence_of(analysis))
    assert set(np.argsort(found)[:DEAD]) == {ALIVE, ALIVE + 1, ALIVE + 2}
    drawn = scores("random", analysis)
    assert set(np.argsort(drawn)[:DEAD]) != {ALIVE, ALIVE + 1, ALIVE + 2}


def test_lamp_is_a_share_of_what_is_at_least_as_large() -> None:
    analysis = two_layers(np.diag([3.0, 1.0, 2.0]), np.diag([3.0, 1.0, 2.0]))
    share = np.array([1.0, 1 / 14, 4 / 13])
    np.testing.assert_allclose(scores("lamp", analysis), 2 * share / share.mean(), rtol=1e-6)


def test_fpgm_drops_what_lies_in_the_middle() -> None:
    line = np.array([[-2.0, -1.0, 0.0, 1.0, 2.5]])
    found = scores("fpgm", two_layers(np.ones((2, 5)) * line, np.tile(line.T, (1, 2))))
    assert np.argmin(found) == 2
    distance = np.abs(line[0][:, None] - line[0][None, :]).sum(axis=1)
    np.testing.assert_allclose(found, 2 * distance / distance.mean(), rtol=1e-6)


def test_bn_scale_reads_gammas_and_falls_back_to_magnitude_without_any() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    differs = 0
    for number, group in enumerate(analysis.groups):
        gammas = [a.tensor for a in group.axes if a.tensor.endswith(".scale")]
        if not gammas:
            continue
        values = [np.abs(analysis.model.graph.initializers[g].const_value.numpy()) for g in gammas]  # type: ignore[union-attr]
        expected = sum(v / v.mean() for v in values)
        np.testing.assert_allclose(scores("bn-scale", analysis, group=number), expected, rtol=1e-5)
        differs += not np.allclose(expected, scores("magnitude", analysis, group=number), rtol=1e-2)
    assert differs > 0
    plain = with_dead_units()
    np.testing.assert_array_equal(scores("bn-scale", plain), scores("magnitude", plain))


def test_activation_is_what_each_unit_adds_to_its_consumer() -> None:
    rng = np.random.default_rng(2)
    p, c = rng.normal(size=(4, 6)), rng.normal(size=(6, 3))
    analysis = two_layers(p, c)
    evidence = evidence_of(analysis, 50)
    h = np.maximum(evidence.samples.inputs["x"] @ p.astype(np.float32), 0)
    energy = np.array([((np.outer(h[:, j], c[j])) ** 2).sum() for j in range(6)])
    np.testing.assert_allclose(scores("activation", analysis, evidence), energy / energy.sum(), rtol=1e-4)
    spread = h.var(axis=0) * (c**2).sum(axis=1)
    np.testing.assert_allclose(scores("fluctuation", analysis, evidence), spread / spread.sum(), rtol=1e-4)
    assert not np.allclose(energy / energy.sum(), spread / spread.sum(), rtol=1e-2)


def test_a_constant_unit_matters_to_activation_and_not_to_fluctuation() -> None:
    rng = np.random.default_rng(3)
    model = tiny(
        "a = MatMul(x, p)\n b = Add(a, q)\n h = Relu(b)\n y = MatMul(h, c)",
        x=["N", 4],
        weights={
            "p": np.hstack([rng.normal(size=(4, 5)), np.zeros((4, 1))]).astype(np.float32),
            "q": np.array([0, 0, 0, 0, 0, 9], np.float32),
            "c": rng.normal(size=(6, 3)).astype(np.float32),
        },
    )
    analysis = analyze(ir.from_proto(model))
    evidence = evidence_of(analysis)
    assert np.argmax(scores("activation", analysis, evidence)) == 5
    assert np.argmin(scores("fluctuation", analysis, evidence)) == 5


def test_thinet_order_is_the_greedy_one_by_brute_force() -> None:
    rng = np.random.default_rng(4)
    p, c = rng.normal(size=(3, 7)), rng.normal(size=(7, 4))
    analysis = two_layers(p, c)
    evidence = evidence_of(analysis, 80)
    h = np.maximum(evidence.samples.inputs["x"] @ p.astype(np.float32), 0)
    gone: list[int] = []
    while len(gone) < 7:
        price = {u: ((h[:, [*gone, u]] @ c[[*gone, u]]) ** 2).sum() for u in range(7) if u not in gone}
        gone.append(min(price, key=price.__getitem__))
    assert list(np.argsort(scores("thinet", analysis, evidence))) == gone
    assert gone != list(np.argsort(scores("activation", analysis, evidence))), "correlations should matter"


def test_obs_order_is_the_greedy_one_by_least_squares() -> None:
    rng = np.random.default_rng(5)
    p, c = rng.normal(size=(8, 6)), rng.normal(size=(6, 4))
    analysis = two_layers(p, c)
    evidence = evidence_of(analysis, 200)
    h = np.maximum(evidence.samples.inputs["x"] @ p.astype(np.float32), 0).astype(np.float64)
    h -= h.mean(axis=0)
    y, left, gone = h @ c, list(range(6)), []
    while left:
        price = {}
        for u in left:
            rest = h[:, [v for v in left if v != u]]
            fitted = rest @ np.linalg.lstsq(rest, y, rcond=None)[0] if rest.shape[1] else 0.0
            price[u] = ((y - fitted) ** 2).sum()
        gone.append(min(price, key=price.__getitem__))
        left.remove(gone[-1])
    assert list(np.argsort(scores("obs", analysis, evidence))) == gone


def test_obs_takes_one_of_two_equal_units_and_then_holds_on_to_the_other() -> None:
    rng = np.random.default_rng(6)
    p, c = rng.normal(size=(8, 6)), rng.normal(size=(6, 4))
    p[:, 1], c[:2] = p[:, 0], 3 * c[:2]  # the strongest unit, twice
    analysis = two_layers(p, c, relu=False)
    evidence = evidence_of(analysis, 200)
    order = list(np.argsort(scores("obs", analysis, evidence)))
    assert order[0] in (0, 1)
    assert order[-1] in (0, 1)
    assert order[0] != order[-1]
    assert set(np.argsort(scores("activation", analysis, evidence))[-2:]) == {0, 1}


def test_mask_gradients_are_finite_differences_of_the_probe() -> None:
    analysis = analyze(ir.from_proto(transformer_encoder()))  # smooth: rectifiers have kinks
    evidence = evidence_of(analysis, 3)
    graph = build(analysis)
    session = Session(graph.model, optimize=False)
    whole = graph.masks(analysis.kept({}))
    reference = run(session, evidence.samples, whole)
    name = next(iter(reference))
    probe = probes({"p": name}, reference, 3, evidence.seed)["p"]
    step, found, numeric = 0.1, [], []  # smaller ones drown in rounding
    for group in analysis.groups:
        gradients = unit_gradients(evidence, group)
        for unit in (0, group.size - 1):
            others = graph.masks(analysis.kept({group.id: [u for u in range(group.size) if u != unit]}))
            up, down = (
                run(
                    session,
                    evidence.samples,
                    {k: m + np.float32(s) * (1 - others[k]) for k, m in whole.items()},
                )
                for s in (step, -step)
            )
            found.append(gradients[:, unit])
            numeric.append(((up[name] - down[name]) * probe).sum(axis=1) / (2 * step))
    scale = float(np.abs(numeric).max())
    assert scale > 0.05, "all gradients were zero: the comparison would prove nothing"
    np.testing.assert_allclose(found, numeric, atol=0.01 * scale)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, numeric[::-1], atol=0.01 * scale)


def test_fisher_is_the_error_of_a_linear_model() -> None:
    """Without a rectifier the expansion is exact: E[(dL/dm)^2] is what a unit's removal costs."""
    rng = np.random.default_rng(7)
    p, c = rng.normal(size=(4, 6)), rng.normal(size=(6, 2))
    analysis = two_layers(p, c, relu=False)
    evidence = evidence_of(analysis, 256)
    h = evidence.samples.inputs["x"] @ p
    cost = (h**2).mean(axis=0) * (c**2).sum(axis=1)
    found = scores("fisher", analysis, evidence)
    assert np.corrcoef(found, cost)[0, 1] > 0.97  # probes are random: not 1
    assert np.corrcoef(scores("random", analysis), cost)[0, 1] < 0.9


@pytest.mark.parametrize("model", [mlp, residual_cnn, transformer_encoder], ids=lambda m: m.__name__)
def test_every_criterion_scores_every_group_and_does_so_again(model: object) -> None:
    analysis = analyze(ir.from_proto(model()))  # type: ignore[operator]
    evidence = evidence_of(analysis, 16)
    again = evidence_of(analysis, 16)
    for name in (*BY_WEIGHTS, *BY_DATA):
        order = unit_order(analysis, criteria.get(name), evidence=evidence)
        repeated = unit_order(analysis, criteria.get(name), evidence=again)
        for group in analysis.groups:
            assert sorted(order[group.id]) == list(range(group.size))
            np.testing.assert_array_equal(order[group.id], repeated[group.id])


def test_consumer_weights_and_moments_give_the_energy_of_the_consumers_terms() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    evidence = evidence_of(analysis, 4)
    sites = [s for g in analysis.groups for s in group_sites(evidence, g)]
    assert {s.cost.node.op_type for s in sites} >= {"Conv"}
    for site in sites:
        found = weights(evidence, site)
        weight = site.cost.node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        assert found.size == weight.size
        assert len(found) == site.term.size == len(moments(evidence)[site.key].mean)
        np.testing.assert_allclose((found**2).sum(), (weight**2).sum(), rtol=1e-5)


def test_auto_takes_what_hurts_least_and_says_so() -> None:
    rng = np.random.default_rng(8)
    # weights lie: large ones meet small activations
    p, c = rng.normal(size=(8, 16)), rng.normal(size=(16, 4))
    p, c = p * np.geomspace(1e-2, 1, 16), c * np.geomspace(100, 1, 16)[::-1, None] ** 0.1
    analysis = two_layers(p, c)
    evidence = evidence_of(analysis)
    order = unit_order(analysis, criteria.get("auto"), evidence=evidence)
    note = next(n for n in evidence.notes if "was chosen" in n)
    chosen = note.split("'")[1]
    graph = build(analysis)
    session = Session(graph.model)
    reference = run(session, evidence.samples, graph.masks(analysis.kept({})))

    def error(name: str) -> float:
        units = unit_order(analysis, criteria.get(name), evidence=evidence)["g0"]
        errors = [
            output_error(
                reference, run(session, evidence.samples, graph.masks(analysis.kept({"g0": units[:n]})))
            )
            for n in (8, 12)
        ]
        return float(np.prod(errors))

    np.testing.assert_array_equal(
        order["g0"], unit_order(analysis, criteria.get(chosen), evidence=evidence)["g0"]
    )
    tried = [n for n in criteria.names() if n not in ("auto", "random") and f"{n} " in note]
    assert len(tried) > 6
    assert error(chosen) <= min(map(error, tried)) * 1.001
    assert error(chosen) < error("random")


def test_criteria_that_look_at_data_say_that_there_is_none() -> None:
    analysis = with_dead_units()
    for name in (*BY_DATA, *BY_GRADIENT, "auto"):
        assert "data" in criteria.needs(name)
        with pytest.raises(ConfigError, match="activations"):
            scores(name, analysis)
    assert all(not criteria.needs(name) for name in BY_WEIGHTS)


def test_obs_on_an_axis_too_wide_for_a_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit alone: mean square times the consumer's weights, without an inverse."""
    analysis = with_dead_units()
    evidence = evidence_of(analysis)
    exact = scores("obs", analysis, evidence)
    monkeypatch.setattr("condensec.passes.criteria.obs.WIDEST", 1)
    alone = scores("obs", analysis, evidence)
    (site,) = group_sites(evidence, analysis.groups[0])
    price = moments(evidence)[site.key].square * (weights(evidence, site).astype(np.float64) ** 2).sum(axis=1)
    assert list(np.argsort(alone)) == list(np.argsort(price))
    assert list(np.argsort(alone)) != list(np.argsort(exact))
