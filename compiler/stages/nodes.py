"""What single layers take, for the report."""

from __future__ import annotations

from condensec.hardware import breakdown
from condensec.report.values import NodeTime
from condensec.stages.finish import Emitted
from condensec.stages.job import Job

PROFILE_SECONDS = 3.0  # of the two graphs' own time; slow ones take three runs each


def node_times(job: Job, emitted: Emitted) -> tuple[NodeTime, ...]:
    """What the layers of the original and of an emitted graph take, the slowest first.

    For targets that are measured here; about `PROFILE_SECONDS` are spent on it.
    """
    if emitted.comparison is None:
        return ()
    seconds = emitted.comparison.a.seconds + emitted.comparison.b.seconds
    runs = int(min(30, max(3, PROFILE_SECONDS / max(seconds, 1e-6))))
    graphs = [job.loaded.path, emitted.artifact.path]
    found = breakdown.take(graphs, job.feeds(1), runs=runs)
    return tuple(
        NodeTime(change.what, change.op, *(_rounded(t) for t in change.milliseconds))
        for change in found.layers
    )


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 6)
