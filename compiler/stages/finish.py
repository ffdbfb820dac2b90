"""The end of the line: the proof, the files, the measurements."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from condensec import io, verify
from condensec.errors import PostconditionError
from condensec.hardware import bench, emit
from condensec.hardware.latency import LatencyModel
from condensec.hardware.protocol import Protocol
from condensec.hardware.target import Target
from condensec.hardware.unquantized import unquantized
from condensec.passes.prune import Cut, prune
from condensec.report.html import write_html
from condensec.report.model import GraphRun, Report
from condensec.runner import Session
from condensec.stages.emissions import written
from condensec.stages.goals import Budgets, budgets_of, read_budgets
from condensec.stages.heal import Healer
from condensec.stages.job import Job

PROOF_SAMPLES = 4


@dataclass(frozen=True)
class Proven:
    """What was proven of the cut, and where the emitted graph was run."""

    proof: verify.Proof | None
    runs: tuple[GraphRun, ...]


@dataclass(frozen=True)
class Emitted:
    """One target's graph and its measurement.

    Attributes:
        artifact: what was written.
        comparison: measured against the original, where the target can be measured here.
        predicted: modelled latency in seconds (before, after), where it can't.
        metric: of the emitted graph, on test samples.
        fallback: why the original's graph was written instead, or empty.
    """

    artifact: emit.Artifact
    comparison: bench.Comparison | None
    predicted: tuple[float, float] | None
    metric: float | None
    fallback: str = ""


@dataclass(frozen=True)
class Written:
    """An accepted model, proven and written for every target, not published yet.

    Attributes:
        cut: as planned, not healed.
        healed: the same with healed weights.
        proven: of the cut.
        emitted: by target.
    """

    cut: Cut
    healed: ir.Model
    proven: Proven
    emitted: Mapping[str, Emitted]


def prove(job: Job, cut: Cut, healed: ir.Model) -> Proven:
    """Masked equivalence of the cut, and runs of the healed graph at two batch sizes.

    Raises:
        PostconditionError: the cut isn't what the plan says; names the group. Nothing is written then.
    """
    proof = None
    if cut.plan.kept() or cut.plan.removed_layers:
        proof = verify.check(
            job.loaded.model, cut.plan, cut.model, job.feeds(PROOF_SAMPLES), threads=job.config.jobs
        )
        if not proof.passed:
            raise PostconditionError(_blame(job, cut, proof))
    return Proven(proof, _runs(job, healed))


def _blame(job: Job, cut: Cut, proof: verify.Proof) -> str:
    """Find the group or layer that is cut wrongly by cutting each alone."""
    layers = [layer.id for layer in cut.plan.removed_layers]
    guilty = [f"group {name}" for name, kept in cut.plan.kept().items() if not _alone(job, {name: kept})]
    guilty += [f"layer {name}" for name in layers if not _alone(job, {}, [name])]
    what = guilty[0] if guilty else f"{', '.join((*cut.plan.kept(), *layers))} together"
    return (
        f"the cut of {what} isn't equivalent to the masked original "
        f"(error {proof.max_abs_error:.3g} on outputs of up to {proof.scale:.3g}); nothing was written"
    )


def _alone(job: Job, units: Mapping[str, tuple[int, ...]], layers: Sequence[str] = ()) -> bool:
    single = prune(job.analysis, units, layers=layers, sha256=job.sha256)
    return verify.check(job.loaded.model, single.plan, single.model, job.feeds(PROOF_SAMPLES)).passed


def _runs(job: Job, healed: ir.Model) -> tuple[GraphRun, ...]:
    """One run at the original input shapes, one at a second batch size where the batch is dynamic."""
    session = Session(healed, threads=job.config.jobs)
    runs: list[GraphRun] = []
    for count in (1, 3):
        feeds = job.feeds(count)
        shapes = ", ".join(f"{name}: {'x'.join(map(str, array.shape))}" for name, array in feeds.items())
        if any(run.inputs == shapes for run in runs):
            continue  # the batch is fixed
        outputs = session.run(feeds)
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise PostconditionError(f"output '{name}' of the cut model isn't finite", node=name)
        runs.append(GraphRun("model.onnx", shapes))
    return tuple(runs)


def emit_target(
    job: Job,
    target: Target,
    healed: ir.Model,
    folder: Path,
    models: Mapping[str, LatencyModel],
    healer: Healer | None = None,
) -> Emitted:
    """Write one target's graph and measure it; the original instead where the cut one would be slower."""
    out = folder / target.name
    artifact = written(job, target, healed, out, healer)
    emitted = _measured(job, target, artifact, models)
    if emitted.comparison is not None and emitted.comparison.verdict == "slower":
        again = _measured(job, target, written(job, target, job.analysis.runnable, out), models)
        ratio = emitted.comparison.ratio
        reason = f"the cut graph took {ratio:.2f}x of the original's time, so the original was emitted"
        return replace(again, fallback=reason)
    return emitted


