"""The criterion that does best on this model, by measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from condensec.errors import CondensecError
from condensec.passes import criteria
from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Group
from condensec.passes.sensitivity import affordable, output_error, run
from condensec.passes.supergraph import build
from condensec.runner import Session

GROUPS = 6  # tried
SAMPLES = 64
SECONDS = 30.0  # about what the trial may take; fewer samples where the model is large
TINY = 1e-9  # errors below are rounding


@criterion("auto", data=True)
def auto(view: GroupView) -> FloatArray:
    """Scores of the criterion whose choice of half of a few groups hurts the outputs least.

    Each criterion cuts half of up to six groups, one at a time; the error of the outputs is measured on
    calibration samples with one masked graph; the smallest geometric mean over the groups wins, ties by
    name. Criteria by gradient take part where the training worker is installed already.
    """
    name = view.evidence.once("auto", lambda: _best(view))
    return criteria.get(name)(view)


def _best(view: GroupView) -> str:
    evidence = view.evidence
    groups = _some(evidence.analysis.groups)
    names = [n for n in criteria.names() if n not in ("auto", "random")]
    if any("gradients" in criteria.needs(n) for n in names) and not _worker_is_ready():
        names = [n for n in names if "gradients" not in criteria.needs(n)]
        evidence.notes.append("criteria by gradient weren't tried: healing isn't set up (condensec doctor)")
    errors = _errors(view, evidence, groups, names)
    if not errors:
        return "magnitude"
    scores = {name: float(np.exp(np.mean(np.log(np.maximum(e, TINY))))) for name, e in errors.items()}
    best = min(scores, key=lambda n: (scores[n], n))
    listed = ", ".join(f"{n} {scores[n]:.3g}" for n in sorted(scores, key=lambda n: (scores[n], n)))
    evidence.notes.append(
        f"criterion '{best}' was chosen by output error at half of {len(groups)} groups: {listed}"
    )
    return best


def _some(groups: Sequence[Group]) -> list[Group]:
    """A handful of groups, evenly spread over the graph."""
    wide = [g for g in groups if g.size > 1]
    picks = np.unique(np.linspace(0, len(wide) - 1, min(GROUPS, len(wide))).round().astype(int))
    return [wide[int(i)] for i in picks] if wide else []


def _worker_is_ready() -> bool:
    from condensec.healing.environment import status

    return status().ready


def _errors(
    view: GroupView, evidence: Evidence, groups: Sequence[Group], names: Sequence[str]
) -> dict[str, list[float]]:
    """Output error at half of each group by criterion; one that fails drops out, and the notes say so."""
    analysis = evidence.analysis
    graph = build(analysis)
    session = Session(graph.model, threads=evidence.threads)
    count = affordable(analysis.macs(), max(1, len(groups) * len(names)), SECONDS)
    samples = evidence.samples.first(min(SAMPLES, count))
    reference = run(session, samples, graph.masks(analysis.kept({})))
    errors: dict[str, list[float]] = {}
    for name in names:
        found = []
        try:
            for group in groups:
                scores = criteria.get(name)(GroupView(analysis, group, view.weights, view.seed, evidence))
                kept = np.argsort(-scores, kind="stable")[: max(1, group.size // 2)]
                masks = graph.masks(analysis.kept({group.id: kept}))
                found.append(output_error(reference, run(session, samples, masks)))
        except CondensecError as error:
            evidence.notes.append(f"criterion '{name}' wasn't tried: {error.message}")
            continue
        errors[name] = found
    return errors
