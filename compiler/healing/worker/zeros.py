"""Zeros that stay, and more and more of them while a network trains (Zhu & Gupta 2017, arXiv:1710.01878).

The share of zeros rises as a cubic, quick while there is much to take and slow at the end; it is complete
well before the run is, and what is zero by then stays zero. Which weights go is decided anew at each level,
by what they cost as they are by then; those that are zero already cost nothing, so they stay so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .optimizer import Flat

LEVELS = 24  # so many times more become zero
UNTIL = 0.5  # share of the run in which all of them do
TRIED = 0.5  # of that: the zeros that step sizes are tried with


class Zeros:
    """Says which weights are zero at a share of the run.

    Args:
        weights: all that is trained, as they are.
        kept: names of tensors that keep the zeros they have now.
        counts: zeros of a tensor at the end, by name; without any nothing comes.
        prices: what a unit of a weight's square costs, in the tensor's shape; absent = 1.

    Attributes:
        level: how far it is, of `LEVELS`.
    """

    def __init__(
        self,
        weights: Flat,
        kept: Collection[str] = (),
        counts: Mapping[str, int] | None = None,
        prices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._weights, self._counts, self._prices = weights, counts or {}, prices or {}
        self._kept = np.zeros(weights.buffer.size, np.bool_)
        for name, at in weights.places():
            if name in kept:
                self._kept[at] = weights.buffer[at] == 0
        self.level = 0

    @classmethod
    def of(cls, request: Mapping[str, Any], weights: Flat) -> Zeros:
        """As a request has them."""
        counts: dict[str, int] = request.get("thin") or {}
        prices: dict[str, np.ndarray] = {}
        if counts:
            with np.load(request["prices"], allow_pickle=False) as stored:
                prices = {
                    name: stored[f"w{i}"] for i, name in enumerate(weights.views) if f"w{i}" in stored.files
                }
        return cls(weights, request.get("zeros", []), counts, prices)

    @property
    def complete(self) -> bool:
        """Whether all zeros are there."""
        return self.level >= LEVELS or not self._counts

    def is_due(self, share: float) -> bool:
        """Whether it's time for more zeros, at a share of the run."""
        return bool(self._counts) and _level(share) > self.level

    def reach(self, share: float) -> np.ndarray | None:
        """Where the weights are to be zero from now on, as a mask of the buffer; None: nowhere."""
        self.level = _level(share)
        return self._mask()

    def again(self, level: int) -> np.ndarray | None:
        """The same at a level, as `level` was in an earlier process."""
        self.level = level
        return self._mask()

    def _mask(self) -> np.ndarray | None:
        gone = 1 - (1 - self.level / LEVELS) ** 3
        found = self._kept.copy()
        for name, at in self._weights.places():
            count = round(gone * self._counts.get(name, 0))
            if count:
                found[at] = self._cheapest(name, count)
        return found if found.any() else None

    def _cheapest(self, name: str, count: int) -> np.ndarray:
        cost = np.square(self._weights.views[name].ravel(), dtype=np.float64)
        price = self._prices.get(name)
        if price is not None:
            cost *= price.ravel()
        found = np.zeros(cost.size, np.bool_)
        found[np.argsort(cost, kind="stable")[:count]] = True
        return found


def _level(share: float) -> int:
    return min(LEVELS, int(LEVELS * share / UNTIL + 1e-9))
