"""Select: how many units of each group stay, and which layers, under budgets.

Steepest descent on the aligned grid: from the widths there are, repeatedly take the step that loses least
for what it saves, with costs recomputed at the current widths (a convolution's cost is the product of both
its widths, so savings depend on what else was cut). `condensec.passes.allocate` improves on it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from operator import neg
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.criteria import Criterion, GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis, Group
from condensec.passes.sensitivity import Sensitivity
from condensec.passes.widths import CostFunction, Goal, Item, NodeShape, Widths, ceilings, items_of

__all__ = [
    "Choice",
    "CostFunction",
    "Goal",
    "NodeShape",
    "Widths",
    "carried",
    "choose",
    "objective",
    "unit_order",
]

Array = npt.NDArray[Any]
FREE = 1e-9  # added to each step's loss: it keeps free steps in the order of what they save


def unit_order(
    analysis: Analysis,
    criterion: Criterion,
    weights: Mapping[str, Array] | None = None,
    seed: int = 0,
    evidence: Evidence | None = None,
) -> dict[str, npt.NDArray[np.int64]]:
    """Units of every group, most important first. Ties fall to the lower index.

    Raises:
        ConfigError: the criterion looks at activations, and there is no evidence.
    """
    order = {}
    for group in analysis.groups:
        scores = criterion(GroupView(analysis, group, weights or {}, seed, evidence))
        order[group.id] = np.argsort(-scores, kind="stable")
    return order


def carried(analysis: Analysis, group: Group) -> int:
    """Channels that one unit carries on each of its weight axes (a head: its dimensions); at least 1."""
    view = GroupView(analysis, group, {})
    found = 0
    for ref in group.axes:
        term = analysis.weight_layouts[ref.tensor][ref.axis]
        assert term is not None
        found = gcd(found, int((view.units(term) >= 0).sum()) // group.size)
    return max(found, 1)


@dataclass(frozen=True)
class Choice:
    """What stays, and whether every goal was reached.

    Attributes:
        counts: kept units by group id; by layer id 1, or 0 where it is taken out.
        reached: all goals are met.
        totals: the goals' costs.
    """

    counts: Mapping[str, int]
    reached: bool
    totals: tuple[float, ...]


def choose(
    analysis: Analysis,
    sensitivity: Sensitivity,
    goals: Sequence[Goal],
    grid: Mapping[str, Sequence[int]],
    start: Mapping[str, int] | None = None,
    max_units: int | None = None,
) -> Choice:
    """Counts that meet every goal with the least summed loss, as far as they can be met, by descent.

    Args:
        analysis: groups and layers of the uncut model.
        sensitivity: loss curves of the groups, losses of the layers.
        goals: budgets; with none nothing is cut.
        grid: allowed counts by group id (and by layer id, where layers may go), descending.
        start: counts of an earlier cycle, to cut on from.
        max_units: stop after this many units, even if no goal is reached. A layer counts as the units that
            go with it.
    """
    items = items_of(analysis, grid)
    counts = ceilings(items, start)
    widths = Widths(analysis, goals).at(counts)
    limits = np.array([g.limit for g in goals], np.float64)
    scale = np.maximum(widths.totals, 1e-30)
    gone = 0
    while np.any(widths.totals > limits):
        room = None if max_units is None else max_units - gone
        missed = widths.totals > limits
        best = _best_step(items, sensitivity, widths, counts, grid, missed, scale, room)
        if best is None and gone == 0:  # a grid coarser than the step: one step of it
            best = _best_step(items, sensitivity, widths, counts, grid, missed, scale, None)
        if best is None:
            break
        item, count = best
        gone += _units(widths, item, counts, count)
        counts[item.id] = count
        widths.set(item, count)
    return Choice(counts, not bool(np.any(widths.totals > limits)), tuple(float(t) for t in widths.totals))


def objective(
    items: Sequence[Item], sensitivity: Sensitivity, widths: Widths, counts: Mapping[str, int]
) -> float:
    """Summed loss of a choice; a group within removed layers adds nothing. ``widths`` is at ``counts``."""
    return sum(sensitivity.loss(i.id, counts[i.id]) for i in items if not widths.idle(i))


def _units(widths: Widths, item: Item, counts: Mapping[str, int], count: int) -> int:
    """Units that go with a step; with a layer those of the groups that lie in it alone."""
    if isinstance(item, Group):
        return counts[item.id] - count
    before = set(widths.gone)
    groups = [g for g in widths.analysis.groups if not widths.idle(g)]
    widths.gone.add(item.id)
    found = sum(counts.get(g.id, g.size) for g in groups if widths.idle(g))
    widths.gone = before
    return max(1, found)


def _best_step(
    items: Sequence[Item],
    sensitivity: Sensitivity,
    widths: Widths,
    counts: Mapping[str, int],
    grid: Mapping[str, Sequence[int]],
    open_goals: npt.NDArray[np.bool_],
    scale: npt.NDArray[np.float64],
    room: int | None,
) -> tuple[Item, int] | None:
    """The cheapest step down of any item, of at most ``room`` units: (item, new count)."""
    best: tuple[Item, int] | None = None
    price = np.inf
    for item in items:
        current = counts[item.id]
        first = bisect_right(grid[item.id], -current, key=neg)
        below = grid[item.id][first : first + 2]
        if room is not None:
            below = [n for n in below if _units(widths, item, counts, n) <= room]
        for count in below:
            saved = float((widths.saving(item, count, current) / scale)[open_goals].sum())
            if saved <= 0:
                continue
            lost = sensitivity.loss(item.id, count) - sensitivity.loss(item.id, current)
            if (lost + FREE) / saved < price:
                best, price = (item, count), (lost + FREE) / saved
    return best
