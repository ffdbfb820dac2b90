"""How layers share the zeros: by a method that was named, or by the one that changes the outputs less.

By magnitude over a layer's own mean square zeros are shared at once; by the sensitivity map it takes a run of
the model for each layer, and is better where a few layers matter much. Which it is depends on the model, so
where nothing was asked for both are made and the one that changes the outputs less is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from condensec.data import Samples
from condensec.passes import patterns
from condensec.passes.effects import BATCH, effects
from condensec.passes.fidelity import output_error
from condensec.passes.patterns import Layer
from condensec.passes.prune import with_weights
from condensec.passes.sampling import affordable
from condensec.runner import Session
from condensec.sparsity import Sparsity
from condensec.stages.job import Job, evidence
from condensec.stages.steps import Steps

WAYS = ("obs", "sensitivity")
EFFECT_SECONDS, LEAST_SAMPLES = 60.0, 4  # for the sensitivity map of zeros


def shared(
    job: Job, model: ir.Model, layers: Sequence[Layer], wanted: Sparsity, steps: Steps
) -> tuple[list[Layer], Sparsity, tuple[str, ...]]:
    """Layers and the pattern as they are to be used, and what to say of it.

    Args:
        job: the run.
        model: as it is, healed.
        layers: weights that may hold zeros.
        wanted: as it was asked for.
        steps: for progress.
    """
    if wanted.method == "sensitivity":
        return steps.run("effects", _with_effects, job, model, layers, wanted, steps), wanted, ()
    if wanted.method or wanted.m or job.data.synthetic:
        return list(layers), wanted, ()
    known = steps.run("effects", _with_effects, job, model, layers, wanted, steps)
    judged = _judged(job, len(WAYS) + 1)
    make = patterns.get(wanted.name)
    reference = _outputs(job, model, judged)
    lost = {}
    for way in WAYS:
        zeros = steps.run("pattern", make, known, replace(wanted, method=way))
        without = with_weights(model, {name: z.weight for name, z in zeros.items()})
        lost[way] = output_error(reference, _outputs(job, without, judged))
    best = min(WAYS, key=lost.__getitem__)
    figures = ", ".join(f"{way} {lost[way]:.3g}" for way in WAYS)
    note = f"layers share the zeros by {best}; change of the outputs before healing: {figures}"
    return known, replace(wanted, method=best), (note,)


def _judged(job: Job, runs: int) -> Samples:
    """Samples from the end: the map is measured on those at the beginning."""
    samples = evidence(job).samples
    count = min(len(samples), affordable(job.analysis.macs(), runs, EFFECT_SECONDS, LEAST_SAMPLES))
    return samples.subset(np.arange(len(samples) - count, len(samples)))


def _outputs(job: Job, model: ir.Model, samples: Samples) -> dict[str, np.ndarray]:
    return Session(model, threads=job.config.jobs, optimize="basic").run_samples(samples, batch=BATCH)


def _with_effects(
    job: Job, model: ir.Model, layers: Sequence[Layer], wanted: Sparsity, steps: Steps
) -> list[Layer]:
    """The layers with what the outputs lose by each; on fewer samples where there is much to run."""
    count = affordable(job.analysis.macs(), len(layers) + 1, EFFECT_SECONDS, LEAST_SAMPLES)
    few = evidence(job).samples
    few = few.first(min(count, len(few)))
    found = effects(
        model,
        layers,
        wanted.share,
        few,
        threads=job.config.jobs,
        tell=lambda share: steps.progress("effects", share),
    )
    return [replace(layer, effect=found[layer.place.weight]) for layer in layers]
