"""The loop: choose, cut, repair, heal, judge; accept, or roll back with a smaller step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from condensec import provenance
from condensec.collapse import Collapse
from condensec.errors import HealError
from condensec.passes.prune import Cut, carried, prune, with_weights
from condensec.passes.select import Choice, choose
from condensec.passes.widths import Goal, NodeShape, Widths, taken_out
from condensec.report.model import Cycle
from condensec.stages import blocks, collapse
from condensec.stages.aims import aimed
from condensec.stages.finish import Emitted
from condensec.stages.goals import Budgets
from condensec.stages.heal import Healed, Healer
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.state import Candidate, Checkpoints, Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
SMALLEST_STEP = 1 / 8  # of the asked step: below that the guard has said stop
ROUNDS = 3  # of correcting the latency model by measurements
WITHIN = 1.02  # of the asked latency: nearer than the measurement repeats


def run_cycles(
    job: Job,
    means: Means,
    steps: Steps,
    checkpoints: Checkpoints,
    progress: Progress,
    settle: Callable[[Progress], Progress] | None = None,
) -> Progress:
    """Cycles until the budgets are met, or the guard says stop. A checkpoint after each.

    ``settle`` may move an aim before anything is cut.
    """
    while not progress.finished:
        if not progress.aim:
            progress = aimed(job, means, steps, progress)
            progress = progress if settle is None else settle(progress)
            checkpoints.save(progress)
        progress = _cycle(job, means, steps, progress)
        checkpoints.save(progress)
    return progress


def _cycle(job: Job, means: Means, steps: Steps, progress: Progress) -> Progress:
    start = time.monotonic()
    choice = steps.run("select", _choose, job, means, progress)
    before = job.full_counts(progress.best.counts)
    if dict(choice.counts) == before:
        return replace(progress, finished=True, reached=choice.reached)
    if progress.strict and dict(choice.counts) == progress.failed:  # the grid is coarser than the step
        return _rolled_back(job, progress, choice)
    units = means.units(job, choice.counts)
    cut, weights = steps.run("prune", _cut, job, units, taken_out(job.analysis, choice.counts), progress.best)
    left = _cycles_left(means, choice, progress)
    healed, pruned = _heal(job, means.healer, steps, cut, weights, progress, cycles_left=left)
    fallen = steps.run("watch", collapse.collapsed, job, with_weights(cut.model, healed.weights), units)
    forbidden = collapse.forbids(job, fallen)
    safe = job.keeps_guard(healed.metric) and not forbidden
    later = not safe and not forbidden and left > 1 and _can_wait(means, progress, healed)
    cycle = Cycle(
        n=len(progress.cycles) + 1,
        macs=macs_share(job, choice.counts),
        metric_pruned=pruned,
        metric_healed=healed.metric,
        accepted=safe or later,
        seconds=round(time.monotonic() - start, 3),
        latency=means.budgets.latency_share(choice, progress.correction),
        healed_how=healed.how,
        note=_noted(job, healed, fallen, safe=safe, later=later),
    )
    spent = progress.heal_seconds + healed.gradient_seconds
    progress = replace(progress, cycles=(*progress.cycles, cycle), heal_seconds=spent)
    if not safe and not later:
        return _rolled_back(job, replace(progress, failed=dict(choice.counts)), choice)
    best = Candidate(dict(choice.counts), units, healed.weights, healed.metric)
    return _accepted(job, progress, best, safe=safe, reached=choice.reached)


def _can_wait(means: Means, progress: Progress, healed: Healed) -> bool:
    """Whether a later cycle may bring back what this one lost over the guard."""
    return not progress.strict and means.healer.minutes.can_wait(progress, healed.metric)


def _accepted(job: Job, progress: Progress, best: Candidate, *, safe: bool, reached: bool) -> Progress:
    """The next cycle cuts on from here."""
    return replace(
        progress,
        best=best,
        safe=best if safe else progress.safe,
        front=(*progress.front, best) if safe and job.config.pareto else progress.front,
        finished=reached,
        reached=reached,
    )


def _rolled_back(job: Job, progress: Progress, choice: Choice) -> Progress:
    """Back to the last model that kept the guard, with half the step; the end where that gets too small.

    A layer that couldn't be spared is left alone from then on, and the rest has to make up for it.
    """
    had = taken_out(job.analysis, progress.safe.counts)
    tried = [x for x in taken_out(job.analysis, choice.counts) if x not in had]
    if len(tried) == 1 and not job.one_shot:
        barred = (*progress.barred, *tried)
        return replace(progress, best=progress.safe, barred=barred, aim={}, failed={})
    step = progress.step / 2
    stop = job.one_shot or step < SMALLEST_STEP * job.config.step
    return replace(progress, best=progress.safe, step=step, strict=True, finished=stop, reached=False)


def _choose(job: Job, means: Means, progress: Progress) -> Choice:
    if job.config.keep is not None:  # uniform: every group goes to its lower level
        return Choice(means.uniform(job.config.keep), True, ())
    have = job.full_counts(progress.best.counts)
    left = sum(have[g.id] for g in job.analysis.groups)
    goals = means.budgets.goals(progress.correction)
    most = None if job.one_shot else max(1, math.ceil(progress.step * left))
    every = blocks.grid_of(job, means.budgets, means.grid, progress.aim)
    grid = {name: [n for n in every[name] if n >= progress.aim.get(name, 0)] for name in have}
    if any(have[x.id] and not progress.aim.get(x.id, 1) for x in job.layers):
        # layers go first: they are the greatest change, and what is cut inside of them is cut for nothing
        only = {g.id: [have[g.id]] for g in job.analysis.groups}
        choice = choose(job.analysis, means.sensitivity, goals, {**grid, **only}, have, most)
        if choice.reached or (not job.one_shot and dict(choice.counts) != have):
            return choice
    return choose(job.analysis, means.sensitivity, goals, grid, have, most)


def _cut(
    job: Job, units: Mapping[str, list[int]], layers: Sequence[str], best: Candidate
) -> tuple[Cut, Weights]:
    """The deeper cut, and the weights healed so far, sliced for it."""
    healed = best.weights.keys()  # copies of a shared weight that were healed apart stay apart
    cut = prune(job.analysis, units, layers=layers, sha256=job.sha256, apart=healed)
    if not best.weights:
        return cut, {}
    gone = taken_out(job.analysis, best.counts)
    before = prune(job.analysis, best.units, layers=gone, sha256=job.sha256, apart=healed).plan
    return cut, carried(best.weights, before, cut.plan)


def _noted(job: Job, healed: Healed, fallen: Sequence[Collapse], *, safe: bool, later: bool) -> str:
    """What a reader should know of a cycle."""
    what = collapse.note(fallen)
    if safe:
        return "; ".join(filter(None, (healed.note, what)))
    if what:
        return f"rolled back: {what}"
    lost = f"{job.points_lost(healed.metric):.2f} points lost, {job.config.max_drop:g} allowed"
    return f"{lost}; healing is to come" if later else f"rolled back: {lost}"


def _cycles_left(means: Means, choice: Choice, progress: Progress) -> int:
    """About how many cycles are still to come, this one included; 1: this is the last."""
    if choice.reached or progress.step >= 1:
        return 1
    goals = means.budgets.goals(progress.correction)
    excess = max(total / max(g.limit, 1e-30) for g, total in zip(goals, choice.totals, strict=True))
    # costs fall with up to the square of the widths
    return 1 + max(1, math.ceil(math.log(max(excess, 1.0)) / (-1.6 * math.log(1 - progress.step))))


def _heal(
    job: Job,
    healer: Healer,
    steps: Steps,
    cut: Cut,
    weights: Weights,
    progress: Progress,
    *,
    cycles_left: int,
) -> tuple[Healed, float]:
    """Closed form first; by gradient where the guard is in danger, or in the last cycle.

    Returns the best weights found, and the metric before any healing.
    """
    pruned = steps.run("judge", job.judge, with_weights(cut.model, weights))
    best = Healed(weights=weights, metric=pruned)
    if healer.closed_form:
        repaired = steps.run("repair", healer.repair, cut, best.weights)
        best = _better(job, steps, cut, best, repaired)
    seconds = healer.minutes.allowance(
        progress,
        cycles_left=cycles_left,
        last=cycles_left == 1,
        endangered=job.endangered(best.metric),
    )
    if seconds is not None:
        try:
            healed = steps.run("heal", healer.train, cut, best.weights, seconds)
        except HealError as error:
            return replace(best, note=f"healing failed: {error.message}"), pruned
        best = _better(job, steps, cut, best, healed)
    return best, pruned


def polished(job: Job, means: Means, steps: Steps, progress: Progress) -> Progress | None:
    """The accepted model trained for the minutes that are left; None where that didn't help, or none are."""
    seconds = means.healer.minutes.polish_seconds(progress)
    safe = progress.safe
    if seconds is None or not (safe.units or taken_out(job.analysis, safe.counts)):
        return None
    cut = _whole_cut(job, safe)
    before = Healed(weights=safe.weights, metric=float("nan") if safe.metric is None else safe.metric)
    try:
        trained = steps.run("heal", means.healer.train, cut, safe.weights, seconds)
    except HealError:
        return None
    after = _better(job, steps, cut, before, trained)
    if after.weights is before.weights:
        return None
    best = replace(safe, weights=after.weights, metric=after.metric)
    spent = progress.heal_seconds + after.gradient_seconds
    last = replace(progress.cycles[-1], metric_healed=after.metric, note="then trained for the minutes left")
    cycles = (*progress.cycles[:-1], last) if progress.cycles[-1].accepted else progress.cycles
    return replace(progress, best=best, safe=best, heal_seconds=spent, cycles=cycles)


