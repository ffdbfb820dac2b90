"""Size of the weights of a unit, over everything that would go with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from condensec.passes.criteria import FloatArray, GroupView, criterion


def _combined(view: GroupView, size: Callable[[npt.NDArray[np.float64]], FloatArray]) -> FloatArray:
    """Sum over the group's weight axes, each scaled to a mean of one, so that no layer drowns the others.

    Vectors (biases, norm scales) say little about size and are left out unless there is nothing else.
    """
    matrices = [np.zeros(view.group.size)]
    vectors = [np.zeros(view.group.size)]
    for _, weight, units in view.slices():
        score = view.gather(size(weight.astype(np.float64)), units)
        mean = score.mean()
        (matrices if weight.shape[1] > 1 else vectors).append(score / mean if mean > 0 else score)
    total: FloatArray = np.sum(matrices if len(matrices) > 1 else vectors, axis=0)
    return total


@criterion("magnitude")
def magnitude(view: GroupView) -> FloatArray:
    """L1 norm of the unit's weights (Li et al. 2017, arXiv:1608.08710), summed over coupled layers."""
    return _combined(view, lambda w: np.abs(w).sum(axis=1))


@criterion("l2")
def l2(view: GroupView) -> FloatArray:
    """Squared L2 norm of the unit's weights, summed over coupled layers (DepGraph, arXiv:2301.12900)."""
    return _combined(view, lambda w: (w * w).sum(axis=1))
