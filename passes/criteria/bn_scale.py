"""Scales of the batch normalizations a unit passes."""

from __future__ import annotations

import numpy as np

from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.criteria.magnitude import magnitude


@criterion("bn-scale")
def bn_scale(view: GroupView) -> FloatArray:
    """|gamma| of batch normalization (network slimming, Liu et al. 2017, arXiv:1708.06519), summed.

    Exporters like to fold normalizations into convolutions; a group without any gets `magnitude`.
    """
    graph = view.analysis.model.graph
    scales = {
        n.inputs[1].name for n in graph if n.op_type == "BatchNormalization" and n.inputs[1] is not None
    }
    total, found = np.zeros(view.group.size), False
    for name, weight, units in view.slices():
        if name in scales:
            score = view.gather(np.abs(weight.astype(np.float64)).sum(axis=1), units)
            total += score / max(float(score.mean()), np.finfo(np.float64).tiny)
            found = True
    return total if found else magnitude(view)