def _better(job: Job, steps: Steps, cut: Cut, before: Healed, after: Healed) -> Healed:
    """The healed weights where they are at least as good, else those before; time spent counts either way."""
    weights = {**before.weights, **after.weights}
    metric = steps.run("judge", job.judge, with_weights(cut.model, weights))
    spent = before.gradient_seconds + after.gradient_seconds
    if job.better(before.metric, metric):
        return replace(before, gradient_seconds=spent, note=f"{after.how} made it no better")
    how = after.how if before.how == "off" else f"{before.how}, then {after.how}"
    return replace(after, weights=weights, metric=metric, how=how, gradient_seconds=spent)


def macs_share(job: Job, counts: Mapping[str, int]) -> float:
    """MACs at some widths over those of the original."""
    widths = Widths(job.analysis, [Goal("macs", _macs, 0.0)]).at(counts)
    return float(widths.totals[0]) / max(1, job.analysis.macs())


def _macs(node: NodeShape) -> float:
    return float(node.macs)


def corrected(
    job: Job, budgets: Budgets, progress: Progress, emitted: Mapping[str, Emitted]
) -> Progress | None:
    """Where a measured latency misses its budget: the state to go on from, prediction corrected.

    None where the budgets are met, the guard has said stop, or three rounds of correction didn't help.
    """
    if not progress.reached or progress.rounds >= ROUNDS or not budgets.asked:
        return None
    correction = dict(progress.correction)
    missed = False
    for limit in budgets.reachable(correction):
        comparison = emitted[limit.target].comparison if limit.target else None
        if comparison is None or not limit.dense:  # no node's time is known: nothing to correct
            continue
        allowed = (
            limit.budget.value if limit.budget.relative else limit.budget.value / (comparison.a.seconds * 1e3)
        )
        if comparison.ratio > allowed * WITHIN:
            widths = Widths(job.analysis, [Goal(limit.key, limit.cost, limit.limit)]).at(progress.safe.counts)
            predicted = float(widths.totals[0]) / limit.dense
            correction[limit.key] = comparison.ratio / predicted
            missed = True
    if not missed:
        return None
    rounds = progress.rounds + 1
    return replace(progress, correction=correction, rounds=rounds, aim={}, finished=False, reached=False)


def final_cut(job: Job, best: Candidate) -> tuple[Cut, ir.Model]:
    """The accepted model: the cut as planned (unhealed, for the proof), and the healed one."""
    cut = _whole_cut(job, best)
    healed = with_weights(cut.model, best.weights)
    provenance.stamp(healed, original=job.sha256, plan=cut.plan.digest())
    return cut, healed


def _whole_cut(job: Job, best: Candidate) -> Cut:
    return prune(job.analysis, best.units, layers=taken_out(job.analysis, best.counts), sha256=job.sha256)
