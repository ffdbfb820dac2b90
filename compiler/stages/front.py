"""``--pareto N``: models on the way to the smallest one, spread along what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from condensec import io
from condensec.hardware import bench
from condensec.hardware.latency import LatencyModel
from condensec.passes.groups import analyze
from condensec.passes.prune import Cut
from condensec.report.model import Report
from condensec.report.values import ParetoPoint
from condensec.stages.cycles import final_cut, macs_share
from condensec.stages.finish import emit_target, prove
from condensec.stages.goals import count_parameters
from condensec.stages.job import Job
from condensec.stages.state import Candidate, Progress
from condensec.stages.steps import Steps

FOLDER = "pareto"


def front(job: Job, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most ``count`` of the models that kept the guard, largest first.

    Of two, one that is no larger and no worse on validation samples makes the other superfluous. The rest
    are spread evenly over the MACs that are left; the smallest is always there.
    """
    by_size = sorted(candidates, key=lambda c: (macs_share(job, c.counts), _loss(job, c)))
    kept: list[Candidate] = []
    for one in by_size:  # from small to large: a larger one has to be better
        if not kept or _loss(job, one) < _loss(job, kept[-1]):
            kept.append(one)
    shares = [macs_share(job, c.counts) for c in kept]
    chosen = [0]
    for wanted in np.linspace(shares[0], 1.0, count + 1)[1:-1] if kept else ():
        near = min(range(len(kept)), key=lambda i: (abs(shares[i] - wanted), i))
        if near not in chosen:
            chosen.append(near)
    return [kept[i] for i in sorted(chosen, reverse=True)] if kept else []


def _loss(job: Job, one: Candidate) -> float:
    return float("inf") if one.metric is None else job.points_lost(one.metric)


def write(
    job: Job,
    steps: Steps,
    progress: Progress,
    models: Mapping[str, LatencyModel],
    staging: Path,
) -> tuple[ParetoPoint, ...]:
    """Prove, emit and measure the models along the front, each in a folder ``pareto/NN`` of its own."""
    count = job.config.pareto
    if not count:
        return ()
    # what was polished, or got its zeros, takes the place of what it was made from
    last = progress.safe
    candidates = [c for c in progress.front if dict(c.counts) != dict(last.counts)]
    candidates += [last] if last.counts else []
    found = front(job, candidates, count)
    return tuple(
        steps.run("pareto", _point, job, one, number, models, staging) for number, one in enumerate(found, 1)
    )


def _point(
    job: Job, one: Candidate, number: int, models: Mapping[str, LatencyModel], staging: Path
) -> ParetoPoint:
    cut, healed = final_cut(job, one)
    prove(job, cut, healed)
    folder = staging / FOLDER / f"{number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    io.save(job.plain(healed), folder / "model.onnx")
    (folder / "plan.json").write_text(cut.plan.dumps(), encoding="utf-8")
    target = job.targets[0]
    emitted = emit_target(job, target, healed, folder, models)
    if emitted.comparison is not None:
        ratio, ci95, how = emitted.comparison.ratio, emitted.comparison.ci95, "measured"
    else:
        assert emitted.predicted is not None
        before, after = emitted.predicted
        ratio, ci95, how = after / max(before, 1e-12), None, target.verified
    return ParetoPoint(
        n=number,
        ratio=ratio,
        macs=round(macs_share(job, one.counts) * job.analysis.macs()),
        params=_parameters(job, cut, healed),
        metric=emitted.metric,
        verified=how,
        file=str(emitted.artifact.path.relative_to(staging)),
        target=target.name,
        ci95=ci95,
        metric_validation=one.metric,
        bytes=bench.model_bytes(emitted.artifact.path),
    )


def _parameters(job: Job, cut: Cut, healed: ir.Model) -> int:
    shapes = {n: (1, *s[1:]) for n, s in job.analysis.world.inputs.items()}
    return count_parameters(analyze(healed, shapes))


def told(job: Job, report: Report, points: Sequence[ParetoPoint]) -> Report:
    """The report with the front, and why it has fewer models than were asked for."""
    if not job.config.pareto:
        return report
    notes = report.notes
    if len(points) < job.config.pareto:
        notes = (
            *notes,
            f"--pareto {job.config.pareto}: {len(points)} different models kept the guard; "
            "a smaller --step gives more on the way",
        )
    return replace(report, pareto=tuple(points), notes=notes)
