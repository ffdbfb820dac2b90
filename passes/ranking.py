"""Ranking: curves out of scores alone, for choosing widths where nothing was measured.

Measured curves (`condensec.passes.sensitivity`) know what a group is worth to the outputs. Without them,
scores of units can be compared across groups, in three ways; which is right depends on whether the
criterion's scores have one scale in all groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from condensec.errors import ConfigError
from condensec.passes.groups import Analysis, Group
from condensec.passes.sensitivity import Curve, Sensitivity

FloatArray = npt.NDArray[np.float64]
LOCAL, GLOBAL, ISOMORPHIC = "local", "global", "isomorphic"


def ranked(analysis: Analysis, scores: Mapping[str, FloatArray], how: str) -> Sensitivity:
    """Curves that say: a cut costs the sum of the scores of the units that go.

    Args:
        analysis: groups of the uncut model.
        scores: group id -> score per unit, not negative.
        how: ``local``: the scores of every group sum to one, all groups alike; ``global``: scores as they
            are; ``isomorphic``: scores over their mean in all groups of the same kind and shape, which are
            ranked together (Fang et al. 2024, arXiv:2407.04616).

    Raises:
        ConfigError: there is no such way.
    """
    if how not in (LOCAL, GLOBAL, ISOMORPHIC):
        raise ConfigError(f"no ranking is called '{how}'", hint=f"there are {LOCAL}, {GLOBAL}, {ISOMORPHIC}")
    alike: dict[object, list[FloatArray]] = {}
    for group in analysis.groups:
        alike.setdefault(shape_of(analysis, group), []).append(scores[group.id])
    curves = {}
    for group in analysis.groups:
        score = np.sort(scores[group.id].astype(np.float64))
        if how == LOCAL:
            score = score / max(float(score.sum()), 1e-30)
        elif how == ISOMORPHIC:
            mean = float(np.concatenate(alike[shape_of(analysis, group)]).mean())
            score = score / max(mean, 1e-30)
        lost = np.concatenate([[0.0], np.cumsum(score)[: group.size - 1]])
        curves[group.id] = Curve(tuple(range(group.size, 0, -1)), tuple(float(x) for x in lost))
    return Sensitivity(curves, 0, 0.0)


def shape_of(analysis: Analysis, group: Group) -> tuple[object, ...]:
    """What groups of one kind have in common: kind, size, and the shapes of the weights they lie on."""
    shapes = []
    for ref in group.axes:
        tensor = analysis.model.graph.initializers[ref.tensor].const_value
        shapes.append((ref.axis, tuple(tensor.shape.numpy()) if tensor is not None else ()))
    return (group.kind, group.size, tuple(sorted(shapes)))
