"""Size of the weights of a unit, over everything that would go with it."""

from __future__ import annotations

import numpy as np

from condensec.passes.criteria import FloatArray, GroupView, criterion


@criterion("magnitude")
def magnitude(view: GroupView) -> FloatArray:
    """L1 norm of the unit's weights (Li et al. 2017, arXiv:1608.08710), summed over coupled layers."""
    return view.combined(lambda w, units: view.gather(np.abs(w).sum(axis=1), units))


@criterion("l2")
def l2(view: GroupView) -> FloatArray:
    """Squared L2 norm of the unit's weights, summed over coupled layers (DepGraph, arXiv:2301.12900)."""
    return view.combined(lambda w, units: view.gather((w * w).sum(axis=1), units))
