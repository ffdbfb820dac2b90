"""Select: how many units of each group stay, under budgets.

Steepest descent on the aligned grid: from the widths there are, repeatedly take the step that loses least
for what it saves, with costs recomputed at the current widths (a convolution's cost is the product of both
its widths, so savings depend on what else was cut).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.context import Cost
from condensec.passes.criteria import Criterion, GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis, Group
from condensec.passes.sensitivity import Sensitivity

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NodeShape:
    """What a cost model needs to know of one weighted node at some widths (one sample).

    Attributes:
        name: node name.
        op: operator type.
        macs: multiply-accumulates.
        in_channels: input channels or features (0: a product of two activations).
        out_channels: output channels or features.
        groups: convolution groups.
        kernel_elems: positions of the kernel.
        positions: output positions (pixels, tokens).
        weights: parameters of the node's weight.
    """

    name: str
    op: str
    macs: int
    in_channels: int
    out_channels: int
    groups: int
    kernel_elems: int
    positions: int

    @property
    def weights(self) -> int:
        """Parameters of the node's weight matrix or kernel."""
        return self.in_channels * self.out_channels * self.kernel_elems // max(self.groups, 1)


CostFunction = Callable[[NodeShape], float]


@dataclass(frozen=True)
class Goal:
    """One budget.

    Attributes:
        name: macs, params, latency...
        cost: cost of one node.
        limit: what the sum over all nodes has to come down to.
    """

    name: str
    cost: CostFunction
    limit: float


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


class Widths:
    """Current widths and their cost, updated group by group."""

    def __init__(self, analysis: Analysis, goals: Sequence[Goal]) -> None:
        self.analysis = analysis
        self.goals = goals
        self.sizes: dict[int, int] = {}
        self._of_group: dict[str, list[Cost]] = {}
        self._cache: dict[tuple[str, int], list[float]] = {}
        for group in analysis.groups:
            ids = {a.id for a in group.atoms}
            self._of_group[group.id] = [c for c in analysis.context.costs if ids & _atom_ids(analysis, c)]
        self.node_costs = {c.node.name or "": self._cost(c) for c in analysis.context.costs}
        self.totals = (
            np.sum(list(self.node_costs.values()), axis=0) if self.node_costs else np.zeros(len(goals))
        )

    def shape(self, cost: Cost) -> NodeShape:
        """A node at the current widths."""
        count = self.analysis.axes.count
        macs = 1
        for factor in cost.factors:
            macs *= factor if isinstance(factor, int) else count(factor, self.sizes)
        batch = max(1, min((s[0] for s in self.analysis.world.inputs.values() if s), default=1))
        return NodeShape(
            cost.node.name or "",
            cost.node.op_type,
            macs // batch,
            0 if cost.inputs is None else count(cost.inputs, self.sizes),
            0 if cost.outputs is None else count(cost.outputs, self.sizes),
            cost.groups if isinstance(cost.groups, int) else count(cost.groups, self.sizes),
            cost.kernel,
            cost.positions,
        )

    def _cost(self, cost: Cost) -> npt.NDArray[np.float64]:
        shape = self.shape(cost)
        return np.array([goal.cost(shape) for goal in self.goals], np.float64)

    def set(self, group: Group, count: int) -> None:
        """Give a group a width and update the totals."""
        self.assign(group, count)
        for cost in self._of_group[group.id]:
            name = cost.node.name or ""
            new = self._cost(cost)
            self.totals = self.totals + new - self.node_costs[name]
            self.node_costs[name] = new

    def saving(self, group: Group, count: int, current: int) -> npt.NDArray[np.float64]:
        """What each goal's cost would fall by."""
        self.assign(group, count)
        new = sum((self._cost(c) for c in self._of_group[group.id]), np.zeros(len(self.goals)))
        self.assign(group, current)
        old = sum(
            (self.node_costs[c.node.name or ""] for c in self._of_group[group.id]), np.zeros(len(self.goals))
        )
        return np.asarray(old - new)

    def assign(self, group: Group, count: int) -> None:
        """Give a group a width, without the totals."""
        if len(group.atoms) == 1:
            self.sizes[group.atoms[0].id] = count
            return
        for i, atom in enumerate(group.atoms):  # single units: which ones doesn't change the cost
            self.sizes[atom.id] = int(i < count) if atom.size == 1 else atom.size


def _atom_ids(analysis: Analysis, cost: Cost) -> set[int]:
    terms = [
        t
        for t in (*cost.factors, cost.inputs, cost.outputs, cost.groups)
        if t is not None and not isinstance(t, int)
    ]
    return {a.id for t in terms for a in analysis.axes.atoms(t)}


@dataclass(frozen=True)
class Choice:
    """Kept unit counts by group id, and whether every goal was reached."""

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
    """Widths that meet every goal with the least summed loss, as far as they can be met.

    Args:
        analysis: groups of the uncut model.
        sensitivity: loss curves of the groups.
        goals: budgets; with none nothing is cut.
        grid: allowed widths by group id, descending.
        start: widths of an earlier cycle, to cut on from.
        max_units: stop after this many units, even if no goal is reached.
    """
    widths = Widths(analysis, goals)
    counts = {g.id: g.size for g in analysis.groups}
    for group in analysis.groups:
        if start and start.get(group.id, group.size) < group.size:
            counts[group.id] = start[group.id]
            widths.set(group, counts[group.id])
    limits = np.array([g.limit for g in goals], np.float64)
    scale = np.maximum(widths.totals, 1e-30)
    first = sum(counts.values())
    while np.any(widths.totals > limits):
        gone = first - sum(counts.values())
        room = None if max_units is None else max_units - gone
        missed = widths.totals > limits
        best = _best_step(analysis, sensitivity, widths, counts, grid, missed, scale, room)
        if best is None and gone == 0:  # a grid coarser than the step: one step of it
            best = _best_step(analysis, sensitivity, widths, counts, grid, missed, scale, None)
        if best is None:
            break
        group, count = best
        counts[group.id] = count
        widths.set(group, count)
    return Choice(counts, not bool(np.any(widths.totals > limits)), tuple(float(t) for t in widths.totals))


def _best_step(
    analysis: Analysis,
    sensitivity: Sensitivity,
    widths: Widths,
    counts: Mapping[str, int],
    grid: Mapping[str, Sequence[int]],
    open_goals: npt.NDArray[np.bool_],
    scale: npt.NDArray[np.float64],
    room: int | None,
) -> tuple[Group, int] | None:
    """The cheapest step down of any group, of at most ``room`` units: (group, new count)."""
    best: tuple[Group, int] | None = None
    price = np.inf
    for group in analysis.groups:
        current = counts[group.id]
        curve = sensitivity.curves[group.id]
        below = [n for n in grid[group.id] if n < current][:2]
        for count in below if room is None else [n for n in below if current - n <= room]:
            saved = float((widths.saving(group, count, current) / scale)[open_goals].sum())
            if saved <= 0:
                continue
            # a small constant keeps free steps in the order of what they save
            candidate = (curve.at(count) - curve.at(current) + 1e-9) / saved
            if candidate < price:
                best, price = (group, count), candidate
    return best
