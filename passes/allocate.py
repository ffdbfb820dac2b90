"""Allocate: widths and layers chosen all together, by rounds of a multiple-choice knapsack.

A node's cost is a product of widths, a knapsack's is a sum. So the costs are linearised around the best
choice so far, each item's levels priced with all others as they are, and the knapsack is solved for levels
not far from there; what it overdrew is given back, and what it left over is spent, by single steps with
exact costs. A choice that loses less is the next point; one that doesn't makes the neighbourhood smaller.
The first point is that of the plain descent (`condensec.passes.select.choose`), so that is never undercut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import neg

import numpy as np
import numpy.typing as npt

from condensec.passes.groups import Analysis
from condensec.passes.knapsack import knapsack
from condensec.passes.layers import Layer
from condensec.passes.select import Choice, choose, objective
from condensec.passes.sensitivity import Curve, LayerLoss, Sensitivity
from condensec.passes.widths import Goal, Item, Widths, ceilings, items_of

FloatArray = npt.NDArray[np.float64]
REACHES = (1.0, 0.5, 0.25, 0.1)  # how far a level may lie from the current one, as a share of it
ROUNDS = 12
LEVELS = 64  # of one item in one knapsack, at most
MOST_ITEMS = 1000  # with more, single steps are small beside the whole, and descent is as good
LESS = 1e-9  # an improvement smaller than this is rounding


def weighted(sensitivity: Sensitivity, factors: Mapping[str, float]) -> Sensitivity:
    """The same losses times a factor for each group and layer (absent: 1)."""
    curves = {
        name: Curve(c.kept, tuple(x * factors.get(name, 1.0) for x in c.loss))
        for name, c in sensitivity.curves.items()
    }
    layers = {n: LayerLoss(x.loss * factors.get(n, 1.0)) for n, x in sensitivity.layers.items()}
    return Sensitivity(curves, sensitivity.samples, sensitivity.seconds, layers)


def allocate(
    analysis: Analysis,
    sensitivity: Sensitivity,
    goals: Sequence[Goal],
    grid: Mapping[str, Sequence[int]],
    start: Mapping[str, int] | None = None,
) -> Choice:
    """Counts that meet every goal with the least summed loss, as far as they can be met.

    Args:
        analysis: groups and layers of the uncut model.
        sensitivity: loss curves of the groups, losses of the layers.
        goals: budgets; with none nothing is cut.
        grid: allowed counts by group id (and by layer id, where layers may go), descending.
        start: counts that are not to be exceeded.

    Returns:
        A choice whose summed loss is at most that of `choose`.
    """
    first = choose(analysis, sensitivity, goals, grid, start)
    if not first.reached or not goals:
        return first
    items = items_of(analysis, grid)
    upper = ceilings(items, start)
    state = _State(analysis, sensitivity, goals, grid, items, upper)
    best = state.spend(first.counts)
    if len(items) > MOST_ITEMS:
        return best.choice
    reach = 0
    for _ in range(ROUNDS):
        found = state.round(best, REACHES[reach])
        if found is not None and found.loss < best.loss - LESS * max(1.0, best.loss):
            best = found
            continue
        reach += 1
        if reach == len(REACHES):
            break
    return best.choice


@dataclass(frozen=True)
class _Point:
    """A choice within all limits, and what it loses."""

    choice: Choice
    loss: float


@dataclass
class _State:
    """What every round needs."""

    analysis: Analysis
    sensitivity: Sensitivity
    goals: Sequence[Goal]
    grid: Mapping[str, Sequence[int]]
    items: Sequence[Item]
    upper: Mapping[str, int]
    limits: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.limits = np.array([g.limit for g in self.goals], np.float64)

    def round(self, best: _Point, reach: float) -> _Point | None:
        """The best of what the knapsack finds around a point, for each way to weigh the goals."""
        counts = best.choice.counts
        widths = Widths(self.analysis, self.goals).at(counts)
        levels = [self._near(item, counts[item.id], reach) for item in self.items]
        saved = [
            np.array([widths.saving(item, n, counts[item.id]) for n in some])
            for item, some in zip(self.items, levels, strict=True)
        ]
        losses = [
            np.array([self.sensitivity.loss(item.id, n) for n in some])
            for item, some in zip(self.items, levels, strict=True)
        ]
        found: _Point | None = None
        for weight in self._weights(widths.totals):
            costs = [-(s @ weight) for s in saved]
            least = [float(c.min()) for c in costs]
            room = float((self.limits - widths.totals) @ weight) - sum(least)
            chosen = knapsack(losses, [c - low for c, low in zip(costs, least, strict=True)], room)
            if chosen is None:
                continue
            picked = {i.id: some[k] for i, some, k in zip(self.items, levels, chosen, strict=True)}
            point = self.repaired(picked)
            if point is not None and (found is None or point.loss < found.loss):
                found = point
        return found

    def repaired(self, counts: Mapping[str, int]) -> _Point | None:
        """Brought within the limits by exact steps; None where that can't be."""
        down = choose(self.analysis, self.sensitivity, self.goals, self.grid, counts)
        return self.spend(down.counts) if down.reached else None

    def spend(self, counts: Mapping[str, int]) -> _Point:
        """What the limits leave over given back to where it helps most for what it costs."""
        counts = dict(counts)
        widths = Widths(self.analysis, self.goals).at(counts)
        for item in self.items:  # within a removed layer nothing needs to be cut
            if widths.idle(item):
                counts[item.id] = self.upper[item.id]
                widths.set(item, counts[item.id])
        scale = np.maximum(self.limits, 1e-30)
        while True:
            step = self._best_up(widths, counts, scale)
            if step is None:
                break
            item, count = step
            counts[item.id] = count
            widths.set(item, count)
        loss = objective(self.items, self.sensitivity, widths, counts)
        return _Point(Choice(counts, True, tuple(float(t) for t in widths.totals)), loss)

    def _best_up(
        self, widths: Widths, counts: Mapping[str, int], scale: FloatArray
    ) -> tuple[Item, int] | None:
        best: tuple[Item, int] | None = None
        most = 0.0
        for item in self.items:
            current = counts[item.id]
            first = bisect_left(self.grid[item.id], -current, key=neg)
            above = [n for n in self.grid[item.id][max(0, first - 2) : first] if n <= self.upper[item.id]]
            for count in above:
                gain = self.sensitivity.loss(item.id, current) - self.sensitivity.loss(item.id, count)
                if gain <= 0 or widths.idle(item):
                    continue
                more = -widths.saving(item, count, current)
                if np.any(widths.totals + more > self.limits):
                    continue
                worth = gain / max(float((more / scale).sum()), 1e-12)
                if worth > most:
                    best, most = (item, count), worth
        return best

    def _near(self, item: Item, current: int, reach: float) -> list[int]:
        """Levels within reach, the neighbours always; thinned out evenly where there are many."""
        allowed = [n for n in self.grid[item.id] if n <= self.upper[item.id]]
        if isinstance(item, Layer):
            return allowed
        at = allowed.index(current)
        low, high = current * (1 - reach), current / max(1 - reach, 1e-9)
        near = [n for i, n in enumerate(allowed) if low <= n <= high or abs(i - at) <= 1]
        if len(near) > LEVELS:
            near = sorted({near[int(i)] for i in np.linspace(0, len(near) - 1, LEVELS)} | {current})
        return near

    def _weights(self, totals: FloatArray) -> list[FloatArray]:
        """Ways to make one cost of several: the goals that are tight together, then each of them alone."""
        scale = 1 / np.maximum(self.limits, 1e-30)
        if len(self.goals) == 1:
            return [scale]
        tight = totals >= 0.98 * self.limits
        if not tight.any():
            tight[:] = True
        ways = [np.where(tight, scale, 0.0)]
        if tight.sum() > 1:
            ways += [np.where(np.arange(len(scale)) == i, scale, 0.0) for i in np.flatnonzero(tight)]
        return ways
