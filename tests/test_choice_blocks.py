"""Whole blocks: what a budget of multiply-accumulates chooses where a chip pads channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from models import depthwise_se_cnn, residual_cnn, save, save_samples
from test_choice_aims import curves, prepared

from condensec.hardware import analytic
from condensec.hardware.nodecost import NodeCost
from condensec.hardware.target import get
from condensec.passes.widths import Goal, Widths
from condensec.stages import aims, blocks
from condensec.stages.state import Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(residual_cnn(width=24), tmp_path)
    save_samples(residual_cnn(width=24), tmp_path / "d.npz", count=400)
    return tmp_path


def test_a_part_of_a_block_costs_all_of_it() -> None:
    target = get("x86-avx512")
    dense = NodeCost("n", "Conv", 24 * 40 * 9 * 100, 24, 40, 1, 9, 100)
    padded = analytic.in_blocks(dense, target)
    assert (padded.in_channels, padded.out_channels, padded.macs) == (32, 48, 32 * 48 * 9 * 100)
    apart = analytic.in_blocks(NodeCost("n", "Conv", 20 * 9 * 100, 20, 20, 20, 9, 100), target)
    assert (apart.in_channels, apart.out_channels, apart.groups, apart.macs) == (32, 32, 32, 32 * 9 * 100)
    assert apart.kind == "depthwise"
    image = analytic.in_blocks(NodeCost("n", "Conv", 3 * 16 * 9 * 100, 3, 16, 1, 9, 100), target)
    assert (image.in_channels, image.macs) == (3, 3 * 16 * 9 * 100)
    assert analytic.in_blocks(dense, get("x86-avx2")).macs == 24 * 40 * 9 * 100
    for other in (get("mobile-cpu"), get("nvidia-t4")):
        assert analytic.in_blocks(dense, other) == dense
    product = NodeCost("n", "MatMul", 50 * 70 * 10, 50, 70, 1, 1, 10)
    assert analytic.in_blocks(product, target) == product


def test_where_macs_stand_for_time_whole_blocks_are_chosen(folder: Path) -> None:
    options = {"target": "x86-avx512", "align": None}
    work, means, steps = prepared(folder, budget="macs<=0.6x", **options)
    means = replace(means, sensitivity=curves(work, {}))
    assert any(n % 16 for levels in means.grid.values() for n in levels), "finer ones are on offer"
    aim = aims.aimed(work, means, steps, Progress()).aim
    groups = {g.id: g for g in work.analysis.groups}
    assert any(aim[name] < g.size for name, g in groups.items())
    assert all(aim[name] == g.size or aim[name] % 16 == 0 for name, g in groups.items())
    assert len(means.budgets.implied) == 1


def test_the_share_of_macs_is_one_of_time_too(tmp_path: Path) -> None:
    save(depthwise_se_cnn(width=64), tmp_path)
    save_samples(depthwise_se_cnn(width=64), tmp_path / "d.npz", count=400)
    work, means, steps = prepared(tmp_path, budget="macs<=0.5x", target="x86-avx512", align=None)
    means = replace(means, sensitivity=curves(work, {}))
    aim = aims.aimed(work, means, steps, Progress()).aim
    cost = blocks.seconds_in_blocks(work.targets[0])
    dense = Widths(work.analysis, [Goal("t", cost, 0.0)]).totals[0]
    assert Widths(work.analysis, [Goal("t", cost, 0.0)]).at(aim).totals[0] <= 0.5 * dense * (1 + 1e-9)
    blind = replace(means, budgets=replace(means.budgets, implied=()))
    slow = aims.aimed(work, blind, steps, Progress()).aim
    assert Widths(work.analysis, [Goal("t", cost, 0.0)]).at(slow).totals[0] > 0.5 * dense


def test_time_doesnt_lead_far_below_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for the time; a third fewer multiply-accumulates than allowed would be a high price."""
    save(depthwise_se_cnn(width=48), tmp_path)
    save_samples(depthwise_se_cnn(width=48), tmp_path / "d.npz", count=100)

    def used() -> float:
        work, means, steps = prepared(tmp_path, budget="macs<=0.5x", target="x86-avx512", align=None)
        (limit,) = means.budgets.limits
        assert means.budgets.implied
        aim = aims.aimed(work, means, steps, Progress()).aim
        left = Widths(work.analysis, [Goal("macs", limit.cost, 0.0)]).at(aim).totals[0]
        return float(left / limit.limit)

    assert used() >= aims.NEAR
    monkeypatch.setattr(aims, "eased", lambda job, means: means)
    assert used() < aims.NEAR


def test_budgets_that_blocks_cant_meet_have_all_levels(folder: Path) -> None:
    work, means, steps = prepared(folder, budget="macs<=0.01x", target="x86-avx512", align=None)
    means = replace(means, sensitivity=curves(work, {}))
    assert not means.budgets.implied
    aim = aims.aimed(work, means, steps, Progress()).aim
    assert any(n % 16 and n < g.size for g, n in ((g, aim[g.id]) for g in work.analysis.groups))


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "params<=0.6x", "target": "x86-avx512", "align": None},  # every channel counts
        {"budget": "macs<=0.6x", "target": "x86-avx512", "align": 4},  # the user knows better
        {"budget": "macs<=0.6x", "target": "mobile-cpu", "align": None},  # odd channels cost nothing there
    ],
)
def test_elsewhere_nothing_changes(folder: Path, options: dict[str, object]) -> None:
    work, means, _ = prepared(folder, **options)
    assert blocks.grids(work, means.budgets, means.grid) == (means.grid,)
    assert not means.budgets.implied
