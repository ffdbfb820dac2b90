"""Whole blocks: widths that a chip's kernels compute in full.

Blocked layouts pad channels to a block, so what is left of one costs as much as all of it: with AVX-512, 20
of 24 channels take as long as 32. Latency tables know that. A budget of multiply-accumulates doesn't: it
would take 20 for a saving, and MACs of a depthwise convolution for as cheap as others. So where MACs stand
for time, widths are chosen among whole blocks, and the share of MACs that may stay is also the share of time
that may, by the target's formula: that isn't exact, but it is the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from condensec.hardware import analytic
from condensec.hardware.nodecost import NodeCost
from condensec.hardware.target import Target
from condensec.passes.groups import Group
from condensec.passes.select import carried
from condensec.passes.widths import CostFunction, Goal, NodeShape, Widths
from condensec.stages.goals import Budgets, op_kind
from condensec.stages.job import Job

Grid = Mapping[str, list[int]]


def grids(job: Job, budgets: Budgets, grid: Grid) -> tuple[Grid, ...]:
    """Grids to choose from, the best first: whole blocks only where MACs stand for time, then all levels."""
    if not _macs_alone(job, budgets):
        return (grid,)
    whole = {**grid, **{g.id: _whole(job, g, grid[g.id]) for g in job.analysis.groups if g.id in grid}}
    return (grid,) if whole == dict(grid) else (whole, grid)


def timed(job: Job, budgets: Budgets, grid: Grid) -> Budgets:
    """The same budgets, with the time that a share of MACs stands for, where widths can reach it."""
    if not _macs_alone(job, budgets):
        return budgets
    share = min(limit.limit / limit.dense for limit in budgets.limits if limit.dense)
    goals = []
    for target in (t for t in job.targets if t.blocks):
        cost = seconds_in_blocks(target)
        dense = float(Widths(job.analysis, [Goal("", cost, 0.0)]).totals.sum())
        goals.append(Goal(f"time:{target.name}", cost, share * dense))
    smallest = {name: levels[-1] for name, levels in grids(job, budgets, grid)[0].items()}
    least = Widths(job.analysis, goals).at(smallest).totals
    implied = (goal for goal, low in zip(goals, least, strict=True) if low < goal.limit)
    return replace(budgets, implied=tuple(implied))


def seconds_in_blocks(target: Target) -> CostFunction:
    """Seconds of a weighted node by the target's formula, in whole blocks."""
    formula = analytic.formula(target)

    def cost(node: NodeShape) -> float:
        return formula.weighted(analytic.in_blocks(NodeCost(**vars(node)), target)) if node.macs else 0.0

    return cost


def _macs_alone(job: Job, budgets: Budgets) -> bool:
    """Whether MACs are all that was asked for: a table knows time better, and stored bytes count singly."""
    asked = {limit.budget.kind for limit in budgets.limits}
    return job.config.align is None and asked == {"macs"} and any(target.blocks for target in job.targets)


def grid_of(job: Job, budgets: Budgets, grid: Grid, aim: Mapping[str, int]) -> Grid:
    """The first of these grids that an aim lies on: what leads to it keeps to it."""
    for one in grids(job, budgets, grid):
        if all(count in one[name] for name, count in aim.items() if name in one):
            return one
    return grid


def _whole(job: Job, group: Group, levels: list[int]) -> list[int]:
    """The levels of a group that fill the blocks of every target that has any; all units always do."""
    many, kind = carried(job.analysis, group), op_kind(job.analysis, group)
    blocks = [target.block(kind) for target in job.targets]
    return [n for n in levels if n == group.size or all(n * many % block == 0 for block in blocks)]
