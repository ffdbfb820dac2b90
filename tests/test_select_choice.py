"""Criteria, sensitivity and the choice of widths, on numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from models import concat_net, grouped_cnn, mlp, residual_cnn, transformer_encoder

from condensec import verify
from condensec.data import Samples
from condensec.errors import ConfigError
from condensec.fidelity import output_error
from condensec.passes import criteria
from condensec.passes.criteria import GroupView, criterion
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import prune
from condensec.passes.sampling import affordable
from condensec.passes.select import Goal, NodeShape, Widths, carried, choose, unit_order
from condensec.passes.sensitivity import Curve, Sensitivity, measure
from condensec.passes.supergraph import build
from condensec.runner import Session


def analysis_of(build_model: object) -> Analysis:
    return analyze(ir.from_proto(build_model()))  # type: ignore[operator]


def samples_for(analysis: Analysis, count: int = 8) -> Samples:
    rng = np.random.default_rng(0)
    inputs = {}
    for value in analysis.model.graph.inputs:
        shape = (count, *analysis.world.inputs[value.name][1:])
        if value.dtype == ir.DataType.FLOAT:
            inputs[value.name] = rng.normal(size=shape).astype(np.float32)
        else:
            inputs[value.name] = rng.integers(0, 8, shape).astype(np.int64)
    return Samples(inputs=inputs)


def macs(node: NodeShape) -> float:
    return float(node.macs)


def flat_curves(analysis: Analysis, slopes: dict[str, float] | None = None) -> Sensitivity:
    """Loss falls linearly with kept units, by a slope per group."""
    curves = {
        g.id: Curve((g.size, 1), (0.0, (slopes or {}).get(g.id, 1.0) * (g.size - 1))) for g in analysis.groups
    }
    return Sensitivity(curves, 1, 0.0)


@pytest.mark.parametrize("model", [residual_cnn, concat_net, grouped_cnn, mlp])
def test_masks_of_one_keep_the_model_and_masks_of_a_cut_are_the_masked_original(model: object) -> None:
    analysis = analysis_of(model)
    graph = build(analysis)
    session = Session(graph.model)
    samples = samples_for(analysis)
    feeds = dict(samples.inputs)
    original = Session(analysis.model).run(feeds)
    whole = session.run({**feeds, **graph.masks(analysis.kept({}))})
    for name, array in original.items():
        np.testing.assert_allclose(whole[name], array, rtol=1e-5, atol=1e-6)
    differs = 0
    for group in analysis.groups:
        if not group.exact:
            continue
        kept = {group.id: list(range(0, group.size, 2))}
        plan = prune(analysis, kept).plan
        reference = Session(verify.masked(ir.from_proto(model()), plan)).run(feeds)  # type: ignore[operator]
        found = session.run({**feeds, **graph.masks(analysis.kept(kept))})
        for name, array in reference.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
            differs += not np.allclose(array, original[name], atol=1e-4)
    assert differs > 0, "no cut changed any output: the comparison would prove nothing"


def test_curves_start_at_zero_never_fall_and_see_what_matters() -> None:
    analysis = analysis_of(residual_cnn)
    order = unit_order(analysis, criteria.get("l2"))
    found = measure(analysis, order, samples_for(analysis, 32))
    for curve in found.curves.values():
        assert curve.loss[0] == 0.0
        assert list(curve.loss) == sorted(curve.loss)
        assert curve.at(curve.kept[0]) == 0.0
    assert max(c.loss[-1] for c in found.curves.values()) > 0.0


def test_a_dead_group_costs_nothing() -> None:
    proto = mlp()
    first = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    analysis = analyze(ir.from_proto(proto))
    group = next(g for g in analysis.groups if any(a.tensor == first.name for a in g.axes))
    # consumers of the group ignore it: masking any of it changes nothing
    for ref in group.axes:
        tensor = analysis.model.graph.initializers[ref.tensor]
        if ref.tensor != first.name and len(tensor.shape) == 2:
            tensor.const_value = ir.tensor(np.zeros(tensor.shape.numpy(), np.float32), name=ref.tensor)
    order = unit_order(analysis, criteria.get("l2"))
    curve = measure(analysis, order, samples_for(analysis)).curves[group.id]
    assert max(curve.loss) == 0.0


def test_units_with_zero_weights_go_first() -> None:
    analysis = analysis_of(mlp)
    group = analysis.groups[0]
    dead = 3
    for ref in group.axes:
        value = analysis.model.graph.initializers[ref.tensor]
        array = value.const_value.numpy().copy()
        np.moveaxis(array, ref.axis, 0)[dead] = 0
        value.const_value = ir.tensor(array, name=ref.tensor)
    for name in ("magnitude", "l2"):
        assert unit_order(analysis, criteria.get(name))[group.id][-1] == dead


def test_random_is_seeded() -> None:
    analysis = analysis_of(mlp)
    score = criteria.get("random")
    view = GroupView(analysis, analysis.groups[0], {}, seed=1)
    np.testing.assert_array_equal(score(view), score(view))
    other = GroupView(analysis, analysis.groups[0], {}, seed=2)
    assert not np.array_equal(score(view), score(other))


def test_unknown_and_doubled_criteria_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'magnitude'"):
        criteria.get("magnitud")
    with pytest.raises(ValueError, match="two criteria"):
        criterion("l2")(lambda view: np.zeros(1))


def test_a_choice_meets_its_goal_on_the_grid() -> None:
    analysis = analysis_of(residual_cnn)
    grid = {g.id: [g.size, *range(g.size - 2, 0, -2)] for g in analysis.groups}
    goal = Goal("macs", macs, 0.5 * analysis.macs())
    choice = choose(analysis, flat_curves(analysis), [goal], grid)
    assert choice.reached
    assert choice.totals[0] <= goal.limit
    assert all(choice.counts[g.id] in grid[g.id] for g in analysis.groups)
    units = {g.id: list(range(choice.counts[g.id])) for g in analysis.groups}
    assert analyze(prune(analysis, units).model).macs() == choice.totals[0]


def test_the_insensitive_group_is_cut_first() -> None:
    analysis = analysis_of(mlp)
    assert len(analysis.groups) >= 2
    spared = analysis.groups[0]
    grid = {g.id: list(range(g.size, 0, -1)) for g in analysis.groups}
    slopes = {g.id: 1e6 if g.id == spared.id else 1e-6 for g in analysis.groups}
    goal = Goal("macs", macs, 0.8 * analysis.macs())
    choice = choose(analysis, flat_curves(analysis, slopes), [goal], grid)
    assert choice.counts[spared.id] == spared.size
    assert any(choice.counts[g.id] < g.size for g in analysis.groups)


def test_what_cannot_be_reached_is_said_and_steps_are_bounded() -> None:
    analysis = analysis_of(mlp)
    grid = {g.id: list(range(g.size, 0, -1)) for g in analysis.groups}
    impossible = choose(analysis, flat_curves(analysis), [Goal("macs", macs, 0.0)], grid)
    assert not impossible.reached
    assert all(n == 1 for n in impossible.counts.values())
    nothing = [Goal("macs", macs, 0.0)]
    few = choose(analysis, flat_curves(analysis), nothing, grid, max_units=3)
    assert sum(g.size for g in analysis.groups) - sum(few.counts.values()) == 3
    further = choose(analysis, flat_curves(analysis), nothing, grid, few.counts, max_units=1)
    assert sum(few.counts.values()) - sum(further.counts.values()) == 1
    assert all(further.counts[k] <= few.counts[k] for k in few.counts)


def test_incremental_totals_are_the_totals() -> None:
    analysis = analysis_of(residual_cnn)
    widths = Widths(analysis, [Goal("macs", macs, 0.0)])
    assert widths.totals[0] == analysis.macs()
    for group in analysis.groups:
        before = float(widths.totals[0])
        saving = float(widths.saving(group, max(1, group.size // 2), group.size)[0])
        assert float(widths.totals[0]) == before
        widths.set(group, max(1, group.size // 2))
        assert before - float(widths.totals[0]) == pytest.approx(saving)
    assert widths.totals[0] == analysis.macs(widths.sizes)


def test_a_head_carries_its_dimensions() -> None:
    analysis = analysis_of(transformer_encoder)
    heads = [g for g in analysis.groups if g.kind == "head"]
    assert heads
    for group in heads:
        width = analysis.model.graph.initializers[group.axes[0].tensor].shape[group.axes[0].axis]
        assert carried(analysis, group) * group.size == width


def test_sample_counts_depend_on_the_model_alone() -> None:
    assert affordable(10**8, 10, 20.0) == 80
    assert affordable(10**15, 10, 20.0) == 16
    assert affordable(0, 0, 1.0) > 10**6


def test_output_error_is_relative_to_the_variance() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1000, 4)).astype(np.float32)
    assert output_error({"y": a}, {"y": a}) == 0.0
    assert output_error({"y": a}, {"y": a * 0}) == pytest.approx(1.0, rel=0.02)
    assert output_error({"y": a}, {"y": a * np.nan}) == 1e6
