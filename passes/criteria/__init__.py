"""Importance criteria: one score per unit of a group; the lowest go first.

One file a criterion, registered by being there:

    @criterion("magnitude")
    def magnitude(view: GroupView) -> FloatArray: ...
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import ConfigError
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
    """

    analysis: Analysis
    group: Group
    weights: Mapping[str, npt.NDArray[Any]]
    seed: int = 0

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

    def gather(self, per_index: FloatArray, units: npt.NDArray[np.int64]) -> FloatArray:
        """Sum a score per index into a score per unit: ``[size]``."""
        inside = units >= 0
        return np.bincount(units[inside], weights=per_index[inside], minlength=self.group.size).astype(
            np.float64
        )


Criterion = Callable[[GroupView], FloatArray]
_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise ValueError(f"two criteria are called {name}")
        _CRITERIA[name] = function
        return function

    return register


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
