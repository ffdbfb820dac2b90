"""The aim: which widths, heads and layers the cycles are going to, chosen once for all of them.

Losses that were measured of each group alone don't add up. So several choices are made, with factors on the
losses of groups and layers, and each is tried: cut, repaired in closed form, and compared with the original
on calibration samples (the idea of SPDY, Frantar & Alistarh 2022, arXiv:2201.13096). The loss before any
repair would be cheaper to have but says nothing about what is left after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

from condensec.data import Samples
from condensec.errors import HealError
from condensec.fidelity import output_error
from condensec.passes.allocate import allocate, weighted
from condensec.passes.prune import Cut, prune, with_weights
from condensec.passes.select import Choice, choose
from condensec.passes.sensitivity import Sensitivity
from condensec.passes.widths import Goal, items_of, taken_out, whole
from condensec.runner import Session
from condensec.stages.blocks import grids
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

FLOORS = (8, 16, 0)  # first no group below 1/8 of its units, then 1/16, then as the budget wants
VITAL = 0.5  # a group that loses so much with its first eighth gone isn't cut, if that can be
SPREAD = 0.7  # of the logarithm of a factor
SUBSET = 4  # one in so many factors changes at a time
LAYERS = (0.25, 4.0)  # factors of all layers together: what many of them lose isn't what each of them does
REPAIR_SAMPLES, LOSS_SAMPLES = 64, 128
REPAIR_ROWS = 4000  # positions a layer is fitted to: enough to tell choices apart, in a third of the time
SEARCH_SECONDS = 20.0  # by the size of the model, never by the clock
SEARCH_SHARE = 0.1  # of the minutes that healing may take
TRIED_PER_SECOND = 4e9  # multiply-accumulates of the uncut model, repair included; a cautious figure,
NODE_SECONDS = 0.02  # and so much for each weighted node
FEWEST, MOST = 3, 24  # choices that are tried
NEAR = 0.85  # of what a budget allows: a goal that goes with it without being asked for may lead down to that
HALVINGS = 6  # while looking for how far such a goal can be held
REDRAWS = 8  # of factors that lead to a choice known already


def aimed(job: Job, means: Means, steps: Steps, progress: Progress) -> Progress:
    """Progress with an aim; where there is one, as it is."""
    if progress.aim or job.config.keep is not None:
        return progress
    return steps.run("choose", _aimed, job, means, progress, steps)


def _aimed(job: Job, means: Means, progress: Progress, steps: Steps) -> Progress:
    room = _room(job, means, progress)
    plain = room.descent
    if progress.factors is not None:  # searched before; the goals have moved a little, or a layer must stay
        return replace(progress, aim=dict(room.allocated(progress.factors).counts))
    if not plain.reached or not means.budgets.limits or dict(plain.counts) == dict(room.start):
        return replace(progress, aim=dict(plain.counts), factors={})
    if means.healer.spec.train_only:  # what a training would leave of each isn't known: no use in trying
        return replace(progress, aim=dict(room.allocated({}).counts), factors={})
    search = _Search(job, means, room, steps)
    return search.go(progress)


def eased(job: Job, means: Means) -> Means:
    """The same with goals that nobody asked for held only as far as the budgets themselves lead.

    Half of the multiply-accumulates of a network of depthwise convolutions may leave much more than half of
    its time (`condensec.stages.blocks`). What is cut for time then is bounded: no budget is undercut by more
    than a seventh for it.
    """
    implied = means.budgets.implied
    if not implied or job.config.keep is not None:
        return means

    def at(factor: float) -> Means:
        goals = tuple(replace(goal, limit=factor * goal.limit) for goal in implied)
        return replace(means, budgets=replace(means.budgets, implied=goals))

    def used(factor: float) -> float:
        """Share of the tightest budget that the choice takes up."""
        room = _room(job, at(factor), Progress())
        shares = [
            total / max(goal.limit, 1e-30)
            for goal, total in zip(room.goals, room.descent.totals, strict=True)
        ]
        return max(shares[: -len(implied)], default=1.0)

    low, high = 1.0, max(limit.dense / max(limit.limit, 1e-30) for limit in means.budgets.limits)
    least = NEAR * used(high)
    if used(low) >= least:
        return means
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if used(middle) < least else (low, middle)
    return at(high)


@dataclass(frozen=True)
class _Room:
    """Where a choice may go."""

    job: Job
    sensitivity: Sensitivity
    goals: tuple[Goal, ...]
    grid: Mapping[str, list[int]]
    start: Mapping[str, int]

    @cached_property
    def descent(self) -> Choice:
        return choose(self.job.analysis, self.sensitivity, self.goals, self.grid, self.start)

    def allocated(self, factors: Mapping[str, float]) -> Choice:
        losses = weighted(self.sensitivity, factors)
        return allocate(self.job.analysis, losses, self.goals, self.grid, self.start)


def _room(job: Job, means: Means, progress: Progress) -> _Room:
    """The grid above the highest floor that lets the budgets be met, without vital groups if that can be.

    Whole blocks come first, where they're what saves time (`condensec.stages.blocks`).
    """
    goals = tuple(means.budgets.goals(progress.correction))
    start = job.full_counts(progress.best.counts)
    every = {name: [1] if name in progress.barred else levels for name, levels in means.grid.items()}
    vital = {g.id for g in job.analysis.groups if _vital(means.sensitivity, g.id)}
    room = _Room(job, means.sensitivity, goals, every, start)
    for spared in dict.fromkeys((frozenset(vital), frozenset())):
        for grid, floor in product(grids(job, means.budgets, every), FLOORS):
            levels = {
                item.id: _above(
                    grid[item.id], floor and -(-whole(item) // floor), start[item.id], item.id in spared
                )
                for item in items_of(job.analysis, grid)
            }
            room = replace(room, grid=levels)
            if room.descent.reached:
                return room
    return room


def _above(levels: list[int], least: int, now: int, spared: bool) -> list[int]:
    """Levels from a floor on (what is there now isn't raised); of a group that is spared what is there."""
    return [n for n in levels if n >= (now if spared else min(least, now))]


def _vital(sensitivity: Sensitivity, group: str) -> bool:
    curve = sensitivity.curves.get(group)
    return curve is not None and len(curve.loss) > 1 and curve.loss[1] >= VITAL


@dataclass
class _Search:
    """Factors by trial: some change, and stay changed if the choice they lead to loses less."""

    job: Job
    means: Means
    room: _Room
    steps: Steps
    losses: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        calibration, train = self.job.data.splits.calibration, self.job.data.splits.train
        self.repair = calibration.first(REPAIR_SAMPLES)
        if len(calibration) >= 2 * REPAIR_SAMPLES:
            self.judged = calibration.subset(np.arange(len(calibration))[REPAIR_SAMPLES:][:LOSS_SAMPLES])
        else:  # all of it goes into the repair; what was fitted to samples isn't judged by them
            order = np.random.default_rng(self.job.config.seed).permutation(len(train))
            self.judged = train.subset(np.sort(order[:LOSS_SAMPLES]))
        session = Session(self.job.analysis.runnable, threads=self.job.config.jobs)
        self.reference = session.run_samples(self.judged)

    def go(self, progress: Progress) -> Progress:
        """The best of what is tried: descent, all together, and all together with factors."""
        limit = evaluations(self.job, self.means, self.repair, self.judged)
        plain = self.room.descent
        first = self.loss(plain.counts)
        best, least, factors = plain, first, dict[str, float]()
        ids = [i.id for i in items_of(self.job.analysis, self.room.grid) if len(self.room.grid[i.id]) > 1]
        draws = np.random.default_rng(self.job.config.seed)
        planned = [dict[str, float]()]
        if self.job.layers:
            planned += [{x.id: factor for x in self.job.layers} for factor in LAYERS]
        drawn = 0
        while len(self.losses) < limit and drawn < limit * REDRAWS:
            drawn += 1
            trial = planned.pop(0) if planned else _varied(factors, ids, draws)
            found = self.room.allocated(trial)
            if not found.reached or self._key(found.counts) in self.losses:
                continue
            loss = self.loss(found.counts)
            self.steps.progress("choose", len(self.losses) / limit, f"{len(self.losses)} of {limit}")
            if loss < least:
                best, least, factors = found, loss, trial
        note = (
            f"chosen among {len(self.losses)} ways to meet the budget by the output error left after repair: "
            f"{least:.3g}; plain descent leaves {first:.3g}"
        )
        return replace(progress, aim=dict(best.counts), factors=factors, note=note)

    def loss(self, counts: Mapping[str, int]) -> float:
        """Output error of a cut, repaired where closed form is allowed, on samples the repair hasn't seen."""
        job, analysis = self.job, self.job.analysis
        gone = taken_out(analysis, counts)
        cut = prune(analysis, self.means.units(job, counts), layers=gone, sha256=job.sha256)
        model = cut.model
        if self.means.healer.closed_form:
            with contextlib.suppress(HealError):  # as it is, then
                model = with_weights(model, self._repaired(cut))
        outputs = Session(model, threads=job.config.jobs).run_samples(self.judged)
        found = output_error(self.reference, outputs)
        self.losses[self._key(counts)] = found
        return found

    def _repaired(self, cut: Cut) -> Mapping[str, np.ndarray]:
        return self.means.healer.repair(cut, {}, self.repair, most_rows=REPAIR_ROWS).weights

    def _key(self, counts: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(counts[name] for name in sorted(counts))


def _varied(factors: Mapping[str, float], ids: list[str], draws: np.random.Generator) -> dict[str, float]:
    """Some of the factors multiplied by random numbers around one."""
    count = max(1, -(-len(ids) // SUBSET))
    some = draws.choice(len(ids), size=count, replace=False)
    change = np.exp(draws.normal(scale=SPREAD, size=count))
    return {
        **factors,
        **{ids[i]: factors.get(ids[i], 1.0) * float(x) for i, x in zip(some, change, strict=True)},
    }


def evaluations(job: Job, means: Means, repair: Samples, judged: Samples) -> int:
    """How many choices can be tried, by the size of the model."""
    seconds = SEARCH_SECONDS + SEARCH_SHARE * 60 * (means.healer.spec.minutes or 0.0)
    samples = len(judged) + (3 * len(repair) if means.healer.closed_form else 0)
    cost = job.analysis.macs() * samples / TRIED_PER_SECOND
    cost += NODE_SECONDS * len(job.analysis.context.costs)
    return int(min(MOST, max(FEWEST, seconds / max(cost, 1e-9))))
