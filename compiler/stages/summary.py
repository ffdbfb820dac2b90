"""From what the line found out to the report."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from condensec.data import TensorSpec
from condensec.hardware import bench, isa
from condensec.metrics import interval
from condensec.passes.bodies import enters
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import Cut, prune
from condensec.passes.widths import taken_out
from condensec.report.model import (
    Budget,
    Check,
    DataSummary,
    Figures,
    GraphRun,
    Guard,
    Healing,
    Latency,
    MetricValue,
    ModelInfo,
    Report,
    TargetResult,
    Untrained,
    Verification,
    group_summaries,
)
from condensec.runner import Session, runtime_version
from condensec.stages import aims
from condensec.stages.diagram import diagram, layer_cuts
from condensec.stages.finish import Emitted, Proven, Written
from condensec.stages.goals import Budgets, count_parameters, out_of_reach
from condensec.stages.heal import Healer
from condensec.stages.job import Job, find_groups, load_at
from condensec.stages.means import Means
from condensec.stages.nodes import node_times
from condensec.stages.sensitivity import map_fields
from condensec.stages.state import Progress
from condensec.stages.steps import Steps, peak_rss_mb

NOT_MEASURED = (
    "accuracy was not measured: there was no data; the figures are fidelity to the original on made-up inputs"
)


def model_info(job: Job) -> ModelInfo:
    """The original file in the report's words."""
    signature = job.loaded.signature
    model = job.loaded.model
    return ModelInfo(
        file=str(job.config.model),
        sha256=job.sha256,
        opset=job.analysis.context.opset,
        nodes=len(list(model.graph)),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        inputs={spec.name: _type_of(spec) for spec in signature.inputs},
        outputs={spec.name: _type_of(spec) for spec in signature.outputs},
    )


def _type_of(spec: TensorSpec) -> str:
    """``float32[N,3,48,192]``."""
    return str(spec).removeprefix(spec.name).strip()


def metric_on_test(job: Job, model: ir.Model | Path) -> MetricValue:
    """The metric on samples that nothing else has seen, with its 95% interval."""
    test, metric = job.data.splits.test, job.data.metric
    reference = job.original_outputs(test)
    outputs = (
        reference if model == job.loaded.path else Session(model, threads=job.config.jobs).run_samples(test)
    )
    scores = metric.per_sample(outputs, test, reference)
    before = metric.per_sample(reference, test, reference)
    changed = None
    if model != job.loaded.path and scores is not None and before is not None:
        difference = np.asarray(scores, np.float64) - np.asarray(before, np.float64)
        changed = interval(difference, seed=job.config.seed)
    value = metric.value(outputs, test, reference)
    return MetricValue(
        name=metric.name,
        value=value if np.isfinite(value) else None,
        samples=len(test),
        ci95=None if scores is None else interval(scores, proportion=metric.proportion, seed=job.config.seed),
        split="test" if not job.data.synthetic else "calibration",
        higher_is_better=metric.higher_is_better,
        unit_points=metric.unit_points,
        label=metric.label,
        change_ci95=changed,
    )


def figures(job: Job, analysis: Analysis, path: Path) -> Figures:
    """Size and quality of one graph."""
    return Figures(
        params=count_parameters(analysis),
        macs=analysis.macs(),
        bytes=bench.model_bytes(path),
        metric=metric_on_test(job, path),
        nodes=sum(1 for node in analysis.model.graph if not enters(node)),
    )


def verification(proven: Proven, cut: Cut, targets: Mapping[str, TargetResult]) -> Verification:
    """The proof in the report's words. Every emitted graph was run and judged on the test samples."""
    proof = proven.proof
    shapes = proven.runs[0].inputs if proven.runs else ""
    runs = (*proven.runs, *(GraphRun(t.file, shapes, note=t.precision) for t in targets.values() if t.file))
    if proof is None:
        return Verification(runs=runs, note="nothing was cut")
    allowed = proof.tolerance * proof.scale
    layers = len(cut.plan.removed_layers)
    exact = Check(proof.exact_groups, proof.max_abs_error, allowed, proof.passed, layers=layers)
    approximate = Check(
        proof.approximate_groups,
        proof.max_abs_error,
        allowed,
        proof.passed,
        note="a norm, softmax or mean reduces over these: the reference is restricted to the kept units",
    )
    return Verification(exact, approximate if proof.approximate_groups else None, runs)


