"""How many zeros the guard allows: tries that are judged, and healed under their mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import HealError, PostconditionError
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import Cut, with_weights
from condensec.sparsity import Sparsity
from condensec.stages.heal import Healer
from condensec.stages.job import Job
from condensec.stages.kept import Kept, Standing, Try
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
MANY = 0.6  # zeros: more are set in rounds, where there is time to train
ROUNDS = 3
ROUND_SECONDS = 15.0  # a round's share of the time, at least: starting a training takes some of it
GRADUAL = 0.4  # of the training for zeros that the rounds before the last may take
TRIES = 6  # of a smaller share, or fewer layers, at most


@dataclass
class Stage:
    """Everything a try needs; ``progress`` counts the healing used, ``standing`` says how far it is."""

    job: Job
    healer: Healer
    steps: Steps
    cut: Cut
    base: Weights
    progress: Progress
    kept: Kept
    standing: Standing = field(default_factory=Standing)
    trainings: int = 0

    def __post_init__(self) -> None:
        found = self.kept.standing()
        if found is not None:
            self.standing, self.trainings = found, found.trainings
            self.progress = replace(self.progress, heal_seconds=found.heal_seconds)

    def now(self, **changes: Any) -> None:
        """A step of the search has ended: a resumed run goes on from here."""
        self.standing = replace(
            self.standing,
            **changes,
            heal_seconds=self.progress.heal_seconds,
            trainings=self.trainings,
        )
        self.kept.save(self.standing)

    def attempt(self, zeros: Mapping[str, Zeros]) -> Try:
        """Judge some zeros; where the guard is broken, heal under the mask with half of the time left."""
        weights = {**self.base, **{name: z.weight for name, z in zeros.items()}}
        metric = self.judged(weights)
        found = Try(zeros, weights, metric)
        return found if self.job.keeps_guard(metric) else self.heal(found, 0.5)

    def heal(self, found: Try, share: float) -> Try:
        """Train with a share of the time left; what is no better is forgotten."""
        seconds = self.healer.seconds_left(self.progress, share)
        if seconds is None or not found.zeros:
            return found
        names = sorted(found.zeros)
        number, self.trainings = self.trainings, self.trainings + 1
        healed = self.kept.training(number, found.weights)
        if healed is None:
            try:
                healed = self.steps.run(
                    "heal", self.healer.train, self.cut, found.weights, seconds, zeros=names
                )
            except HealError:
                return found
            self.kept.trained(number, found.weights, healed)
        spent = self.progress.heal_seconds + healed.gradient_seconds
        self.progress = replace(self.progress, heal_seconds=spent)
        weights = {**found.weights, **healed.weights}
        keep_zeros(found.zeros, weights)
        metric = self.judged(weights)
        if self.job.better(found.metric, metric):
            return found
        return replace(found, weights=weights, metric=metric, how=healed.how)

    def judged(self, weights: Weights) -> float:
        """The metric with these weights."""
        return self.steps.run("judge", self.job.judge, with_weights(self.cut.model, weights))


def keep_zeros(zeros: Mapping[str, Zeros], weights: Weights) -> None:
    """Raise where healing filled a zero.

    Raises:
        PostconditionError: names the weight.
    """
    for name, found in zeros.items():
        if np.any(weights[name][~found.mask]):
            raise PostconditionError(f"healing filled zeros of '{name}'", node=name)


Maker = Callable[[Sequence[Layer], Sparsity], dict[str, Zeros]]
Found = tuple[Try | None, bool, tuple[str, ...]]


def by_share(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Found:
    """The largest share of zeros within the guard, by bisection."""
    if not stage.standing.tries:
        found = _gradually(stage, layers, wanted, zeros)
        if found is None:
            found = stage.attempt(zeros(layers, wanted))
        elif not stage.job.keeps_guard(found.metric):
            found = stage.heal(found, 0.6)
        within = stage.job.keeps_guard(found.metric)
        stage.now(tries=1, current=None, high=wanted.share, best=found if within else None, reached=within)
    if stage.standing.reached:
        gradual = f"in {ROUNDS} rounds, trained between them"
        return stage.standing.best, True, (gradual,) if stage.standing.rounds else ()
    while stage.standing.tries <= TRIES:
        share = round((stage.standing.low + stage.standing.high) / 2, 4)
        found = stage.attempt(zeros(layers, replace(wanted, share=share)))
        within = stage.job.keeps_guard(found.metric)
        bound = {"low": share, "best": found} if within else {"high": share}
        stage.now(tries=stage.standing.tries + 1, **bound)
    allowed = f"the guard allowed {stage.standing.low:.3g} of {wanted.share:.3g} zeros"
    return stage.standing.best, False, (allowed,)


def _gradually(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Try | None:
    """More and more zeros, with training under those there are in between; not trained after the last.

    The cubic schedule of Zhu & Gupta 2017 (arXiv:1710.01878): quick while there is much to take, slow at the
    end. What is zero stays zero, as it is the cheapest to take in the next round.

    Returns:
        None where all may go at once (few zeros), or where there is no time to train.
    """
    if not stage.standing.rounds:  # once begun, they are ended
        seconds = stage.healer.seconds_left(stage.progress, GRADUAL / ROUNDS)
        if wanted.share < MANY or seconds is None or not ROUND_SECONDS <= seconds < math.inf:
            return None
    for number in range(stage.standing.rounds + 1, ROUNDS + 1):
        before = stage.standing.current
        weights = stage.base if before is None else before.weights
        share = wanted.share * (1 - (1 - number / ROUNDS) ** 3)
        now = [replace(layer, weight=weights.get(layer.place.weight, layer.weight)) for layer in layers]
        made = zeros(now, replace(wanted, share=round(share, 4)))
        new = {**weights, **{name: z.weight for name, z in made.items()}}
        found = Try(made, new, stage.judged(new))
        if number < ROUNDS:
            found = stage.heal(found, GRADUAL / (ROUNDS - number) / 2)
        stage.now(rounds=number, current=found)
    return stage.standing.current


def by_layer(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Found:
    """As many layers as the guard allows: those whose outputs change most are taken out first."""
    if stage.standing.current is None:
        stage.now(current=Try(zeros(layers, wanted), {}, math.nan))
    assert stage.standing.current is not None
    every = stage.standing.current.zeros
    if not stage.standing.tries:
        found = stage.attempt(every)
        within = stage.job.keeps_guard(found.metric)
        stage.now(tries=1, high=len(every), best=found if within else None, reached=within)
    if stage.standing.reached:
        return stage.standing.best, True, ()
    order = sorted(every, key=lambda name: -every[name].damage)
    for _ in range(stage.standing.tries, 1 + min(TRIES, max(1, math.ceil(math.log2(len(order) + 1))))):
        low, high = int(stage.standing.low), int(stage.standing.high)  # layers taken out: too few, all
        middle = (low + high) // 2
        if middle == low:
            break
        found = stage.attempt({name: z for name, z in every.items() if name not in order[:middle]})
        within = stage.job.keeps_guard(found.metric)
        bound = {"high": middle, "best": found} if within else {"low": middle}
        stage.now(tries=stage.standing.tries + 1, **bound)
    best = stage.standing.best
    if best is None and len(order) > 1:
        last = stage.attempt({order[-1]: every[order[-1]]})
        best = last if stage.job.keeps_guard(last.metric) else None
    count = len(order) if best is None else int(stage.standing.high)
    return best, False, (f"{count} of {len(order)} layers were taken out to keep the guard",)