def _measured(
    job: Job, target: Target, artifact: emit.Artifact, models: Mapping[str, LatencyModel]
) -> Emitted:
    test = job.data.splits.test
    metric = job.evaluate(artifact.path, test, job.original_outputs(test))
    comparison, predicted = timed(job, target, artifact, models)
    return Emitted(artifact, comparison, predicted, metric)


def timed(
    job: Job,
    target: Target,
    artifact: emit.Artifact,
    models: Mapping[str, LatencyModel],
    protocol: Protocol | None = None,
) -> tuple[bench.Comparison | None, tuple[float, float] | None]:
    """A graph beside the original: measured where the target is this machine, else predicted in seconds.

    Predictions know fp32 kernels only: int8 and fp16 graphs are predicted as the same graphs in fp32.
    """
    feeds = job.feeds(1)
    if target.measurable():
        return bench.compare(job.loaded.path, artifact.path, feeds, protocol=protocol), None
    model = models[target.name]
    shapes = {name: array.shape for name, array in feeds.items()}
    original = job.once("unquantized", lambda: unquantized(job.loaded.model))
    # the file itself where nothing is quantized: onnxruntime reads sparse tensors, onnx-ir doesn't
    emitted = artifact.path if artifact.precision == "fp32" else unquantized(io.load(artifact.path))
    return None, (model.predict(original, shapes), model.predict(emitted, shapes))


def emission_gain(job: Job, models: Mapping[str, LatencyModel], budgets: Budgets) -> dict[str, float]:
    """What emission alone makes of the latency, uncut: share by limit.

    Fusing and quantizing may go a good part of the way; only the rest has to be cut.
    """
    gains: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="condensec-emit-") as name:
        for limit in budgets.limits:
            target = next((t for t in job.targets if t.name == limit.target), None)
            if target is None:
                continue
            artifact = written(job, target, job.analysis.runnable, Path(name) / target.name)
            comparison, predicted = timed(job, target, artifact, models)
            if comparison is not None:
                gains[limit.key] = comparison.ratio
            elif predicted is not None and predicted[0] > 0:
                gains[limit.key] = predicted[1] / predicted[0]
    return gains


def budgets(job: Job, models: Mapping[str, LatencyModel]) -> Budgets:
    """The budgets as limits; measures the original where one is in milliseconds."""
    dense: dict[str, float] = {}
    if any(b.kind == "latency" and not b.relative for b in budgets_of(job)):
        feeds = job.feeds(1)
        shapes = {name: array.shape for name, array in feeds.items()}
        for target in job.targets:
            measured = target.measurable()
            seconds = (
                bench.measure(job.loaded.path, feeds).seconds
                if measured
                else models[target.name].predict(job.loaded.path, shapes)
            )
            dense[target.name] = seconds * 1e3
    return read_budgets(job, models, dense, job.loaded.path.stat().st_size)


def emit_all(
    job: Job,
    healed: ir.Model,
    models: Mapping[str, LatencyModel],
    staging: Path,
    healer: Healer | None = None,
) -> dict[str, Emitted]:
    """Every target's graph, in a staging folder."""
    shutil.rmtree(staging, ignore_errors=True)
    return {t.name: emit_target(job, t, healed, staging, models, healer) for t in job.targets}


def write_model(job: Job, cut: Cut, healed: ir.Model, staging: Path) -> Path:
    """The healed fp32 graph in the staging folder."""
    path = staging / "model.onnx"
    staging.mkdir(parents=True, exist_ok=True)
    io.save(job.plain(healed), path)
    return path


def publish(job: Job, cut: Cut, report: Report, staging: Path) -> None:
    """Move everything to its final name, the report last; then the run is over."""
    folder = Path(job.config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (staging / "plan.json").write_text(cut.plan.dumps(), encoding="utf-8")
    (staging / "condensec.toml").write_text(job.config.to_toml(), encoding="utf-8")
    write_html(report, staging / "report.html")
    (staging / "report.json").write_text(report.dumps(), encoding="utf-8")
    shutil.rmtree(folder / "pareto", ignore_errors=True)  # of an earlier run
    for source in sorted(staging.rglob("*"), key=lambda p: (p.name == "report.json", str(p))):
        if source.is_file():
            target = folder / source.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
