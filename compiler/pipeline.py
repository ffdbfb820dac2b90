"""The line: load, groups, sensitivity, cycles of (select, prune, heal, judge), proof, emit, bench, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from condensec.config import Config, check_output
from condensec.hardware.latency import LatencyModel
from condensec.passes import criteria
from condensec.passes.select import unit_order
from condensec.passes.sensitivity import Sensitivity
from condensec.report.model import Report
from condensec.sparsity import asked
from condensec.specs import UNIT_PATTERNS
from condensec.stages import aims, blocks, cycles, finish, front, goals, job, map_report, patterns, summary
from condensec.stages.finish import Written
from condensec.stages.goals import Budgets
from condensec.stages.heal import Healer
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.sensitivity import QUICK_SECONDS, WHOLE_SECONDS, sensitivity
from condensec.stages.settle import settled
from condensec.stages.state import Checkpoints, Progress
from condensec.stages.steps import Observer, Steps

# settings that don't change what is computed, only where or whether it is written
_NOT_IN_KEY = frozenset(("output", "resume", "dry_run", "command", "jobs"))


def compress(config: Config, observer: Observer | None = None) -> Report:
    """The whole line: a model in, a smaller and faster one, its plan and its report out.

    Args:
        config: validated settings.
        observer: told of every step, see `condensec.stages.steps.Steps`.

    Raises:
        CondensecError: see `condensec.errors`; the files of an earlier run stay as they were.
    """
    steps = Steps(observer)
    targets = job.find_targets(config)
    patterns.check_targets(config, targets)
    if not config.dry_run:
        check_output(Path(config.output))
    loaded = steps.run("load", job.load_model, config)
    data = steps.run("data", job.read_data, config, loaded)
    analysis = steps.run("groups", job.find_groups, config, loaded, data)
    work = steps.run("baseline", job.measure_baseline, config, loaded, data, targets, analysis)
    models = steps.run("latency", goals.latency_models, work)
    budgets = steps.run("budget", finish.budgets, work, models)
    means = steps.run("sensitivity", _means, work, budgets, steps)
    checkpoints = Checkpoints(Path(config.output) / "state", _key(work))
    progress = _start(config, checkpoints)
    if not progress.cycles:
        gains = steps.run("budget", finish.emission_gain, work, models, budgets)
        progress = replace(progress, gains=gains, correction=gains)
    if config.dry_run:
        return summary.dry_run(work, means, progress, steps)
    staging = checkpoints.folder / "staging"
    line = Line(work, budgets, models, means, steps, checkpoints, staging)
    progress, written = line.cut(progress)
    progress, zeros = patterns.apply(work, means, steps, progress)
    if written is None or (zeros is not None and zeros.places) or means.healer.minutes.trains_quantized:
        written = line.write(progress, means.healer)
    finish.write_model(work, written.cut, written.healed, staging)
    report = steps.run("report", summary.conclude, work, means, progress, written, steps, staging)
    report = patterns.told(report, zeros, staging / "model.onnx")
    report = front.told(work, report, front.write(work, steps, progress, models, staging))
    finish.publish(work, written.cut, report, staging)
    checkpoints.clear()
    return report


@dataclass(frozen=True)
class Line:
    """The middle of the line: cycles, the proof and the graphs for the targets, until all fit the budgets."""

    job: Job
    budgets: Budgets
    models: Mapping[str, LatencyModel]
    means: Means
    steps: Steps
    checkpoints: Checkpoints
    staging: Path

    def cut(self, progress: Progress) -> tuple[Progress, Written | None]:
        """Cut until the budgets are met, by measured latency, too; then train for the minutes left.

        Returns:
            What is accepted, and what was written of it; None where that isn't needed yet, as zeros follow.
        """
        zeros = asked(self.job.config.patterns) is not None
        if progress.settled:
            return progress, None
        settle = partial(settled, self.job, self.means, self.steps, self.models)
        trained = zeros  # they are trained with the zeros
        while True:
            progress = cycles.run_cycles(self.job, self.means, self.steps, self.checkpoints, progress, settle)
            written, again = None, None
            if self.budgets.asked and self.budgets.timed:  # else nothing could send it back
                written = self.write(progress)
                again = cycles.corrected(self.job, self.budgets, progress, written.emitted)
            if again is None and not trained:
                trained = True
                again = cycles.polished(self.job, self.means, self.steps, progress)
                if again is not None:
                    self.checkpoints.save(again)
            if again is None:
                break
            progress = again
        if not zeros:
            return progress, written or self.write(progress)
        progress = replace(progress, settled=True)
        self.checkpoints.save(progress)  # what is found for the zeros goes on from here
        return progress, written

    def write(self, progress: Progress, healer: Healer | None = None) -> Written:
        """Prove the accepted model, and write it for every target, into the staging folder."""
        cut, healed = cycles.final_cut(self.job, progress.safe)
        proven = self.steps.run("verify", finish.prove, self.job, cut, healed)
        emitted = self.steps.run("emit", finish.emit_all, self.job, healed, self.models, self.staging, healer)
        return Written(cut, healed, proven, emitted)


def analyze(config: Config, observer: Observer | None = None) -> Report:
    """The sensitivity map alone: what each group, and each residual block, is worth.

    Args:
        config: validated settings; budgets and healing don't matter.
        observer: told of every step.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    steps = Steps(observer)
    config = replace(config, keep=None)
    targets = job.find_targets(config)
    loaded = steps.run("load", job.load_model, config)
    data = steps.run("data", job.read_data, config, loaded)
    analysis = steps.run("groups", job.find_groups, config, loaded, data)
    work = steps.run("baseline", job.measure_baseline, config, loaded, data, targets, analysis)
    nothing = Budgets((), False)
    means = steps.run("sensitivity", _means, work, nothing, steps, seconds=WHOLE_SECONDS, layers=True)
    return map_report.analyzed(work, means, steps)


