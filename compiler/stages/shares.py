"""How layers share the zeros: by a method that was named, or by the one that changes the outputs less.

By magnitude over a layer's own mean square zeros are shared at once; by the sensitivity map it takes a run of
the model for each layer, and is better where a few layers matter much; by shapes narrow layers keep more.
Which it is depends on the model, so where nothing was asked for all are made and the one that changes the
outputs least is taken. Where so many zeros leave nothing of the outputs, fewer of them tell the ways apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from condensec.fidelity import output_error
from condensec.passes import patterns
from condensec.passes.effects import effects, outputs
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import with_weights
from condensec.passes.sampling import affordable
from condensec.sparsity import Sparsity
from condensec.stages.job import Job, evidence
from condensec.stages.steps import Steps

WAYS = ("obs", "sensitivity", "erk")
TELLING = 0.5  # of the outputs' own size: what is left of them beyond tells nothing
FEWER, FEWEST = 0.8, 0.3  # times the zeros, where it doesn't; and not with a smaller share than that
EFFECT_SECONDS, LEAST_SAMPLES = 60.0, 4  # for the sensitivity map of zeros


@dataclass(frozen=True)
class Shares:
    """How the zeros are shared.

    Attributes:
        layers: with what is known of them.
        spec: the pattern, its method chosen.
        zeros: made for all of these layers already; None where nothing had to be compared.
        notes: what to say of it.
    """

    layers: Sequence[Layer]
    spec: Sparsity
    zeros: dict[str, Zeros] | None = None
    notes: tuple[str, ...] = ()


def shared(job: Job, model: ir.Model, layers: Sequence[Layer], wanted: Sparsity, steps: Steps) -> Shares:
    """Layers and the pattern as they are to be used.

    Args:
        job: the run.
        model: as it is, healed.
        layers: weights that may hold zeros.
        wanted: as it was asked for.
        steps: for progress.
    """
    open_ = not (wanted.method or wanted.m or job.data.synthetic)
    if not open_ and wanted.method != "sensitivity":
        return Shares(layers, wanted)
    known = steps.run("effects", _with_effects, job, model, layers, wanted, steps)
    if not open_:
        return Shares(known, wanted)
    samples = evidence(job).samples  # from the end: the map is measured on those at the beginning
    count = _count(job, len(WAYS) + 1)
    judged = samples.subset(np.arange(len(samples) - count, len(samples)))
    reference = outputs(model, judged, job.config.jobs)
    share = wanted.share
    while True:
        made, lost = {}, {}
        for way in WAYS:
            spec = replace(wanted, method=way, share=share)
            made[way] = steps.run("pattern", patterns.get(wanted.name), known, spec)
            without = with_weights(model, {name: z.weight for name, z in made[way].items()})
            lost[way] = output_error(reference, outputs(without, judged, job.config.jobs))
        if min(lost.values()) < TELLING or FEWER * share < FEWEST:
            break
        share *= FEWER
    best = min(WAYS, key=lost.__getitem__)
    figures = ", ".join(f"{way} {lost[way]:.3g}" for way in WAYS)
    at = "" if share == wanted.share else f" with {share:.3g}"
    note = f"layers share the zeros by {best}; change of the outputs before healing{at}: {figures}"
    zeros = made[best] if share == wanted.share else None
    return Shares(known, replace(wanted, method=best), zeros, (note,))


def _count(job: Job, runs: int) -> int:
    """Samples that so many runs of the model are worth; fewer where there is much to run."""
    most = affordable(job.analysis.macs(), runs, EFFECT_SECONDS, LEAST_SAMPLES)
    return min(len(evidence(job).samples), most)


def _with_effects(
    job: Job, model: ir.Model, layers: Sequence[Layer], wanted: Sparsity, steps: Steps
) -> list[Layer]:
    """The layers with what the outputs lose by each."""
    found = effects(
        model,
        layers,
        wanted.share,
        evidence(job).samples.first(_count(job, len(layers) + 1)),
        threads=job.config.jobs,
        tell=lambda share: steps.progress("effects", share),
    )
    return [replace(layer, effect=found[layer.place.weight]) for layer in layers]
