"""The control that any other criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np

from condensec.passes.criteria import FloatArray, GroupView, criterion


@criterion("random")
def random_choice(view: GroupView) -> FloatArray:
    """Uniform draws, seeded by the seed and the group's id."""
    rng = np.random.default_rng((view.seed, zlib.crc32(view.group.id.encode())))
    return rng.random(view.group.size)
