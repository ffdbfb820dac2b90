"""What the loss says of a unit: first and second order of its Taylor expansion in the unit's mask."""

from __future__ import annotations

import numpy as np

from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.gradients import unit_gradients


@criterion("taylor", data=True, gradients=True)
def taylor(view: GroupView) -> FloatArray:
    """Mean over samples of |dL/dm| at m = 1 (Molchanov et al. 2017, arXiv:1611.06440).

    The derivative by the mask is the activation times its gradient, summed over positions: the formula of
    the paper. Gradients come from the training worker; see `condensec.healing.gradients` for the loss.
    """
    return np.asarray(np.abs(unit_gradients(view.evidence, view.group)).mean(axis=0))


@criterion("fisher", data=True, gradients=True)
def fisher(view: GroupView) -> FloatArray:
    """Mean over samples of (dL/dm)^2: the diagonal of the Fisher information of the masks.

    Twice what the loss rises by when one unit goes, to second order (Theis et al. 2018, arXiv:1801.05787;
    Liu et al. 2021, arXiv:2108.00708, for coupled channels).
    """
    return np.asarray(np.square(unit_gradients(view.evidence, view.group)).mean(axis=0))
