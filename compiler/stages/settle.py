"""Settling the aim: it is measured before anything is healed, and moved to the latency that was asked for.

Weights don't matter for time, so a cut can be timed as soon as it is chosen. Tables err by a few percent, in
either direction: too slow misses the budget, too fast has cut more than was asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from condensec.hardware.latency import LatencyModel
from condensec.hardware.protocol import Protocol
from condensec.passes.prune import prune
from condensec.passes.widths import Goal, Widths, taken_out
from condensec.stages import finish
from condensec.stages.aims import aimed
from condensec.stages.emissions import written
from condensec.stages.goals import Limit
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

ROUNDS = 3
NEAR = (0.97, 1.01)  # of what was asked for: nearer than a measurement repeats
MET = 1.02  # met so far that it counts
QUICK = Protocol(pairs=15, min_seconds=0.5, max_seconds=8.0)
Shares = Mapping[str, float]


def settled(
    job: Job, means: Means, steps: Steps, models: Mapping[str, LatencyModel], progress: Progress
) -> Progress:
    """The progress with an aim whose latency is the one asked for, as near as grid and three rounds come.

    Left as it is where no latency was asked for, or where precision is chosen when the healed graph is
    emitted.
    """
    limits = [limit for limit in means.budgets.limits if limit.target]
    if not progress.aim or not limits or not means.budgets.asked or job.config.quantize != "none":
        return progress
    tried: list[tuple[float, Progress]] = []
    for _ in range(ROUNDS):
        shares = steps.run("measure", measured, job, means, models, limits, progress)
        tried.append((max(shares[limit.key] / _allowed(limit) for limit in limits), progress))
        if NEAR[0] <= tried[-1][0] <= NEAR[1]:
            break
        correction = {**progress.correction, **_correction(job, limits, progress, shares)}
        moved = aimed(job, means, steps, replace(progress, correction=correction, aim={}))
        if any(dict(moved.aim) == dict(known.aim) for _, known in tried):
            break
        progress = moved
    return _nearest(tried)


def measured(
    job: Job, means: Means, models: Mapping[str, LatencyModel], limits: list[Limit], progress: Progress
) -> dict[str, float]:
    """Share of the original's latency that the aim leaves, by limit: measured, where it isn't modelled."""
    cut = prune(
        job.analysis,
        means.units(job, progress.aim),
        layers=taken_out(job.analysis, progress.aim),
        sha256=job.sha256,
    )
    found = {}
    targets = {target.name: target for target in job.targets}
    with tempfile.TemporaryDirectory(prefix="condensec-aim-") as folder:
        for limit in limits:
            target = targets[limit.target]
            artifact = written(job, target, cut.model, Path(folder) / target.name)
            comparison, predicted = finish.timed(job, target, artifact, models, QUICK)
            if comparison is not None:
                found[limit.key] = comparison.ratio
            else:
                assert predicted is not None
                found[limit.key] = predicted[1] / max(predicted[0], 1e-30)
    return found


def _allowed(limit: Limit) -> float:
    """What was asked for, as a share of the original's latency."""
    return limit.limit / limit.dense if limit.dense else 1.0


def _correction(job: Job, limits: list[Limit], progress: Progress, shares: Shares) -> dict[str, float]:
    """Measured over predicted share."""
    found = {}
    for limit in limits:
        widths = Widths(job.analysis, [Goal(limit.key, limit.cost, limit.limit)]).at(progress.aim)
        predicted = float(widths.totals[0]) / max(limit.dense, 1e-30)
        if predicted > 0:
            found[limit.key] = shares[limit.key] / predicted
    return found


def _nearest(tried: list[tuple[float, Progress]]) -> Progress:
    """The slowest aim that is fast enough, else the fastest."""
    enough = [one for one in tried if one[0] <= MET]
    _, best = max(enough, key=lambda one: one[0]) if enough else min(tried, key=lambda one: one[0])
    return best
