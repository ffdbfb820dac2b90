"""Widths: what a model costs at any number of kept units, and with layers taken out.

The cost of a weighted node is a function of its shape; its shape follows from the units that stay in each
group. Changing one group touches its own nodes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.axes import count_resolved
from condensec.passes.context import Cost
from condensec.passes.groups import Analysis, Group
from condensec.passes.layers import Layer


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


Item = Group | Layer  # what is chosen for: kept units of a group, or 1 or 0 of a layer


def items_of(analysis: Analysis, grid: Mapping[str, Sequence[int]]) -> list[Item]:
    """Everything a grid has levels for: groups, then layers, in the order of the analysis."""
    every: list[Item] = [*analysis.groups, *analysis.layers]
    return [item for item in every if item.id in grid]


def whole(item: Item) -> int:
    """Its count where nothing is cut."""
    return item.size if isinstance(item, Group) else 1


def ceilings(items: Iterable[Item], start: Mapping[str, int] | None) -> dict[str, int]:
    """Counts that are not to be exceeded: of an earlier choice where there is one, else nothing is cut."""
    return {i.id: min(whole(i), (start or {}).get(i.id, whole(i))) for i in items}


def taken_out(analysis: Analysis, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Ids of the layers that are taken out, in graph order."""
    return tuple(layer.id for layer in analysis.layers if not counts.get(layer.id, 1))


@dataclass(frozen=True)
class _Structure:
    """What of a model's cost doesn't depend on its widths.

    Attributes:
        costs: of each weighted node, by name.
        batch: samples of one run.
        layers: ids of the layers that a node lies in, where there are any.
        nodes: weighted nodes that each group or layer touches, by id.
        users: ids of the groups and layers that touch a node.
    """

    costs: Mapping[str, Cost]
    batch: int
    layers: Mapping[str, Sequence[str]]
    nodes: Mapping[str, Sequence[str]]
    users: Mapping[str, Sequence[str]]


def _structure(analysis: Analysis) -> _Structure:
    costs = {c.node.name or "": _resolved(analysis, c) for c in analysis.context.costs}
    batch = max(1, min((s[0] for s in analysis.world.inputs.values() if s), default=1))
    nodes: dict[str, list[str]] = {x.id: list(x.weighted) for x in analysis.layers}
    touched = {name: _atom_ids(analysis, cost) for name, cost in costs.items()}
    for group in analysis.groups:
        ids = {a.id for a in group.atoms}
        nodes[group.id] = [name for name, found in touched.items() if ids & found]
    layers: dict[str, list[str]] = {}
    for layer in analysis.layers:
        for name in layer.weighted:
            layers.setdefault(name, []).append(layer.id)
    users: dict[str, list[str]] = {}
    for item, names in nodes.items():
        for name in names:
            users.setdefault(name, []).append(item)
    return _Structure(costs, batch, layers, nodes, users)


class Widths:
    """Current widths and their cost, updated item by item.

    Attributes:
        sizes: kept units by atom id, for those that were set.
        gone: ids of the layers that are taken out; their nodes cost nothing.
        totals: the goals' costs, summed over nodes.
    """

    def __init__(self, analysis: Analysis, goals: Sequence[Goal]) -> None:
        self.analysis = analysis
        self.goals = goals
        self.sizes: dict[int, int] = {}
        self.gone: set[str] = set()
        self._fixed = analysis.once("widths", lambda: _structure(analysis))
        self._savings: dict[str, dict[tuple[int, int], npt.NDArray[np.float64]]] = {}
        self._recount()

    def _recount(self) -> None:
        self._savings.clear()
        self._found = {name: self._cost(name) for name in self._fixed.costs}
        self.totals = np.sum(list(self._found.values()), axis=0) if self._found else np.zeros(len(self.goals))

    def at(self, counts: Mapping[str, int]) -> Widths:
        """The same with counts by id set; absent ids stay as they are."""
        every: list[Item] = [*self.analysis.groups, *self.analysis.layers]
        for item in every:
            if item.id in counts:
                self.assign(item, counts[item.id])
        self._recount()
        return self

    def shape(self, cost: Cost) -> NodeShape:
        """A node at the current widths."""
        count = count_resolved
        macs = 1
        for factor in cost.factors:
            macs *= factor if isinstance(factor, int) else count(factor, self.sizes)
        return NodeShape(
            cost.node.name or "",
            cost.node.op_type,
            macs // self._fixed.batch,
            0 if cost.inputs is None else count(cost.inputs, self.sizes),
            0 if cost.outputs is None else count(cost.outputs, self.sizes),
            cost.groups if isinstance(cost.groups, int) else count(cost.groups, self.sizes),
            cost.kernel,
            cost.positions,
        )

    def removed(self, node: str) -> bool:
        """Whether a node lies in a layer that is taken out."""
        return any(layer in self.gone for layer in self._fixed.layers.get(node, ()))

    def idle(self, item: Item) -> bool:
        """Whether a group lies in removed layers altogether: what it loses doesn't matter any more."""
        return isinstance(item, Group) and all(map(self.removed, self._fixed.nodes[item.id]))

    def set(self, item: Item, count: int) -> None:
        """Give a group a width, or take a layer out or back in (0, 1), and update the totals."""
        self.assign(item, count)
        for name in self._fixed.nodes[item.id]:
            new = self._cost(name)
            self.totals = self.totals + new - self._found[name]
            self._found[name] = new
            for user in self._fixed.users[name]:
                self._savings.pop(user, None)

    def saving(self, item: Item, count: int, current: int) -> npt.NDArray[np.float64]:
        """What each goal's cost would fall by; remembered until a width that matters changes."""
        known = self._savings.setdefault(item.id, {})
        found = known.get((count, current))
        if found is None:
            self.assign(item, count)
            new = sum(map(self._cost, self._fixed.nodes[item.id]), np.zeros(len(self.goals)))
            self.assign(item, current)
            old = sum((self._found[name] for name in self._fixed.nodes[item.id]), np.zeros(len(self.goals)))
            found = known[count, current] = np.asarray(old - new)
        return found

    def assign(self, item: Item, count: int) -> None:
        """Give an item a count, without the totals."""
        if isinstance(item, Layer):
            (self.gone.discard if count else self.gone.add)(item.id)
        elif len(item.atoms) == 1:
            self.sizes[item.atoms[0].id] = count
        else:
            for i, atom in enumerate(item.atoms):  # single units: which ones doesn't change the cost
                self.sizes[atom.id] = int(i < count) if atom.size == 1 else atom.size

    def _cost(self, node: str) -> npt.NDArray[np.float64]:
        if self.removed(node):
            return np.zeros(len(self.goals))
        shape = self.shape(self._fixed.costs[node])
        return np.array([goal.cost(shape) for goal in self.goals], np.float64)


def _resolved(analysis: Analysis, cost: Cost) -> Cost:
    """A node's cost with its terms as they will stay: they are counted thousands of times."""

    def resolved(term: Any) -> Any:
        return term if term is None or isinstance(term, int) else analysis.axes.resolve(term)

    return replace(
        cost,
        factors=tuple(map(resolved, cost.factors)),
        inputs=resolved(cost.inputs),
        outputs=resolved(cost.outputs),
        groups=resolved(cost.groups),
    )


def _atom_ids(analysis: Analysis, cost: Cost) -> set[int]:
    terms = [
        t
        for t in (*cost.factors, cost.inputs, cost.outputs, cost.groups)
        if t is not None and not isinstance(t, int)
    ]
    return {a.id for t in terms for a in analysis.axes.atoms(t)}