def _means(
    work: Job, budgets: Budgets, steps: Steps, *, seconds: float = QUICK_SECONDS, layers: bool = False
) -> Means:
    """Order of the units, loss curves and grid."""
    evidence = job.evidence(work)
    curves = Sensitivity({}, 0, 0.0)
    healer = Healer(work, steps, Path(work.config.output) / "state")
    if _zeros_only(work.config):
        return Means({}, curves, goals.widths_grid(work), budgets, healer, healer.notes)
    order = unit_order(
        work.analysis, criteria.get(work.config.criterion), seed=work.config.seed, evidence=evidence
    )
    layers = layers or bool(work.layers)
    uniform = work.config.keep is not None  # every group alike: nothing to measure but which layers may go
    if not uniform or layers:
        curves = sensitivity(work, order, steps, seconds=seconds, layers=layers, groups=not uniform)
    grid = goals.widths_grid(work)
    budgets = blocks.timed(work, goals.with_least(work, budgets, grid), grid)
    return aims.eased(work, Means(order, curves, grid, budgets, healer, (*healer.notes, *evidence.notes)))


def _key(work: Job) -> str:
    """Identifies model, data and settings, so that a checkpoint is only used where it belongs."""
    settings = {k: repr(v) for k, v in sorted(vars(work.config).items()) if k not in _NOT_IN_KEY}
    digest = hashlib.sha256(json.dumps([work.sha256, settings]).encode())
    for name, array in sorted(work.reference.items()):
        digest.update(name.encode() + array.tobytes())  # the original's outputs stand for the data
    return digest.hexdigest()


def _start(config: Config, checkpoints: Checkpoints) -> Progress:
    """The last checkpoint with ``--resume``, else a fresh start."""
    found = checkpoints.load() if config.resume else None
    if found is None:
        if not config.dry_run:
            checkpoints.clear()
        return Progress(step=config.step, finished=_zeros_only(config))
    return found


def _zeros_only(config: Config) -> bool:
    """Whether every unit stays: there is no cut to choose."""
    return not config.dry_run and not set(config.patterns) & set(UNIT_PATTERNS)
