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
_ROUNDS = 6  # of the rectified form; it converges in three to five


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

    def error(self, prediction: np.ndarray, rows: np.ndarray) -> float:
        """Squared error at some rows over the target's variance there, behind the rectifier if any."""
        p, t = prediction, self.y[rows]
        if self.rectified:
            shift = 0.0 if self.offset is None else self.offset[rows]
            p, t = np.maximum(p + shift, 0), np.maximum(t + shift, 0)
        return float(np.square(p - t).sum() / max(float(np.square(t - t.mean(0)).sum()), 1e-12))

    def relaxed(self, prediction: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Targets, but the prediction itself where both are below the rectifier's zero."""
        shift = 0.0 if self.offset is None else self.offset[rows]
        t = self.y[rows]
        return np.where((t + shift <= 0) & (prediction + shift <= 0), prediction, t)


def fit(problem: Problem, weight: np.ndarray, bias: np.ndarray, *, free_bias: bool) -> Fit:
    """Solve one problem.

    Args:
        problem: the rows.
        weight: [features, outputs] as they are.
        bias: [outputs] as it is (zeros where there is none).
        free_bias: the bias may change.
    """
    train, held = np.flatnonzero(~problem.held), np.flatnonzero(problem.held)
    before = problem.error(problem.x[held] @ weight + bias, held)
    best = Fit(weight, bias, before, before, float("inf"))
    system = _System(problem, train, weight, bias, free_bias)
    for ridge in RIDGES:
        solved = system.solve(ridge)
        if solved is None:
            continue
        error = problem.error(problem.x[held] @ solved[0] + solved[1], held)
        if error < best.after:
            best = Fit(*solved, before, error, ridge)
    if not np.isfinite(best.ridge):
        return best
    # The strength is chosen; now all rows may speak.
    everything = _System(problem, np.arange(len(problem.x)), weight, bias, free_bias).solve(best.ridge)
    return best if everything is None else Fit(*everything, before, best.after, best.ridge)


class _System:
    """Normal equations of the correction to the weights as they are, on some rows."""

    def __init__(
        self, problem: Problem, rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, free_bias: bool
    ) -> None:
        self._problem, self._rows = problem, rows
        self._weight, self._bias, self._free_bias = weight, bias, free_bias
        x = problem.x[rows]
        self._mean = x.mean(0) if free_bias else np.zeros(x.shape[1], np.float32)
        self._x = x - self._mean if free_bias else x
        self._raw = x
        self._gram = (self._x.T @ self._x).astype(np.float64)
        self._diagonal = max(float(np.trace(self._gram)) / len(self._gram), 1e-12)

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray] | None:
        """(weight, bias); None if the system can't be solved."""
        regular = self._gram + ridge * self._diagonal * np.eye(len(self._gram))
        try:
            inverse = np.linalg.inv(regular) if self._problem.rectified else None
        except np.linalg.LinAlgError:
            return None
        target = self._problem.y[self._rows]
        weight, bias = self._step(target, regular, inverse)
        if weight is None or not np.isfinite(weight).all():
            return None
        for _ in range(_ROUNDS if self._problem.rectified else 0):
            target = self._problem.relaxed(self._raw @ weight + bias, self._rows)
            weight, bias = self._step(target, regular, inverse)
        return weight.astype(np.float32), bias.astype(np.float32)

    def _step(
        self, target: np.ndarray, regular: np.ndarray, inverse: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        residual = target - self._raw @ self._weight - self._bias
        shift = residual.mean(0) if self._free_bias else np.zeros(residual.shape[1], np.float32)
        right = (self._x.T @ (residual - shift)).astype(np.float64)
        change = inverse @ right if inverse is not None else np.linalg.solve(regular, right)
        weight = self._weight + change
        bias = self._bias + shift - self._mean @ change if self._free_bias else self._bias
        return weight.astype(np.float32), np.asarray(bias, np.float32)
