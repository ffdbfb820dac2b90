"""The order of channels is free: units of a group change places, and the network computes the same.

N:M keeps the best n of every m neighbours, so it loses less where large weights and small ones are neighbours
(Pool & Yu 2021, "Channel Permutations for N:M Sparsity"). A permutation of the units of a group goes through
all axes that the group lies on, of all weights: the axis algebra knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.contraction import Place
from condensec.passes.groups import Analysis, Group

Array = npt.NDArray[Any]
Order = npt.NDArray[np.int64]  # the unit (among the kept ones) that comes to each place
ROWS = 512  # of the consumers' weights that are looked at
TRIES = 6_000  # pairs of channels that may change places, of each group


@dataclass(frozen=True)
class Permuted:
    """What a permutation makes of a model.

    Attributes:
        weights: every weight that it moves, by name.
        order: weight -> axis -> which index of the original stands where.
        groups: that were permuted.
    """

    weights: Mapping[str, Array]
    order: Mapping[str, Mapping[int, tuple[int, ...]]]
    groups: tuple[str, ...]


def permute(
    analysis: Analysis,
    units: Mapping[str, Sequence[int]],
    weights: Mapping[str, Array],
    places: Sequence[Place],
    n: int,
    m: int,
    *,
    seed: int = 0,
) -> Permuted:
    """Order the units of every group whose consumers are to hold N:M.

    Args:
        analysis: of the original.
        units: kept units by group id; absent groups are whole.
        weights: all weights of the cut model, by name.
        places: weights that will hold the pattern.
        n: of every ``m`` consecutive weights along the contraction stay.
        m: see ``n``.
        seed: of the pairs that are tried in wide groups.
    """
    moved: dict[str, Array] = {}
    order: dict[str, dict[int, tuple[int, ...]]] = {}
    done = []
    masks = analysis.kept({name: list(kept) for name, kept in units.items()})
    for group in analysis.groups:
        if len(group.atoms) != 1:
            continue  # in pieces: an index has a meaning of its own there
        axes = _axes(analysis, group, masks, weights)
        if axes is None:
            continue
        current = {**weights, **moved}
        rows = [
            _rows(place, current[place.weight], m)
            for place in places
            if _is_alone(axes.get(place.weight, {}).get(place.axis), place.size)
        ]
        found = _best(np.concatenate(rows), n, m, seed) if rows else None
        if found is None:
            continue
        for name, by_axis in axes.items():
            for axis, (unit, alive) in by_axis.items():
                index = _moved(unit, found)
                moved[name] = np.take(moved.get(name, weights[name]), index, axis=axis)
                before = order.setdefault(name, {}).get(axis, tuple(alive.tolist()))
                order[name][axis] = tuple(before[i] for i in index)
        done.append(group.id)
    return Permuted(moved, order, tuple(done))


Axes = dict[str, dict[int, tuple[Order, Order]]]


def _axes(analysis: Analysis, group: Group, masks: Any, weights: Mapping[str, Array]) -> Axes | None:
    """Weight -> axis -> (unit among the kept ones of each index or -1, index in the original)."""
    atom = group.atoms[0]
    kept = np.flatnonzero(masks.masks[atom.id]) if atom.id in masks.masks else np.arange(atom.size)
    position = np.full(atom.size, -1, np.int64)
    position[kept] = np.arange(len(kept))
    found: Axes = {}
    for name, layout in analysis.weight_layouts.items():
        for axis, term in enumerate(layout):
            if term is None:
                continue
            units = analysis.axes.units(term, atom)
            if not (units >= 0).any():
                continue
            if name not in weights:
                return None  # a copy of a shared weight, which is one again in the file
            alive = masks.indices(term)
            of_index = units[alive]
            found.setdefault(name, {})[axis] = (
                np.where(of_index >= 0, position[of_index], -1),
                alive,
            )
            if weights[name].shape[axis] != len(alive):
                return None
    return found


def _is_alone(axis: tuple[Order, Order] | None, size: int) -> bool:
    """Whether an index of the axis is a unit of the group, and nothing else."""
    return axis is not None and len(axis[0]) == size and np.array_equal(np.sort(axis[0]), np.arange(size))


def _rows(place: Place, array: Array, m: int) -> Array:
    """Squares of a weight, scaled to a mean of one: ``[rows, input channels]``, thinned out."""
    matrix = np.square(place.matrix(array).astype(np.float64)).reshape(-1, place.size)
    step = max(1, len(matrix) // ROWS)
    return np.asarray(matrix[:: step + (step > 1 and step % 2 == 0)] / max(float(matrix.mean()), 1e-30))


def _kept(block: Array, n: int) -> float:
    """What the best n of each row's m keep."""
    return float(np.sort(block, axis=-1)[..., -n:].sum())


def _best(prices: Array, n: int, m: int, seed: int) -> Order | None:
    """An order in which more is kept, by exchanging channels of two blocks; None if none was found."""
    size = prices.shape[1]
    if size % m or size // m < 2:
        return None
    order = np.arange(size)
    scores = [_kept(prices[:, order[b : b + m]], n) for b in range(0, size, m)]
    rng = np.random.default_rng(seed)
    total = size * (size - m) // 2
    changed = False
    for _ in range(min(TRIES, 4 * total)):
        i, j = rng.integers(0, size, 2)
        a, b = i // m, j // m
        if a == b:
            continue
        order[i], order[j] = order[j], order[i]
        new = [_kept(prices[:, order[x * m : x * m + m]], n) for x in (a, b)]
        if sum(new) > scores[a] + scores[b] + 1e-9:
            scores[a], scores[b] = new
            changed = True
        else:
            order[i], order[j] = order[j], order[i]
    return order if changed else None


def _moved(unit: Order, order: Order) -> Order:
    """Which index comes to each place of an axis when units change places; others stay."""
    index = np.arange(len(unit))
    sorted_ = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[sorted_], np.arange(len(order) + 1))
    count = np.zeros(len(order), np.int64)
    for i, u in enumerate(unit):
        if u >= 0:
            index[i] = sorted_[starts[order[u]] + count[u]]
            count[u] += 1
    return index
