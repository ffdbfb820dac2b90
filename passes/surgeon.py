"""The optimal brain surgeon, column by column: set weights to zero, and let the later columns make up for it.

SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): with the second moment H of a layer's inputs, the
Cholesky factor U of H^-1 = U'U gives, for the columns in order, the update of all later ones after a weight
of column j goes: ``W[:, j:] -= W[:, j] / U[j, j] * U[j, j:]``, and its price ``(W[:, j] / U[j, j])^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
BLOCK = 128
RIDGE = 1e-2  # of the mean diagonal


def factor(moment: FloatArray) -> FloatArray:
    """Upper Cholesky factor of the inverse of a second moment ``[columns, columns]``."""
    mean = float(np.trace(moment)) / len(moment)
    damped = moment + (RIDGE * mean if mean > 0 else 1.0) * np.eye(len(moment))
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def solve(
    weight: npt.NDArray[Any],
    upper: FloatArray,
    choose: Callable[[FloatArray, int], Bools],
    block: int = BLOCK,
) -> tuple[FloatArray, Bools]:
    """Zeros and the weights that make up for them.

    Args:
        weight: ``[rows, columns]``.
        upper: see `factor`.
        choose: (prices ``[rows, width]`` of a block of columns, its first column) -> which stay.
        block: columns a choice is made for.

    Returns:
        The new weight, and which of it stay, both ``[rows, columns]``.
    """
    w = np.array(weight, np.float64)
    stay = np.ones(w.shape, np.bool_)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        diagonal = np.diag(upper)[start:stop]
        stay[:, start:stop] = choose(np.square(w[:, start:stop] / diagonal), start)
        errors = np.zeros((len(w), stop - start))
        for j in range(start, stop):
            error = np.where(stay[:, j], 0.0, w[:, j]) / upper[j, j]
            w[:, j:stop] -= np.outer(error, upper[j, j:stop])
            errors[:, j - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    w[~stay] = 0.0
    return w, stay


def damage(before: npt.NDArray[Any], after: npt.NDArray[Any], moment: FloatArray | None) -> float:
    """Share of a layer's output energy that changes: ``|X (W - V)'|^2 / |X W'|^2``; without data of W.

    Args:
        before: ``[groups, rows, columns]``.
        after: the same shape.
        moment: ``[groups, columns, columns]``, or the mean squares ``[groups, columns]``.
    """
    w, gap = before.astype(np.float64), before.astype(np.float64) - after

    def energy(x: FloatArray) -> float:
        if moment is None:
            return float(np.square(x).sum())
        if moment.ndim == 2:
            return float((np.square(x) * moment[:, None, :]).sum())
        return float((np.matmul(x, moment) * x).sum())

    return energy(gap) / max(energy(w), 1e-30)
