"""Zeros in a pattern, after the units: set, judged, healed under their mask, checked in the file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec import io
from condensec.config import Config
from condensec.errors import ConfigError, PostconditionError
from condensec.hardware.target import Target
from condensec.passes import patterns
from condensec.passes.contraction import Place, arrays, places
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.prune import with_weights
from condensec.passes.second_moments import Moments
from condensec.report.model import PatternResult, Report
from condensec.sparsity import Sparsity, asked
from condensec.stages import reorder, shares
from condensec.stages.cycles import final_cut
from condensec.stages.job import Job, evidence
from condensec.stages.kept import Kept, digest_of
from condensec.stages.means import Means
from condensec.stages.shares import Shares
from condensec.stages.state import Progress
from condensec.stages.steps import Steps
from condensec.stages.zeros import Found, Stage, by_layer, by_share

Weights = Mapping[str, npt.NDArray[Any]]
GUARD = "taken out: the guard"
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
    cut, moved, where = steps.run("permute", reorder.reordered, job, cut, model, wanted)
    model = with_weights(model, moved)
    layers, left_out = _layers(job, model, wanted)
    share = shares.shared(job, model, layers, wanted, steps)
    base = {**progress.safe.weights, **moved}
    kept = Kept(
        Path(job.config.output) / "state" / "zeros", digest_of(base, str(share.spec), cut.plan.digest())
    )
    stage = Stage(job, means.healer, steps, cut, base, progress, kept)
    found, reached, notes = _searched(stage, share)
    if found is None:
        left_out |= {layer.place.weight: GUARD for layer in layers}
        outcome = Outcome(
            wanted, (), left_out, notes=("no zeros could be set within the guard", *share.notes, *notes)
        )
        return stage.progress, outcome
    held = tuple(layer.place for layer in layers if layer.place.weight in found.zeros)
    out = {p.weight: GUARD for p in (la.place for la in layers) if p not in held}
    safe = replace(stage.progress.safe, weights=found.weights, metric=found.metric)
    done = replace(stage.progress, safe=safe, best=safe)
    notes = (*share.notes, *notes, *where)
    return done, Outcome(wanted, held, {**left_out, **out}, reached, found.metric, found.how, notes)


def _searched(stage: Stage, share: Shares) -> Found:
    """As many zeros as the guard allows, trained with what time is left if anything is lost."""
    layers, wanted, make = share.layers, share.spec, patterns.get(share.spec.name)

    def zeros(some: Sequence[Layer], spec: Sparsity) -> dict[str, Zeros]:
        if share.zeros is not None and some is layers and spec == wanted:
            return share.zeros
        return stage.steps.run("pattern", make, some, spec)

    search = by_layer if wanted.m else by_share
    found, reached, notes = search(stage, layers, wanted, zeros)
    if found is not None and stage.job.points_lost(found.metric) > 0:
        found = stage.heal(found, 1.0)
    return found, reached, notes


def _layers(job: Job, model: ir.Model, wanted: Sparsity) -> tuple[list[Layer], dict[str, str]]:
    """Weights that can hold a pattern, and why others can't.

    Raises:
        ConfigError: none can.
    """
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
    if not kept:
        raise ConfigError(
            f"--patterns {wanted}: no weight can hold it: {next(iter(skipped.values()), 'there are none')}",
            hint="use unstructured=0.9, or another m",
        )
    moments = None
    if not job.data.synthetic and wanted.method not in ("magnitude", "layerwise"):
        moments = Moments(model, kept, evidence(job).samples, job.config.jobs)
    weights = arrays(model, kept)
    return [Layer(p, weights[p.weight], moments) for p in kept], skipped


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
