"""More and more zeros while a network trains (Zhu & Gupta 2017, arXiv:1710.01878).

The share of zeros rises as a cubic, quick while there is much to take and slow at the end; it is complete
well before the run is, and what is zero by then stays zero. Which weights go is decided anew at each level,
by what they cost as they are by then; those that are zero already cost nothing, so they stay so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .optimizer import Flat

LEVELS = 24  # so many times more become zero
UNTIL = 0.5  # share of the run in which all of them do
TRIED = 0.5  # of that: the zeros that step sizes are tried with


@dataclass
class Thinning:
    """Says which weights are zero at a share of the run.

    Attributes:
        weights: all that is trained, as they are.
        counts: zeros of a tensor at the end, by name.
        prices: what a unit of a weight's square costs, in the tensor's shape; absent = 1.
        level: how far it is, of `LEVELS`.
    """

    weights: Flat
    counts: Mapping[str, int]
    prices: Mapping[str, np.ndarray] = field(default_factory=dict)
    level: int = 0

    @property
    def complete(self) -> bool:
        """Whether all zeros are there."""
        return self.level >= LEVELS

    def is_due(self, share: float) -> bool:
        """Whether it's time for more zeros, at a share of the run."""
        return _level(share) > self.level

    def reach(self, share: float) -> np.ndarray:
        """Where the weights are to be zero from now on, as a mask of the buffer."""
        self.level = _level(share)
        gone = 1 - (1 - self.level / LEVELS) ** 3
        fixed = np.zeros(self.weights.buffer.size, np.bool_)
        start = 0
        for name, view in self.weights.views.items():
            count = round(gone * self.counts.get(name, 0))
            if count:
                fixed[start : start + view.size] = self._cheapest(name, view, count)
            start += view.size
        return fixed

    def _cheapest(self, name: str, view: np.ndarray, count: int) -> np.ndarray:
        cost = np.square(view.ravel(), dtype=np.float64)
        price = self.prices.get(name)
        if price is not None:
            cost *= price.ravel()
        found = np.zeros(view.size, np.bool_)
        found[np.argsort(cost, kind="stable")[:count]] = True
        return found


def _level(share: float) -> int:
    return min(LEVELS, int(LEVELS * share / UNTIL + 1e-9))
