"""Ridge least squares with its strength chosen by hold-out, and its rectified form.

The ridge pulls towards the weights that are there, not towards zero: where the samples say nothing, the
original's knowledge stays. Where a Relu follows, what is negative in both worlds needn't be fitted; the
targets there are set to the prediction and the system is solved again (after Zhang et al., "Accelerating
Very Deep Convolutional Networks", 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ROUNDS = 4  # of the rectified form; it converges in three to five


@dataclass(frozen=True)
class Fit:
    """A solution.

    Attributes:
        weight: [features, outputs].
        bias: [outputs].
        before: hold-out error of the weights as they were, relative to the target's variance.
        after: the same of the solution.
        ridge: the strength chosen, relative to the mean diagonal.
    """

    weight: np.ndarray
    bias: np.ndarray
    before: float
    after: float
    ridge: float


@dataclass(frozen=True)
class Problem:
    """Rows of one regression.

    Attributes:
        x: [rows, features].
        y: [rows, outputs], what x @ weight + bias should give.
        held: [rows] bool, rows of hold-out samples.
        rectified: max(. + offset, 0) is what counts.
        offset: [rows, outputs], added before the rectifier (a residual branch); None = nothing.
    """

    x: np.ndarray
    y: np.ndarray
    held: np.ndarray
    rectified: bool
    offset: np.ndarray | None

    def error(self, prediction: np.ndarray, rows: np.ndarray | slice) -> float:
        """Squared error at some rows over the target's variance there, behind the rectifier if any."""
        p, t = prediction, self.y[rows]
        if self.rectified:
            shift = 0.0 if self.offset is None else self.offset[rows]
            p, t = np.maximum(p + shift, 0), np.maximum(t + shift, 0)
        return float(np.square(p - t).sum() / max(float(np.square(t - _mean(t)).sum()), 1e-12))

    def relaxed(self, prediction: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """Targets, but the prediction itself where both are below the rectifier's zero."""
        shift = 0.0 if self.offset is None else self.offset[rows]
        t = self.y[rows]
        return np.where((t + shift <= 0) & (prediction + shift <= 0), prediction, t)


def rows_where(chosen: np.ndarray) -> np.ndarray | slice:
    """Places of the True in [rows]; a slice where they follow one another: that copies no rows."""
    found = np.flatnonzero(chosen)
    if len(found) and found[-1] - found[0] + 1 == len(found):
        return slice(int(found[0]), int(found[-1]) + 1)
    return found


def _mean(rows: np.ndarray) -> np.ndarray:
    """[rows, n] -> [n]. As a product: of narrow rows NumPy's own mean takes ten times as long."""
    ones = np.full(len(rows), 1 / len(rows), rows.dtype)
    found: np.ndarray = ones @ rows
    return found


def fit(problem: Problem, weight: np.ndarray, bias: np.ndarray, *, free_bias: bool) -> Fit:
    """Solve one problem.

    The ridge is chosen on held-out rows by the plain solution; then the rectified form is tried with it;
    the better of the two is solved again on all rows.

    Args:
        problem: the rows.
        weight: [features, outputs] as they are.
        bias: [outputs] as it is (zeros where there is none).
        free_bias: the bias may change.
    """
    train, held = rows_where(~problem.held), rows_where(problem.held)
    start = (weight, bias)
    before = problem.error(problem.x[held] @ weight + bias, held)
    system = _System(problem, train, start, free_bias)
    best = Fit(weight, bias, before, before, float("inf"))
    for ridge in RIDGES:
        solved = system.solve(ridge, 0)
        error = problem.error(problem.x[held] @ solved[0] + solved[1], held)
        if error < best.after:
            best = Fit(*solved, before, error, ridge)
    if not np.isfinite(best.ridge):
        return best
    rounds = 0
    if problem.rectified:
        solved = system.solve(best.ridge, _ROUNDS)
        error = problem.error(problem.x[held] @ solved[0] + solved[1], held)
        if error < best.after:
            rounds, best = _ROUNDS, Fit(*solved, before, error, best.ridge)
    # What is to be done is settled; now all rows may speak.
    final = _System(problem, slice(None), start, free_bias).solve(best.ridge, rounds)
    return Fit(*final, before, best.after, best.ridge)


class _System:
    """Normal equations of the correction to the weights as they are, on some rows.

    With fewer rows than features they're solved in the space of the rows (``X^T (X X^T + r)^-1`` is
    ``(X^T X + r)^-1 X^T``), which is the smaller one.
    """

    def __init__(
        self,
        problem: Problem,
        rows: np.ndarray | slice,
        start: tuple[np.ndarray, np.ndarray],
        free_bias: bool,
    ) -> None:
        self._problem, self._rows, self._free_bias = problem, rows, free_bias
        self._weight, self._bias = start
        self._x = problem.x[rows]
        count, features = self._x.shape
        self._mean = _mean(self._x) if free_bias else np.zeros(features, np.float32)
        self._centred = self._x - self._mean if count < features else None
        if self._centred is None:
            centre = self._mean.astype(np.float64)
            self._gram = (self._x.T @ self._x).astype(np.float64) - count * np.outer(centre, centre)
        else:
            self._gram = (self._centred @ self._centred.T).astype(np.float64)
        self._diagonal = max(float(np.trace(self._gram)) / features, 1e-12)
        self._start = self._x @ self._weight + self._bias  # what the weights as they are give
        self._right = self._side(problem.y[rows])

    def _side(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(right-hand side, mean residual) of a target."""
        residual = target - self._start
        shift = _mean(residual) if self._free_bias else np.zeros(residual.shape[1], np.float32)
        right = residual - shift
        return (self._x.T @ right if self._centred is None else right).astype(np.float64), shift

    def solve(self, ridge: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias) at one strength, with so many rounds of the rectified form."""
        regular = self._gram + ridge * self._diagonal * np.eye(len(self._gram))
        right, shift = self._right
        if not rounds:
            return self._moved(np.linalg.solve(regular, right), shift)
        inverse = np.linalg.inv(regular)
        weight, bias = self._moved(inverse @ right, shift)
        for _ in range(rounds):
            right, shift = self._side(self._problem.relaxed(self._x @ weight + bias, self._rows))
            weight, bias = self._moved(inverse @ right, shift)
        return weight, bias

    def _moved(self, solution: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias) with the correction that solves the equations."""
        change = solution if self._centred is None else self._centred.T.astype(np.float64) @ solution
        bias = self._bias + shift - self._mean @ change if self._free_bias else self._bias
        return (self._weight + change).astype(np.float32), np.asarray(bias, np.float32)
