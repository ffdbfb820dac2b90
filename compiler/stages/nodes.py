"""What single nodes take, for the report."""

from __future__ import annotations

from condensec.hardware import profiling
from condensec.report.values import NodeTime
from condensec.stages.finish import Emitted, feeds_of
from condensec.stages.job import Job

PROFILE_SECONDS = 3.0  # of the two graphs' own time; slow ones take three runs each


def node_times(job: Job, emitted: Emitted) -> tuple[NodeTime, ...]:
    """What single nodes of the original and of an emitted graph take, the slowest first.

    For targets that are measured here; about `PROFILE_SECONDS` are spent on it.
    """
    if emitted.comparison is None:
        return ()
    seconds = emitted.comparison.a.seconds + emitted.comparison.b.seconds
    runs = int(min(30, max(3, PROFILE_SECONDS / max(seconds, 1e-6))))
    graphs = [job.loaded.path, emitted.artifact.path]
    before, after = profiling.profile(graphs, feeds_of(job, 1), runs=runs)
    ops = {profiling.layer_of(node.name): node.op for node in (*after, *before)}
    return tuple(
        NodeTime(change.what, ops.get(change.what, ""), *(_ms(t) for t in (change.before, change.after)))
        for change in profiling.by_layer(before, after)
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 6)
