"""What is lost when the consumers are re-fitted, or aren't: greedy elimination on activation covariances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.criteria.magnitude import magnitude
from condensec.passes.sites import Site
from condensec.passes.statistics import covariance, group_sites, moments, weights

ROUNDS = 64  # in which a group is emptied: as many units go at once as that takes
RIDGE = 1e-3  # of the mean diagonal
WIDEST = 4096  # indices of an axis; on wider ones the inverse takes longer than it is worth


@criterion("obs", data=True)
def obs(view: GroupView) -> FloatArray:
    """Error of the consumers after their best re-fit: the optimal brain surgeon for whole units.

    With activations' covariance C and a consumer's weights W, removing the indices J of a unit and
    re-fitting the others costs ``tr(W_J^T [(C^-1)_JJ]^-1 W_J)`` (Hassibi & Stork 1993; Frantar & Alistarh
    2022, arXiv:2208.11580; for units Kurtic et al. 2023, arXiv:2302.04089). The cheapest units go, C^-1 and
    W follow, and so on. The score is when a unit goes. Closed-form healing makes the re-fit come true.
    Kernel positions of a convolution share one covariance of channels. On axes of more than `WIDEST` indices
    every unit is priced alone.
    """
    consumers = [
        _Refit(view, site) if site.term.size <= WIDEST else _Alone(view, site)
        for site in group_sites(view.evidence, view.group)
    ]
    return _emptied(view, consumers)


@criterion("thinet", data=True)
def thinet(view: GroupView) -> FloatArray:
    """Error of the consumers as they are: greedy, with correlations (Luo et al. 2017, arXiv:1707.06342).

    Removing units S costs ``sum over i, j in S of E[x_i x_j] w_i . w_j``. The score is when a unit goes.
    """
    return _emptied(view, [_AsIs(view, site) for site in group_sites(view.evidence, view.group)])


class _Consumer(Protocol):
    """What a removal costs at one place."""

    def prices(self) -> FloatArray:
        """Price of each unit ``[size]``, were it the next to go."""

    def remove(self, gone: npt.NDArray[np.int64], alive: npt.NDArray[np.bool_]) -> None:
        """These units are gone."""


def _emptied(view: GroupView, consumers: Sequence[_Consumer]) -> FloatArray:
    """Remove units, the cheapest first; the score is the position in that order."""
    size = view.group.size
    if not consumers:  # all inside bodies of If, Loop or Scan
        return magnitude(view)
    score = np.zeros(size)
    alive = np.ones(size, np.bool_)
    at_once = max(1, size // ROUNDS)
    while alive.any():
        price = sum((c.prices() for c in consumers), np.zeros(size))
        price = np.where(alive, price, np.inf)
        gone = np.argsort(price, kind="stable")[: min(at_once, int(alive.sum()))]
        score[gone] = size - alive.sum() + np.arange(len(gone)) + 1.0
        alive[gone] = False
        for c in consumers:
            c.remove(gone, alive)
    return score


class _Refit:
    """One consumer that is re-fitted after each removal."""

    def __init__(self, view: GroupView, site: Site) -> None:
        self._weight = weights(view.evidence, site).astype(np.float64)
        moment = covariance(view.evidence, site)
        diagonal = max(float(np.trace(moment)) / len(moment), 1e-12)
        self._total = max(float(np.einsum("i,ij,ij->", np.diag(moment), self._weight, self._weight)), 1e-30)
        self._inverse = np.linalg.inv(moment + RIDGE * diagonal * np.eye(len(moment)))
        self._units = view.indices(view.units(site.term))
        self._single = all(len(i) == 1 for i in self._units)
        self._first = np.array([i[0] if len(i) else 0 for i in self._units])

    def prices(self) -> FloatArray:
        if self._single:
            square = np.einsum("ij,ij->i", self._weight, self._weight)[self._first]
            return np.asarray(square / np.maximum(np.diag(self._inverse)[self._first], 1e-30) / self._total)
        return np.array([self._price(i) for i in self._units]) / self._total

    def _price(self, indices: npt.NDArray[np.int64]) -> float:
        if not len(indices):
            return 0.0
        w = self._weight[indices]
        block = self._inverse[np.ix_(indices, indices)]
        return float(np.einsum("ij,ij->", w, np.linalg.solve(block + 1e-30 * np.eye(len(block)), w)))

    def remove(self, gone: npt.NDArray[np.int64], alive: npt.NDArray[np.bool_]) -> None:
        """The weights that are left make up for it; the inverse is that of what is left."""
        j = np.concatenate([self._units[u] for u in gone])
        if not len(j) or not alive.any():
            return
        gain = np.linalg.solve(self._inverse[np.ix_(j, j)], self._inverse[j])  # [J, n]
        self._weight = self._weight - gain.T @ self._weight[j]
        self._inverse = self._inverse - self._inverse[:, j] @ gain
        self._weight[j] = 0.0
        self._inverse[j, :] = self._inverse[:, j] = 0.0
        self._inverse[j, j] = 1.0
        for unit in gone:
            self._units[unit] = self._units[unit][:0] if not self._single else self._units[unit]


class _Alone:
    """One consumer, too wide for a covariance: the mean square of each input times its weights'."""

    def __init__(self, view: GroupView, site: Site) -> None:
        w = weights(view.evidence, site).astype(np.float64)
        cost = moments(view.evidence)[site.key].square * np.einsum("ij,ij->i", w, w)
        self._prices = view.gather(cost, view.units(site.term)) / max(float(cost.sum()), 1e-30)

    def prices(self) -> FloatArray:
        return self._prices

    def remove(self, gone: npt.NDArray[np.int64], alive: npt.NDArray[np.bool_]) -> None:
        """The others cost what they did."""


class _AsIs:
    """One consumer that stays as it is."""

    def __init__(self, view: GroupView, site: Site) -> None:
        w = weights(view.evidence, site).astype(np.float64)
        mean = moments(view.evidence)[site.key].mean
        second = covariance(view.evidence, site) + np.outer(mean, mean)
        units = view.units(site.term)
        of_unit = np.zeros((view.group.size, len(units)))
        of_unit[units[units >= 0], np.flatnonzero(units >= 0)] = 1.0
        self._cost = of_unit @ (second * (w @ w.T)) @ of_unit.T
        self._cost /= max(float(np.trace(self._cost)), 1e-30)
        self._with_gone = np.zeros(view.group.size)

    def prices(self) -> FloatArray:
        return np.asarray(np.diag(self._cost) + 2 * self._with_gone)

    def remove(self, gone: npt.NDArray[np.int64], alive: npt.NDArray[np.bool_]) -> None:
        """What a further unit costs depends on those that are gone."""
        self._with_gone = self._with_gone + self._cost[:, gone].sum(axis=1)
