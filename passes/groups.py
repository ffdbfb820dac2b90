"""Groups: read the whole graph once, and say which units live and die together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.axes import Atom, Axes, Term
from condensec.passes.closing import close_bodies
from condensec.passes.collector import paused
from condensec.passes.context import Context, Kept
from condensec.passes.layers import Layer, find_layers
from condensec.passes.normalize import Normalized, normalize
from condensec.passes.reading import freeze_named, freeze_node, read_graph
from condensec.passes.rehearsal import blocked
from condensec.passes.sharing import Rejoin
from condensec.passes.shuffle import find, gather_instead
from condensec.passes.world import World, build_world
from condensec.passes.zeros import settle
from condensec.plan import AxisRef, FrozenAxis

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be removed one by one, each from every axis it lies on.

    Attributes:
        id: stable within one model: ``g0``, ``g1``, ... in graph order.
        kind: channel, neuron, head, head_dim, kv_head, hidden, expert or rnn_unit.
        size: number of units.
        exact: False where a norm, softmax or mean reduces over the units.
        axes: weight axes the units lie on.
        atoms: the atoms that hold the units, in unit order; the sum of their sizes is ``size``.
    """

    id: str
    kind: str
    size: int
    exact: bool
    axes: tuple[AxisRef, ...]
    atoms: tuple[Atom, ...]

    @property
    def least(self) -> int:
        """So many units have to stay: one, or as many as a router chooses."""
        return max(atom.least for atom in self.atoms)

    def share(self, keep: float) -> int:
        """Number of units that are at most this share, and at least what has to stay."""
        return max(self.least, int(self.size * keep))

    def masks(self, kept: npt.NDArray[np.bool_]) -> dict[int, npt.NDArray[np.bool_]]:
        """Kept units by atom id."""
        bounds = np.cumsum([a.size for a in self.atoms])[:-1]
        return {a.id: part for a, part in zip(self.atoms, np.split(kept, bounds), strict=True)}


