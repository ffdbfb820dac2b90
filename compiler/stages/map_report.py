"""The report of a sensitivity map alone."""

from __future__ import annotations

from dataclasses import replace

from condensec.passes.prune import prune
from condensec.report.model import Report, group_summaries
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.sections import figures
from condensec.stages.steps import Steps
from condensec.stages.summary import started


def analyzed(job: Job, means: Means, steps: Steps) -> Report:
    """What was measured of the uncut model."""
    before = figures(job, job.analysis, job.loaded.path)
    return replace(
        started(job, means, steps),
        status="analyzed",
        before=before,
        after=before,
        groups=group_summaries(prune(job.analysis, {}, sha256=job.sha256).plan),
    )
