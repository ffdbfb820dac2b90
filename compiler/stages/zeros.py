"""How many zeros the guard allows: tries that are judged, and healed under their mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import HealError, PostconditionError
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import Cut, with_weights
from condensec.sparsity import Sparsity
from condensec.stages.heal import Healer
from condensec.stages.job import Job
from condensec.stages.kept import Kept
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
MANY = 0.6  # zeros: more are set in rounds, where there is time to train
ROUNDS = 4
ROUND_SECONDS = 15.0  # a round's share of the time, at least: starting a training takes some of it
GRADUAL = 0.5  # of the training for zeros that the rounds before the last may take
TRIES = 6  # of a smaller share, or fewer layers, at most


@dataclass(frozen=True)
class Try:
    """One application of a pattern."""

    zeros: Mapping[str, Zeros]
    weights: Weights
    metric: float
    how: str = "off"


@dataclass
class Stage:
    """Everything a try needs; ``progress`` counts the healing used."""

    job: Job
    healer: Healer
    steps: Steps
    cut: Cut
    base: Weights
    progress: Progress
    kept: Kept
    trainings: int = 0

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
        healed = self.kept.load(number, found.weights)
        if healed is None:
            try:
                healed = self.steps.run(
                    "heal", self.healer.train, self.cut, found.weights, seconds, zeros=names
                )
            except HealError:
                return found
            self.kept.store(number, found.weights, healed)
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
    gradual = _gradually(stage, layers, wanted, zeros)
    found = gradual or stage.attempt(zeros(layers, wanted))
    if gradual is not None and not stage.job.keeps_guard(found.metric):
        found = stage.heal(found, 0.6)
    if stage.job.keeps_guard(found.metric):
        return found, True, () if gradual is None else (f"in {ROUNDS} rounds, trained between them",)
    low, high, best = 0.0, wanted.share, None
    for _ in range(TRIES):
        share = round((low + high) / 2, 4)
        found = stage.attempt(zeros(layers, replace(wanted, share=share)))
        if stage.job.keeps_guard(found.metric):
            low, best = share, found
        else:
            high = share
    return best, False, (f"the guard allowed {low:.3g} of {wanted.share:.3g} zeros",)


def _gradually(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Try | None:
    """More and more zeros, with training under those there are in between; not trained after the last.

    The cubic schedule of Zhu & Gupta 2017 (arXiv:1710.01878): quick while there is much to take, slow at the
    end. What is zero stays zero, as it is the cheapest to take in the next round.

    Returns:
        None where all may go at once (few zeros), or where there is no time to train.
    """
    seconds = stage.healer.seconds_left(stage.progress, GRADUAL / ROUNDS)
    if wanted.share < MANY or seconds is None or not ROUND_SECONDS <= seconds < math.inf:
        return None
    weights = dict(stage.base)
    found: Try | None = None
    for number in range(1, ROUNDS + 1):
        share = wanted.share * (1 - (1 - number / ROUNDS) ** 3)
        now = [replace(layer, weight=weights.get(layer.place.weight, layer.weight)) for layer in layers]
        made = zeros(now, replace(wanted, share=round(share, 4)))
        new = {**weights, **{name: z.weight for name, z in made.items()}}
        found = Try(made, new, stage.judged(new))
        if number < ROUNDS:
            found = stage.heal(found, GRADUAL / (ROUNDS - number) / 2)
        weights = dict(found.weights)
    return found


def by_layer(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Found:
    """As many layers as the guard allows: those whose outputs change most are taken out first."""
    every = zeros(layers, wanted)
    found = stage.attempt(every)
    if stage.job.keeps_guard(found.metric):
        return found, True, ()
    order = sorted(every, key=lambda name: -every[name].damage)
    low, high, best = 0, len(order), None  # layers taken out: too few, all
    for _ in range(min(TRIES, max(1, math.ceil(math.log2(len(order) + 1))))):
        middle = (low + high) // 2
        if middle == low:
            break
        out = order[:middle]
        found = stage.attempt({name: z for name, z in every.items() if name not in out})
        if stage.job.keeps_guard(found.metric):
            high, best = middle, found
        else:
            low = middle
    if best is None and len(order) > 1:
        last = stage.attempt({order[-1]: every[order[-1]]})
        best = last if stage.job.keeps_guard(last.metric) else None
    count = len(order) if best is None else high
    return best, False, (f"{count} of {len(order)} layers were taken out to keep the guard",)
