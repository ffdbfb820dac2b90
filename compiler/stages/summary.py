"""From what the line found out to the report."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.passes.widths import taken_out
from condensec.report.model import (
    Figures,
    Report,
    group_summaries,
)
from condensec.stages import aims
from condensec.stages.diagram import diagram, layer_cuts
from condensec.stages.finish import Written
from condensec.stages.goals import count_parameters, out_of_reach
from condensec.stages.job import Job, find_groups, load_at
from condensec.stages.means import Means
from condensec.stages.sections import (
    NOT_MEASURED,
    budget_results,
    data_summary,
    environment,
    figures,
    guard_result,
    healing_result,
    model_info,
    target_results,
    verification,
)
from condensec.stages.sensitivity import map_fields
from condensec.stages.state import Progress
from condensec.stages.steps import Steps, peak_rss_mb


def conclude(
    job: Job,
    means: Means,
    progress: Progress,
    written: Written,
    steps: Steps,
    staging: Path,
) -> Report:
    """Put the report together, with the metric on samples that nothing else has seen."""
    cut, model = written.cut, staging / "model.onnx"
    before = figures(job, job.analysis, job.loaded.path)
    after = figures(job, find_groups(job.config, load_at(model), job.data), model)
    targets = target_results(job, written.emitted, progress.gains, staging)
    budgets = budget_results(means.budgets, targets, before, after)
    layers = layer_cuts(job, cut, progress.safe.counts)
    short = _short_of_share(job, means, progress)
    met = (all(b.met for b in budgets) or not means.budgets.asked) and not short
    report = started(job, means, steps)
    return replace(
        report,
        status="ok" if met else "budget_not_met",
        before=before,
        after=after,
        targets=targets,
        cycles=progress.cycles,
        verification=verification(written.proven, cut, targets),
        budgets=budgets,
        guard=guard_result(job, progress.safe.metric),
        healing=healing_result(means.healer, progress, steps),
        groups=group_summaries(cut.plan),
        layers=layers,
        graph=diagram(job.analysis.model, {layer.name for layer in layers}),
        plan_sha256=cut.plan.digest(),
        warnings=(*report.warnings, *means.healer.failures),
        notes=(
            *report.notes,
            *filter(None, (progress.note, short)),
            *out_of_reach(means.budgets, progress.correction),
        ),
    )


def _short_of_share(job: Job, means: Means, progress: Progress) -> str:
    """What to say where more stays than `--keep` asked for; "" where it doesn't."""
    keep = job.config.keep
    if keep is None:
        return ""
    counts = progress.safe.counts
    asked = means.uniform(keep)
    wider = [name for name, count in asked.items() if counts.get(name, means.grid[name][0]) > count]
    return f"--keep {keep:g}: not reached, {len(wider)} of {len(asked)} groups are wider" if wider else ""


def dry_run(job: Job, means: Means, progress: Progress, steps: Steps) -> Report:
    """What would be cut, without healing or writing anything: figures are planned, not measured."""
    aimed = progress if job.config.keep is not None else aims.aimed(job, means, steps, progress)
    counts = means.uniform(job.config.keep) if job.config.keep is not None else dict(aimed.aim)
    out = taken_out(job.analysis, counts)
    cut = prune(job.analysis, means.units(job, counts), layers=out, sha256=job.sha256)
    before = figures(job, job.analysis, job.loaded.path)
    thin = analyze(cut.model, job.loaded.signature.sample_shapes(job.data.splits.calibration))
    gone = before.params - count_parameters(thin)
    how = dict.fromkeys(("params", "macs", "bytes"), "modelled")
    size = before.bytes - 4 * gone
    after = Figures(before.params - gone, thin.macs(), size, None, before.nodes, how)
    layers = layer_cuts(job, cut, counts)
    report = started(job, means, steps)
    return replace(
        report,
        status="dry_run",
        before=before,
        after=after,
        groups=group_summaries(cut.plan),
        layers=layers,
        graph=diagram(job.analysis.model, {layer.name for layer in layers}),
        plan_sha256=cut.plan.digest(),
        notes=(*report.notes, *filter(None, (aimed.note,))),
    )


def started(job: Job, means: Means, steps: Steps) -> Report:
    """The parts of the report that don't depend on the outcome."""
    from condensec import __version__

    empty = Figures(0, 0, 0)
    return Report(
        model=model_info(job),
        seed=job.config.seed,
        status="interrupted",
        before=empty,
        after=empty,
        **map_fields(job, means.sensitivity),
        timings={**{k: round(v, 4) for k, v in steps.seconds.items()}, "total": round(steps.elapsed(), 4)},
        peak_rss_mb=peak_rss_mb(),
        environment=environment(job),
        stage_rss_mb=dict(steps.peak_mb),
        data=data_summary(job),
        frozen=job.analysis.frozen,
        command=job.config.command,
        version=__version__,
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        notes=((NOT_MEASURED,) if job.data.synthetic else job.data.notes) + means.notes,
    )
