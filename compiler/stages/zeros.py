"""How many zeros the guard allows: tries that are judged, and healed under their mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import HealError, PostconditionError
from condensec.healing import Thin
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import Cut, with_weights
from condensec.sparsity import Sparsity
from condensec.stages.heal import Healed, Healer
from condensec.stages.job import Job
from condensec.stages.kept import Kept, Standing, Try
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
MANY = 0.6  # zeros: more come while the model trains, where there is time for it
GRADUAL = 0.75  # of the time for zeros goes into that; the rest is for fewer, if the guard wants it
LEAST_SECONDS = 30.0  # starting a training takes some of it
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
        seconds = self.healer.minutes.seconds_left(self.progress, share)
        if seconds is None or not found.zeros:
            return found
        names = sorted(found.zeros)
        healed = self.trained(found.weights, seconds, zeros=names)
        if healed is None:
            return found
        weights = {**found.weights, **healed.weights}
        keep_zeros(found.zeros, weights)
        metric = self.judged(weights)
        if self.job.better(found.metric, metric):
            return found
        return replace(found, weights=weights, metric=metric, how=healed.how)

    def trained(self, weights: Weights, seconds: float, **more: Any) -> Healed | None:
        """What training makes of weights, or made before an interruption; None where it failed."""
        number, self.trainings = self.trainings, self.trainings + 1
        healed = self.kept.training(number, weights)
        if healed is None:
            try:
                healed = self.steps.run("heal", self.healer.train, self.cut, weights, seconds, **more)
            except HealError:
                return None
            self.kept.trained(number, weights, healed)
        spent = self.progress.heal_seconds + healed.gradient_seconds
        self.progress = replace(self.progress, heal_seconds=spent)
        return healed

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
        gradual = found is not None
        if found is None:
            found = stage.attempt(zeros(layers, wanted))
        elif not stage.job.keeps_guard(found.metric):
            found = stage.heal(found, 0.6)
        within = stage.job.keeps_guard(found.metric)
        best = found if within else None
        stage.now(tries=1, gradual=gradual, high=wanted.share, best=best, reached=within)
    if stage.standing.reached:
        note = "more and more of them while it trained"
        return stage.standing.best, True, (note,) if stage.standing.gradual else ()
    while stage.standing.tries <= TRIES:
        share = round((stage.standing.low + stage.standing.high) / 2, 4)
        found = stage.attempt(zeros(layers, replace(wanted, share=share)))
        within = stage.job.keeps_guard(found.metric)
        bound = {"low": share, "best": found} if within else {"high": share}
        stage.now(tries=stage.standing.tries + 1, **bound)
    allowed = f"the guard allowed {stage.standing.low:.3g} of {wanted.share:.3g} zeros"
    return stage.standing.best, False, (allowed,)


def _gradually(stage: Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Try | None:
    """Zeros that come while the model trains (`condensec.healing.worker.zeros`), instead of all at once.

    The layers share them as the pattern has it; which weights of a layer go is decided on the way.

    Returns:
        None where all may go at once (few zeros), where there is no time to train, or where training failed.
    """
    share = GRADUAL if math.isfinite(stage.job.config.max_drop) else 1.0
    seconds = stage.healer.minutes.seconds_left(stage.progress, share)
    if wanted.share < MANY or seconds is None or not LEAST_SECONDS <= seconds < math.inf:
        return None
    made = zeros(layers, wanted)
    counts = {name: int(np.count_nonzero(~z.mask)) for name, z in made.items()}
    thin = Thin(counts, {x.place.weight: _prices(x) for x in layers if x.squares is not None})
    healed = stage.trained(stage.base, seconds, thin=thin)
    if healed is None:
        return None
    missing = {name: z.weight for name, z in made.items() if name not in healed.weights}
    weights = {**stage.base, **missing, **healed.weights}
    found = {n: replace(z, mask=weights[n] != 0, weight=weights[n]) for n, z in made.items()}
    for name, count in counts.items():
        if np.count_nonzero(~found[name].mask) < count:
            raise PostconditionError(f"training left fewer zeros in '{name}' than it was to", node=name)
    return Try(found, weights, stage.judged(weights), healed.how)


def _prices(layer: Layer) -> npt.NDArray[Any]:
    """What a unit of each weight's square adds to the layer's output: the mean square of its input."""
    assert layer.squares is not None
    wide = np.broadcast_to(layer.squares[:, None, :], layer.matrix.shape)
    return np.ascontiguousarray(layer.place.array(wide), np.float32)


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
