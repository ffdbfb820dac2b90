"""Training of what was emitted in int8, where quantization took more of the guard than it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from condensec import io
from condensec.errors import HealError
from condensec.hardware import emit
from condensec.stages.heal import Healer
from condensec.stages.job import Job

Emit = Callable[[Callable[[Path], bool]], emit.Artifact]
RESCUE = 5.0  # points over the guard, at most, that training in int8 is trusted to bring back


def trained(job: Job, healer: Healer, guarded: Callable[[], emit.Artifact], write: Emit) -> emit.Artifact:
    """An artifact within the guard; one in int8 that lost over half of what may be lost is trained.

    Args:
        job: the job.
        healer: trains it.
        guarded: emits it within the guard; what it wrote before it copies.
        write: emits it anew, with a judge of graphs in lower precision.
    """
    artifact = guarded()
    if artifact.precision == "int8":
        before = metric(job, artifact.path)
        wanted = healer.minutes.always_quantized or job.endangered(before)
        return _trained(job, healer, artifact, before) if wanted else artifact
    if job.config.quantize != "int8":
        return artifact
    allowed = job.config.max_drop + RESCUE
    loose = write(lambda path: job.points_lost(metric(job, path)) <= allowed)
    if loose.precision == "int8":
        before = metric(job, loose.path)
        better = _trained(job, healer, loose, before)
        if job.keeps_guard(metric(job, better.path)):
            return better
    return guarded()


def metric(job: Job, path: Path) -> float:
    """The metric of a graph on validation samples."""
    return job.evaluate(path, job.data.splits.validation, job.reference)


def _trained(job: Job, healer: Healer, artifact: emit.Artifact, before: float) -> emit.Artifact:
    """The artifact after training, if that made it better."""
    try:
        found = healer.train_quantized(artifact.path)
    except HealError as error:
        return replace(artifact, notes=(*artifact.notes, f"training in int8 failed: {error.message}"))
    if found is None:
        return artifact
    after = job.judge(found.model)
    if not found.changed or not job.better(after, before):
        return replace(artifact, notes=(*artifact.notes, "training in int8 made it no better"))
    io.save(found.model, artifact.path)
    what = (
        f"trained in int8 for {found.seconds / 60:.2g} minutes: "
        f"{job.data.metric.name} {before:.4g} before, {after:.4g} after, on validation samples"
    )
    notes = tuple(n for n in artifact.notes if n != str(artifact.fidelity))  # that was before the training
    return replace(artifact, notes=(*notes, what), fidelity=None)
