"""How far a unit's weights lie from those of all others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from condensec.passes.criteria import FloatArray, GroupView, criterion


@criterion("fpgm")
def fpgm(view: GroupView) -> FloatArray:
    """Filter pruning via geometric median (He et al. 2019, arXiv:1811.00250), summed over coupled layers.

    ``score(u) = sum over v of |w_u - w_v|``: a unit near the geometric median can be replaced by the others.
    """

    def score(weight: npt.NDArray[np.float64], units: npt.NDArray[np.int64]) -> FloatArray:
        rows = view.by_unit(weight, units)
        square = np.einsum("ij,ij->i", rows, rows)
        distance = np.maximum(square[:, None] + square[None, :] - 2 * rows @ rows.T, 0.0)
        return np.asarray(np.sqrt(distance).sum(axis=1), np.float64)

    return view.combined(score)
