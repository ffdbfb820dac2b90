"""Zeros in a pattern, after the units: set, judged, healed under their mask, checked in the file."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec import io
from condensec.config import Config
from condensec.errors import ConfigError, HealError, PostconditionError
from condensec.hardware.target import Target
from condensec.passes import patterns
from condensec.passes.contraction import Place, arrays, places
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import Cut, with_weights
from condensec.passes.second_moments import Moments
from condensec.report.model import PatternResult, Report
from condensec.sparsity import Sparsity, asked
from condensec.stages.cycles import final_cut
from condensec.stages.heal import Healer
from condensec.stages.job import Job, evidence
from condensec.stages.means import Means
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
GUARD = "taken out: the guard"
MANY = 0.6  # zeros: more are set in rounds, where there is time to train
ROUNDS = 4
GRADUAL = 0.5  # of the training for zeros that the rounds before the last may take
TRIES = 6  # of a smaller share, or fewer layers, at most
NO_SPEED = "no speed gain in onnxruntime: its kernels multiply by zeros like by other numbers"
INDEX_BYTES = 8  # of one place of a sparse ONNX tensor (int64)


@dataclass(frozen=True)
class Outcome:
    """What became of the pattern that was asked for.

    Attributes:
        asked: the pattern.
        places: weights that hold it.
        left_out: why others don't, by name.
        reached: everything asked for is there.
        metric: on validation samples; None where nothing could be kept.
        how: what healed it, in words.
        notes: sentences for the report.
    """

    asked: Sparsity
    places: tuple[Place, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    reached: bool = False
    metric: float | None = None
    how: str = "off"
    notes: tuple[str, ...] = ()


def check_targets(config: Config, targets: Sequence[Target]) -> None:
    """Refuse a pattern that a target can't use.

    Raises:
        ConfigError: names the target and why.
    """
    wanted = asked(config.patterns)
    if wanted is None or not wanted.m:
        return
    for target in targets:
        kind = f"{wanted.n}:{wanted.m}"
        if target.runtime != "tensorrt" or kind in target.sparsity:
            continue
        can = ", ".join(target.sparsity)
        reason = (
            f"its tensor cores skip zeros in {can} only"
            if can
            else f"its tensor cores can't skip zeros; they do from Ampere (sm80) on, this is {target.isa}"
        )
        raise ConfigError(
            f"--patterns {wanted}: target '{target.name}' can't use {kind}: {reason}",
            hint=f"use --patterns {can}"
            if can
            else "use nvidia-a10, nvidia-l4 or jetson-orin, or cut channels",
        )


@dataclass(frozen=True)
class _Try:
    """One application of a pattern."""

    zeros: Mapping[str, Zeros]
    weights: Weights
    metric: float
    how: str = "off"


@dataclass
class _Stage:
    """Everything a try needs; ``progress`` counts the healing used."""

    job: Job
    healer: Healer
    steps: Steps
    cut: Cut
    base: Weights
    progress: Progress

    def attempt(self, zeros: Mapping[str, Zeros]) -> _Try:
        """Judge some zeros; where the guard is broken, heal under the mask with half of the time left."""
        weights = {**self.base, **{name: z.weight for name, z in zeros.items()}}
        metric = self.judged(weights)
        found = _Try(zeros, weights, metric)
        return found if self.job.keeps_guard(metric) else self.heal(found, 0.5)

    def heal(self, found: _Try, share: float) -> _Try:
        """Train with a share of the time left; what is no better is forgotten."""
        seconds = self.healer.seconds_left(self.progress, share)
        if seconds is None or not found.zeros:
            return found
        names = sorted(found.zeros)
        try:
            healed = self.steps.run("heal", self.healer.train, self.cut, found.weights, seconds, zeros=names)
        except HealError:
            return found
        spent = self.progress.heal_seconds + healed.gradient_seconds
        self.progress = replace(self.progress, heal_seconds=spent)
        weights = {**found.weights, **healed.weights}
        _keep_zeros(found.zeros, weights)
        metric = self.judged(weights)
        if self.job.better(found.metric, metric):
            return found
        return replace(found, weights=weights, metric=metric, how=healed.how)

    def judged(self, weights: Weights) -> float:
        """The metric with these weights."""
        return self.steps.run("judge", self.job.judge, with_weights(self.cut.model, weights))


def _keep_zeros(zeros: Mapping[str, Zeros], weights: Weights) -> None:
    """Raise where healing filled a zero.

    Raises:
        PostconditionError: names the weight.
    """
    for name, found in zeros.items():
        if np.any(weights[name][~found.mask]):
            raise PostconditionError(f"healing filled zeros of '{name}'", node=name)


def apply(job: Job, means: Means, steps: Steps, progress: Progress) -> tuple[Progress, Outcome | None]:
    """Set the zeros asked for in the accepted model; as many as the guard allows.

    Returns:
        Progress whose safe model holds the zeros, and what became of them; unchanged and None where no
        pattern was asked for.

    Raises:
        ConfigError: the method needs data and there is none, or no weight can hold the pattern.
    """
    wanted = asked(job.config.patterns)
    if wanted is None:
        return progress, None
    if job.data.synthetic and wanted.method in ("obs", "wanda"):
        raise ConfigError(f"--patterns {wanted}: {wanted.method} looks at activations", hint="give --data")
    cut, model = final_cut(job, progress.safe)
    layers, left_out = _layers(job, model, wanted)
    if not layers:
        raise ConfigError(
            f"--patterns {wanted}: no weight can hold it: {next(iter(left_out.values()), 'there are none')}",
            hint="use unstructured=0.9, or another m",
        )
    stage = _Stage(job, means.healer, steps, cut, progress.safe.weights, progress)
    make = patterns.get(wanted.name)

    def zeros(some: Sequence[Layer], spec: Sparsity) -> dict[str, Zeros]:
        return steps.run("pattern", make, some, spec)

    search = _by_layer if wanted.m else _by_share
    found, reached, notes = search(stage, layers, wanted, zeros)
    if found is None:
        left_out |= {layer.place.weight: GUARD for layer in layers}
        outcome = Outcome(wanted, (), left_out, notes=("no zeros could be set within the guard", *notes))
        return stage.progress, outcome
    if job.points_lost(found.metric) > 0:
        found = stage.heal(found, 1.0)
    held = tuple(layer.place for layer in layers if layer.place.weight in found.zeros)
    out = {p.weight: GUARD for p in (la.place for la in layers) if p not in held}
    safe = replace(stage.progress.safe, weights=found.weights, metric=found.metric)
    done = replace(stage.progress, safe=safe, best=safe)
    return done, Outcome(wanted, held, {**left_out, **out}, reached, found.metric, found.how, notes)


def _layers(job: Job, model: ir.Model, wanted: Sparsity) -> tuple[list[Layer], dict[str, str]]:
    """Weights that can hold a pattern, and why others can't."""
    found, skipped = places(model)
    frozen = re.compile(job.config.freeze) if job.config.freeze else None
    kept = []
    for place in found:
        if frozen and (frozen.search(place.weight) or frozen.search(place.node.name or "")):
            skipped[place.weight] = "frozen by the user"
        elif place.size % wanted.unit:
            skipped[place.weight] = f"its {place.size} input channels are no multiple of {wanted.unit}"
        else:
            kept.append(place)
    moments = None
    if not job.data.synthetic and wanted.method not in ("magnitude", "layerwise"):
        moments = Moments(model, kept, evidence(job).samples, job.config.jobs)
    weights = arrays(model, kept)
    return [Layer(p, weights[p.weight], moments) for p in kept], skipped


