"""Whether a cut and healed candidate of a job has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from condensec.collapse import Collapse, Place, Watch
from condensec.passes.sites import sites
from condensec.stages.job import Job

SAMPLES = 32
NAMED = 2  # findings in a note


def collapsed(job: Job, model: ir.Model, units: Mapping[str, Sequence[int]]) -> tuple[Collapse, ...]:
    """What has collapsed in a candidate, the worst first.

    Args:
        job: the job.
        model: cut, with its weights.
        units: kept units by group id.
    """
    kept = job.analysis.kept(units)
    left = {s.key[0]: kept.indices(s.term).tolist() for s in sites(job.analysis) if s.observable}
    return job.once("watch", lambda: _watch(job)).check(model, left)


def _watch(job: Job) -> Watch:
    analysis = job.analysis
    owner = {a.id: g.id for g in analysis.groups for a in g.atoms}
    places: dict[str, Place] = {}
    for site in (s for s in sites(analysis) if s.observable):
        group = next(owner[a.id] for a in analysis.axes.atoms(site.term) if a.id in owner)
        places.setdefault(site.key[0], Place(group, site.key[0], site.axis))
    samples = job.data.splits.calibration.first(SAMPLES)
    return Watch(analysis.runnable, list(places.values()), samples, job.config.jobs)


def forbids(job: Job, found: Sequence[Collapse]) -> bool:
    """Whether a candidate must not be gone on from. Without a guard (``--max-drop inf``) nothing does."""
    return math.isfinite(job.config.max_drop) and any(c.fatal for c in found)


def note(found: Sequence[Collapse]) -> str:
    """What a cycle's note says of it."""
    named = [c.detail for c in found if c.fatal][:NAMED]
    more = sum(c.fatal for c in found) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")
