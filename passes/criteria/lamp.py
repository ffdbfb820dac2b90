"""Size of a unit's weights beside those of all units that are at least as large."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from condensec.passes.criteria import FloatArray, GroupView, criterion


@criterion("lamp")
def lamp(view: GroupView) -> FloatArray:
    """LAMP (Lee et al. 2021, arXiv:2010.07611) for units, summed over coupled layers.

    ``score(u) = |w_u|^2 / sum of |w_v|^2 over all v with |w_v| >= |w_u|``: the largest has 1, and scores of
    different layers can be compared.
    """

    def score(weight: npt.NDArray[np.float64], units: npt.NDArray[np.int64]) -> FloatArray:
        size = view.gather((weight * weight).sum(axis=1), units)
        order = np.argsort(size, kind="stable")
        above = np.cumsum(size[order][::-1])[::-1]  # of a unit and all that come after it
        result = np.zeros(len(size))
        result[order] = size[order] / np.maximum(above, np.finfo(np.float64).tiny)
        return result

    return view.combined(score)