def target_results(
    job: Job, emitted: Mapping[str, Emitted], gains: Mapping[str, float], folder: Path
) -> dict[str, TargetResult]:
    """One entry a target."""
    found = {}
    for target in job.targets:
        one = emitted[target.name]
        ratio: float | None
        if one.comparison is not None:
            before, after = one.comparison.a.seconds, one.comparison.b.seconds
            ratio, ci95, how = one.comparison.ratio, one.comparison.ci95, "measured"
        else:
            assert one.predicted is not None
            before, after = one.predicted
            ratio, ci95, how = after / before if before else None, None, target.verified
        notes = (*one.artifact.notes, one.fallback, _gain_note(gains, target.name, how))
        if one.comparison is None and one.artifact.precision == "int8":
            notes = (
                *notes,
                "its latency is calculated as that of the same graph in fp32: int8 isn't modelled",
            )
        if target.table and one.comparison is None:
            notes += target.notes[-1:]
        found[target.name] = TargetResult(
            verified=one.artifact.verified,
            latency_ms=Latency(before * 1e3, after * 1e3),
            ratio=ratio,
            ci95=ci95,
            precision=one.artifact.precision,
            file=str(one.artifact.path.relative_to(folder)),
            bytes=one.artifact.bytes,
            metric=one.metric,
            latency_how=how,
            runtime=target.runtime,
            description=target.summary,
            notes=tuple(filter(None, notes)),
            nodes=node_times(job, one),
        )
    return found


def _gain_note(gains: Mapping[str, float], target: str, how: str) -> str:
    """What is owed to emission (fusing, quantizing) and not to the cut."""
    gain = gains.get(f"latency:{target}")
    return (
        "" if gain is None else f"uncut, emission alone gives {gain:.3f}x of the original's latency ({how})"
    )


def budget_results(
    budgets: Budgets, targets: Mapping[str, TargetResult], before: Figures, after: Figures
) -> tuple[Budget, ...]:
    """Each budget with what became of it; latency by the measured or modelled ratio of the emitted graph."""
    found = []
    for limit in budgets.limits:
        budget = limit.budget
        if budget.kind == "latency":
            result = targets[limit.target]
            value = result.ratio if budget.relative else result.latency_ms.after
        else:
            new, old = {
                "macs": (after.macs, before.macs),
                "params": (after.params, before.params),
            }.get(budget.kind, (after.bytes, before.bytes))
            value = new / max(1, old) if budget.relative else float(new)
        slack = 1.05 if budget.kind == "latency" else 1.001  # a measured latency is met within 5%
        met = value is not None and value <= budget.value * slack
        found.append(Budget(budget.expr, met, value, limit.target, asked=budgets.asked))
    return tuple(found)


def guard_result(job: Job, best: float | None) -> Guard:
    """The guard, on validation samples."""
    drop = job.points_lost(best) if best is not None else 0.0
    limit = job.config.max_drop if np.isfinite(job.config.max_drop) else None
    return Guard(limit, drop, job.keeps_guard(best) if best is not None else True, "validation", job.baseline)


def healing_result(healer: Healer, progress: Progress, steps: Steps) -> Healing:
    """All healing together; before and after are those of the last accepted cycle."""
    accepted = [c for c in progress.cycles if c.accepted]
    last = healer.results[-1] if healer.results else None
    return Healing(
        how=accepted[-1].healed_how if accepted else "off",
        seconds=steps.seconds.get("heal", 0.0) + steps.seconds.get("repair", 0.0),
        steps=sum(r.steps for r in healer.results),
        samples_per_second=last.samples_per_second if last else None,
        before=accepted[-1].metric_pruned if accepted else None,
        after=accepted[-1].metric_healed if accepted else None,
        peak_rss_mb=max((r.peak_rss_mb for r in healer.results), default=None),
        loss_curve=tuple(r.train_loss for r in last.loss_curve if r.train_loss is not None) if last else (),
        frozen=tuple(Untrained(name, reason) for name, reason in (last.frozen if last else ())),
        note=last.note if last else "",
    )


def data_summary(job: Job) -> DataSummary:
    """What the model was measured and healed with."""
    splits = job.data.splits
    return DataSummary(
        source="synthetic" if job.data.synthetic else str(job.config.data),
        splits={
            "calibration": len(splits.calibration),
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": len(splits.test),
        },
        synthetic=job.data.synthetic,
        labelled=splits.test.labels is not None,
        note=NOT_MEASURED if job.data.synthetic else "; ".join(job.data.notes),
    )


def environment(job: Job) -> dict[str, str | int | float | bool]:
    """Where this was measured."""
    import onnx

    return {
        "onnxruntime": runtime_version(),
        "onnx": onnx.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "isa": isa.detect(),
        "threads": job.config.jobs,
    }


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
    met = all(b.met for b in budgets) or not means.budgets.asked
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
        notes=(
            *report.notes,
            *filter(None, (progress.note,)),
            *out_of_reach(means.budgets, progress.correction),
        ),
    )


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
