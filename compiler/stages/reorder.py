"""Before zeros in a pattern: channels change places, so that fewer large weights have to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.passes.contraction import places
from condensec.passes.permute import permute
from condensec.passes.prune import Cut, with_weights
from condensec.runner import Session
from condensec.sparsity import Sparsity
from condensec.stages.job import Job

Weights = Mapping[str, npt.NDArray[Any]]
SAME = 1e-4  # of the outputs' scale: sums in another order


def reordered(job: Job, cut: Cut, model: ir.Model, wanted: Sparsity) -> tuple[Cut, Weights, tuple[str, ...]]:
    """The order of channels in which N:M loses less.

    Args:
        job: the job.
        cut: the cut, not healed.
        model: the accepted model, healed.
        wanted: the pattern.

    Returns:
        The cut whose plan says in which order the channels are (for healing, which compares them with the
        original's), the weights that were moved, and notes. Nothing is moved unless the outputs stay.
    """
    if not wanted.m:
        return cut, {}, ()
    weights = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    fit = [p for p in places(model)[0] if p.size % wanted.m == 0]
    units = cut.plan.kept()
    found = permute(job.analysis, units, weights, fit, wanted.n, wanted.m, seed=job.config.seed)
    if not found.groups or not _same(job, model, with_weights(model, found.weights)):
        return cut, {}, ()
    slices = {**cut.plan.slices}
    for name, by_axis in found.order.items():
        slices[name] = {**slices.get(name, {}), **by_axis}
    note = f"channels of {len(found.groups)} groups changed places, so that larger weights could stay"
    return Cut(cut.model, replace(cut.plan, slices=slices)), found.weights, (note,)


def _same(job: Job, before: ir.Model, after: ir.Model) -> bool:
    """Whether both compute the same on calibration samples."""
    few = job.data.splits.calibration.first(8)
    runs = [Session(m, threads=job.config.jobs).run_samples(few) for m in (before, after)]
    for name, a in runs[0].items():
        b = runs[1][name]
        if a.dtype.kind != "f":
            continue
        scale = float(np.abs(a).max(initial=1e-6))
        if not np.abs(a - b).max(initial=0.0) <= SAME * scale:
            return False
    return True
