"""Importance criteria: one score per unit of a group; the lowest go first.

One file a criterion, registered by being there:

    @criterion("magnitude")
    def magnitude(view: GroupView) -> FloatArray: ...

Scores are compared within a group; how much of each group goes is up to measured sensitivity
(`condensec.passes.sensitivity`), not to the scale of the scores.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import ConfigError
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis, Group

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupView:
    """What a criterion sees of one group.

    Attributes:
        analysis: the whole analysis.
        group: the group to score.
        weights: current weights in the *uncut* shapes, by name; absent ones are as in the model.
        seed: for criteria that draw.
        data: what calibration samples say, for criteria that ask; see `evidence`.
    """

    analysis: Analysis
    group: Group
    weights: Mapping[str, npt.NDArray[Any]]
    seed: int = 0
    data: Evidence | None = None

    @property
    def evidence(self) -> Evidence:
        """Calibration samples, and what was found with them so far.

        Raises:
            ConfigError: there are none here.
        """
        if self.data is None:
            raise ConfigError("this criterion looks at activations", hint="give samples with --data")
        return self.data

    def slices(self) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """For each weight axis of the group: the weight's name, the weight ``[n, rest]``, the units ``[n]``.

        The group's axis comes first, the others are flattened; an index that belongs to no unit has -1.
        """
        model = self.analysis.model
        for ref in self.group.axes:
            array = self.weights.get(ref.tensor)
            if array is None:
                tensor = model.graph.initializers[ref.tensor].const_value
                assert tensor is not None
                array = tensor.numpy()
            term = self.analysis.weight_layouts[ref.tensor][ref.axis]
            assert term is not None
            yield (
                ref.tensor,
                np.moveaxis(array, ref.axis, 0).reshape(array.shape[ref.axis], -1),
                self.units(term),
            )

    def units(self, term: Any) -> npt.NDArray[np.int64]:
        """Unit index of the group for each index of an axis, or -1."""
        result = np.full(term.size, -1, np.int64)
        start = 0
        for atom in self.group.atoms:
            found = self.analysis.axes.units(term, atom)
            result = np.where(found >= 0, found + start, result)
            start += atom.size
        return result

    def combined(
        self, score: Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64]], FloatArray]
    ) -> FloatArray:
        """Sum over the group's weight axes, each scaled to a mean of one, so that no layer drowns the others.

        Vectors (biases, norm scales) say little and are left out unless there is nothing else.

        Args:
            score: ``(weight [n, rest], units [n])`` -> score per unit ``[size]``.
        """
        matrices = [np.zeros(self.group.size)]
        vectors = [np.zeros(self.group.size)]
        for _, weight, units in self.slices():
            found = score(weight.astype(np.float64), units)
            mean = found.mean()
            (matrices if weight.shape[1] > 1 else vectors).append(found / mean if mean > 0 else found)
        total: FloatArray = np.sum(matrices if len(matrices) > 1 else vectors, axis=0)
        return total

    def by_unit(self, per_index: npt.NDArray[Any], units: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows of an axis ``[n, rest]`` joined, one row a unit: ``[size, most * rest]``, zeros at the end."""
        counts = np.bincount(units[units >= 0], minlength=self.group.size)
        rows = np.zeros((self.group.size, int(counts.max(initial=1)), per_index.shape[1]), per_index.dtype)
        for unit, indices in enumerate(self.indices(units)):
            rows[unit, : len(indices)] = per_index[indices]
        return rows.reshape(self.group.size, -1)

    def indices(self, units: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """For each unit the indices of an axis that belong to it."""
        order = np.argsort(units, kind="stable")
        bounds = np.searchsorted(units[order], np.arange(self.group.size + 1))
        return [order[a:b] for a, b in itertools.pairwise(bounds)]

    def gather(self, per_index: FloatArray, units: npt.NDArray[np.int64]) -> FloatArray:
        """Sum a score per index into a score per unit: ``[size]``."""
        inside = units >= 0
        return np.bincount(units[inside], weights=per_index[inside], minlength=self.group.size).astype(
            np.float64
        )


Criterion = Callable[[GroupView], FloatArray]
_CRITERIA: dict[str, Criterion] = {}
_NEEDS: dict[str, frozenset[str]] = {}


def criterion(name: str, *, data: bool = False, gradients: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a criterion.

    Args:
        name: for ``--criterion``.
        data: it looks at calibration samples (``view.evidence``).
        gradients: it needs the training worker.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise ValueError(f"two criteria are called {name}")
        _CRITERIA[name] = function
        _NEEDS[name] = frozenset(k for k, v in (("data", data), ("gradients", gradients)) if v)
        return function

    return register


def needs(name: str) -> frozenset[str]:
    """What a criterion needs besides weights: ``data``, ``gradients``.

    Raises:
        ConfigError: there is no such criterion.
    """
    get(name)
    return _NEEDS[name]


def names() -> list[str]:
    """All criteria."""
    if not _CRITERIA:
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
            importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_CRITERIA)


def get(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no criterion is called '{name}'", hint=hint)
    return _CRITERIA[name]
