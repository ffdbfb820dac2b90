"""How much a unit contributes to what its consumers sum up, from calibration activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.criteria.magnitude import magnitude
from condensec.passes.statistics import Moments, group_sites, moments, weights


@criterion("activation", data=True)
def activation(view: GroupView) -> FloatArray:
    """Mean squared activation times the consumer's squared weights, summed over consumers.

    Wanda (Sun et al. 2024, arXiv:2306.11695) for units: what the consumer's output loses, correlations
    between units left aside.
    """
    return _contribution(view, lambda m: m.square)


@criterion("fluctuation", data=True)
def fluctuation(view: GroupView) -> FloatArray:
    """Variance of the activation times the consumer's squared weights, summed over consumers.

    FLAP (An et al. 2024, arXiv:2312.11983): a unit that hardly varies can be replaced by a bias, which
    closed-form healing does.
    """
    return _contribution(view, lambda m: m.variance)


def _contribution(view: GroupView, size: Callable[[Moments], FloatArray]) -> FloatArray:
    places = group_sites(view.evidence, view.group)
    if not places:  # all inside bodies of If, Loop or Scan
        return magnitude(view)
    found = moments(view.evidence)
    total = np.zeros(view.group.size)
    for site in places:
        square = (weights(view.evidence, site).astype(np.float64) ** 2).sum(axis=1)
        energy = square * size(found[site.key])
        share = energy / max(float(energy.sum()), np.finfo(np.float64).tiny)  # consumers count alike
        total += view.gather(share, view.units(site.term))
    return total