Maker = Callable[[Sequence[Layer], Sparsity], dict[str, Zeros]]
Found = tuple[_Try | None, bool, tuple[str, ...]]


def _by_share(stage: _Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Found:
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


def _gradually(stage: _Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> _Try | None:
    """More and more zeros, with training under those there are in between; not trained after the last.

    The cubic schedule of Zhu & Gupta 2017 (arXiv:1710.01878): quick while there is much to take, slow at the
    end. What is zero stays zero, as it is the cheapest to take in the next round.

    Returns:
        None where all may go at once (few zeros), or where there is no time to train.
    """
    seconds = stage.healer.seconds_left(stage.progress, GRADUAL / ROUNDS)
    if wanted.share < MANY or seconds is None or not math.isfinite(seconds):
        return None
    weights = dict(stage.base)
    found: _Try | None = None
    for number in range(1, ROUNDS + 1):
        share = wanted.share * (1 - (1 - number / ROUNDS) ** 3)
        now = [replace(layer, weight=weights.get(layer.place.weight, layer.weight)) for layer in layers]
        made = zeros(now, replace(wanted, share=round(share, 4)))
        new = {**weights, **{name: z.weight for name, z in made.items()}}
        found = _Try(made, new, stage.judged(new))
        if number < ROUNDS:
            found = stage.heal(found, GRADUAL / (ROUNDS - number) / 2)
        weights = dict(found.weights)
    return found


def _by_layer(stage: _Stage, layers: Sequence[Layer], wanted: Sparsity, zeros: Maker) -> Found:
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


def told(report: Report, outcome: Outcome | None, path: Path) -> Report:
    """The report with what was counted in the file written."""
    if outcome is None:
        return report
    result = count(outcome, io.load(path))
    status = report.status if outcome.reached else "budget_not_met"
    return replace(report, patterns=(result,), status=status)


def count(outcome: Outcome, model: ir.Model) -> PatternResult:
    """Zeros and violations of a pattern in a model, and what the weights take compressed.

    Args:
        outcome: which weights should hold it.
        model: as written.

    Raises:
        PostconditionError: groups of N:M hold more than they may; names the weight.
    """
    wanted = outcome.asked
    sizes = dict.fromkeys(("weights", "zeros", "violations", "bytes", "zlib", "sparse"), 0)
    for place in outcome.places:
        tensor = model.graph.initializers[place.weight].const_value
        assert tensor is not None
        array = tensor.numpy()
        stay = int(np.count_nonzero(array))
        wrong = patterns.violations(place, array, wanted.n, wanted.m) if wanted.m else 0
        if wanted.width:  # a weight of the original's that was zero tears a block, too: told, not refused
            sizes["violations"] += patterns.torn(place, array, wanted.width)
        if wrong:
            raise PostconditionError(f"{wrong} groups of '{place.weight}' break {wanted}", node=place.weight)
        raw = np.ascontiguousarray(array).tobytes()
        sizes["weights"] += array.size
        sizes["zeros"] += array.size - stay
        sizes["bytes"] += len(raw)
        sizes["zlib"] += len(zlib.compress(raw, 6))
        sizes["sparse"] += stay * (array.itemsize + INDEX_BYTES)
    return PatternResult(
        name=str(wanted),
        share_asked=wanted.share,
        share_reached=sizes["zeros"] / max(1, sizes["weights"]),
        reached=outcome.reached,
        weights=sizes["weights"],
        zeros=sizes["zeros"],
        violations=sizes["violations"],
        layers=len(outcome.places),
        bytes=sizes["bytes"],
        compressed_bytes=sizes["zlib"],
        sparse_bytes=sizes["sparse"],
        metric=outcome.metric,
        healed_how=outcome.how,
        left_out=dict(outcome.left_out),
        notes=(*outcome.notes, NO_SPEED),
    )