@dataclass
class Analysis:
    """What the algebra found.

    Attributes:
        normalized: the normalized model, uncut.
        context: layouts, rewrites, costs, reductions.
        groups: prunable groups in graph order.
        frozen: channel-like axes that can't be cut, with reasons.
        weight_layouts: initializer name -> layout, for those with a prunable axis.
        layers: residual blocks that can be removed whole.
    """

    normalized: Normalized
    context: Context
    groups: tuple[Group, ...]
    frozen: tuple[FrozenAxis, ...]
    weight_layouts: dict[str, list[Term | None]] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    _found: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: str, find: Callable[[], T]) -> T:
        """What ``find`` gives, computed at the first call for a key."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    @property
    def model(self) -> ir.Model:
        """The normalized model, uncut; bodies of If, Loop and Scan stand open in it (see `bodies`)."""
        return self.normalized.model

    @property
    def runnable(self) -> ir.Model:
        """The same with every node in its body."""
        return close_bodies(self.model)

    @property
    def axes(self) -> Axes:
        """The system of axes."""
        return self.context.axes

    @property
    def world(self) -> World:
        """Sample shapes."""
        return self.context.world

    def group(self, identifier: str) -> Group:
        """The group of an id.

        Raises:
            KeyError: there is none.
        """
        return next(g for g in self.groups if g.id == identifier)

    def kept(self, units: Mapping[str, npt.ArrayLike]) -> Kept:
        """What stays, from kept unit indices by group id (absent groups stay whole)."""
        masks: dict[int, npt.NDArray[np.bool_]] = {}
        for group in self.groups:
            if group.id in units:
                mask = np.zeros(group.size, np.bool_)
                mask[np.asarray(units[group.id], np.int64)] = True
                masks.update(group.masks(mask))
        return Kept(self.axes, masks)

    def macs(self, sizes: Mapping[int, int] | None = None) -> int:
        """Multiply-accumulates of one sample, given kept unit counts by atom id (absent: all)."""
        return sum(self.node_macs(sizes or {}).values())

    def node_macs(self, sizes: Mapping[int, int]) -> dict[str, int]:
        """Multiply-accumulates of one sample by node name."""
        batch = max(1, min((s[0] for s in self.world.inputs.values() if s), default=1))
        result: dict[str, int] = {}
        for cost in self.context.costs:
            total = 1
            for factor in cost.factors:
                total *= factor if isinstance(factor, int) else self.axes.count(factor, sizes)
            result[cost.node.name or ""] = total // batch
        return result

    def reachable(self) -> float:
        """Share of the MACs that lie in nodes with at least one prunable axis."""
        free = {a.id for g in self.groups for a in g.atoms}
        macs = self.node_macs({})
        reached = 0
        for cost in self.context.costs:
            terms = [f for f in cost.factors if not isinstance(f, int)]
            if any(a.id in free for t in terms for a in self.axes.atoms(t)):
                reached += macs[cost.node.name or ""]
        return reached / max(1, sum(macs.values()))


def analyze(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    freeze: str | None = None,
) -> Analysis:
    """Find the groups of a model.

    Args:
        model: any model condensec reads; it isn't changed.
        shapes: sizes of inputs, of one real sample.
        freeze: regular expression; nodes and weights whose names match are left alone.

    Raises:
        ModelError: shapes can't be worked out.
    """
    with paused():
        normalized = normalize(model)
        world = build_world(normalized.model, shapes)
        analysis = _read(normalized, world, freeze)
        if not find(normalized.model.graph, world):
            return analysis
        other = replace(normalized, model=normalized.model.clone())
        apart = world.copy()
        gather_instead(other.model.graph, apart, find(other.model.graph, apart))
        return min(analysis, _read(other, apart, freeze), key=_macs_of_half)


def _read(normalized: Normalized, world: World, freeze: str | None) -> Analysis:
    graph = normalized.model.graph
    opset = normalized.model.opset_imports.get("", normalized.model.opset_imports.get("ai.onnx", 1))
    context = Context(Axes(), world, opset)
    read_graph(context, graph)
    freeze_named(context, graph, freeze, normalized.splits)
    Rejoin(context, graph, normalized.splits, normalized.twins).settle(normalized.families)
    normalized.families.clear()
    analysis = _collect(normalized, context)
    while any(freeze_node(context, node, reason) for node, reason in blocked(analysis)):
        analysis = _collect(normalized, context)
    settle(context, graph)
    return replace(_collect(normalized, context), layers=find_layers(context, graph))


def _macs_of_half(analysis: Analysis) -> int:
    """What would be left with half of every group, drawn by lot: how far a reading of the graph reaches."""
    draw = np.random.default_rng(0).permutation
    kept = analysis.kept({g.id: draw(g.size)[: g.share(0.5)] for g in analysis.groups})
    return analysis.macs(kept.sizes)


def _collect(normalized: Normalized, context: Context) -> Analysis:
    axes = context.axes
    refs: dict[int, list[AxisRef]] = {}
    atoms: dict[int, Atom] = {}
    layouts: dict[str, list[Term | None]] = {}
    for name, value in normalized.model.graph.initializers.items():
        layout = context.layouts.get(value)
        if layout is None:
            continue
        layouts[name] = layout
        for axis, term in enumerate(layout):
            for atom in axes.atoms(term) if term is not None else ():
                atoms[atom.id] = atom
                refs.setdefault(atom.id, []).append(AxisRef(name, axis))
    cut = _cost_atoms(context)
    free = [a for a in atoms.values() if a.frozen is None and a.id in cut]
    order = {atom_id: i for i, atom_id in enumerate(cut)}
    free.sort(key=lambda a: order[a.id])
    groups = [_group(f"g{i}", context, members, refs) for i, members in enumerate(_bundles(free))]
    groups = [g for g in groups if g.size > g.least]
    frozen = [
        FrozenAxis(f"f{i}", a.size, a.frozen)
        for i, a in enumerate(
            a for a in (atoms[i] for i in cut if i in atoms) if a.frozen is not None and a.size > 1
        )
        if a.frozen is not None
    ]
    return Analysis(normalized, context, tuple(groups), tuple(frozen), layouts)


def _cost_atoms(context: Context) -> list[int]:
    """Atoms on the axes of weighted nodes, in graph order: what a cut would make cheaper."""
    seen: dict[int, None] = {}
    for cost in context.costs:
        terms = [
            f for f in (cost.outputs, *cost.factors, cost.inputs) if f is not None and not isinstance(f, int)
        ]
        for term in terms:
            for atom in context.axes.atoms(term):
                seen.setdefault(atom.id)
    return list(seen)


def _bundles(free: list[Atom]) -> list[list[Atom]]:
    """Atoms of one unit that were cut from the same axes form one group together."""
    bundles: dict[object, list[Atom]] = {}
    for atom in free:
        bundles.setdefault((atom.origins or atom.id) if atom.size == 1 else atom.id, []).append(atom)
    return list(bundles.values())


def _group(identifier: str, context: Context, atoms: list[Atom], refs: dict[int, list[AxisRef]]) -> Group:
    places = dict.fromkeys(ref for atom in atoms for ref in refs[atom.id])
    return Group(
        id=identifier,
        kind=_kind(atoms),
        size=sum(a.size for a in atoms),
        exact=all(a.exact for a in atoms),
        axes=tuple(places),
        atoms=tuple(atoms),
    )


def _kind(atoms: list[Atom]) -> str:
    hints = set().union(*(a.hints for a in atoms))
    for kind in ("kv_head", "head", "head_dim", "expert", "rnn_unit", "hidden", "channel"):
        if kind in hints:
            return kind
    return "neuron"
