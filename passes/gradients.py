"""Gradients with respect to units: the super-graph's masks, one sample at a time."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec import serialized
from condensec.errors import CondensecError, HealError, PreconditionError
from condensec.passes.bodies import is_open
from condensec.passes.criteria import GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Group
from condensec.passes.sampling import affordable, run
from condensec.passes.sites import sites
from condensec.passes.supergraph import SuperGraph, build
from condensec.runner import Session

Array = npt.NDArray[Any]
MOST = 256  # samples
SECONDS = 30.0  # about what the backward passes may take; fewer samples where the model is large
PASSES = 4  # forward runs that a backward pass takes the time of
BATCH_BYTES = 1 << 28  # of the values of one sample batch; the backward pass keeps most of them


def unit_gradients(evidence: Evidence, group: Group) -> Array:
    """Gradient of each sample's probe with respect to each unit's mask: ``[samples, size]``.

    For probes see `condensec.healing.gradients`. A unit that is contracted in several places has one mask:
    its gradient is the sum over them.

    Args:
        evidence: model and samples.
        group: the units.

    Raises:
        HealError: gradients can't be had.
    """
    graph, found = evidence.once("gradients", lambda: _collect(evidence))
    count = len(next(iter(found.values()))) if found else 1
    total = np.zeros((count, group.size))
    view = GroupView(evidence.analysis, group, {})
    ids = {a.id for a in group.atoms}
    for point in graph.points:
        if any(a.id in ids for a in evidence.analysis.axes.atoms(point.term)):
            units = view.units(point.term)
            inside = np.flatnonzero(units >= 0)
            np.add.at(total.T, units[inside], found[point.name].T[inside])
    return total


def _collect(evidence: Evidence) -> tuple[SuperGraph, dict[str, Array]]:
    from condensec.healing.gradients import mask_gradients

    analysis = evidence.analysis
    body = next((node for node in analysis.model.graph if is_open(node)), None)
    if body is not None:
        raise HealError(
            f"gradients don't pass through {body.op_type.removesuffix('Enter')} '{body.name}'",
            hint="choose a criterion without gradients",
        )
    samples = evidence.samples.first(min(MOST, affordable(PASSES * analysis.macs(), 1, SECONDS)))
    graph = build(analysis)
    whole = graph.masks(analysis.kept({}))
    reference = run(Session(graph.model, threads=evidence.threads), samples, whole)
    try:
        proto = serialized.whole(graph.model)
    except Exception as error:  # weights above protobuf's limit, or missing
        raise PreconditionError(f"the masked model can't be written: {error}") from error
    found = mask_gradients(
        proto,
        {p.name: p.shape for p in graph.points},
        samples,
        reference,
        batch=_batch(evidence),
        threads=evidence.threads,
        seed=evidence.seed,
    )
    if not all(np.isfinite(array).all() for array in found.values()):
        raise CondensecError("gradients of the masks aren't finite")
    return graph, found


def _batch(evidence: Evidence) -> int:
    """Samples a backward pass: as memory allows; one where a masked value's axis 0 isn't the sample."""
    analysis = evidence.analysis
    world = analysis.world
    batch = max(1, min((s[0] for s in world.inputs.values() if s), default=1))
    for site in sites(analysis):
        shape = world.shape(site.source)
        if site.axis == 0 or not shape or shape[0] != batch:
            return 1
    size = 0
    for node in analysis.model.graph:
        for value in node.outputs:
            size += 4 * prod(world.shape(value) or (0,))
    return int(max(1, min(32, BATCH_BYTES // max(1, size // batch))))
