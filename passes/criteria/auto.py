"""The criterion that does best on this model, by measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from condensec.errors import CondensecError
from condensec.fidelity import output_error
from condensec.passes import criteria
from condensec.passes.criteria import FloatArray, GroupView, criterion
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Group
from condensec.passes.sampling import affordable, run
from condensec.passes.supergraph import build
from condensec.runner import Session

GROUPS = 6  # tried
SAMPLES = 64
SECONDS = 30.0  # about what the trial may take; fewer samples where the model is large
TINY = 1e-9  # errors below are rounding


@criterion("auto", data=True)
def auto(view: GroupView) -> FloatArray:
    """Scores of the criterion whose choice hurts the outputs least.

    Each criterion cuts half of up to six groups, one at a time, and then a quarter of all groups together:
    alone, groups show their scores; together, errors add up as they will. The error of the outputs is
    measured on calibration samples with one masked graph. The smallest geometric mean of both wins, ties by
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
    scores = {name: _mean([_mean(alone), together]) for name, (alone, together) in errors.items()}
    best = min(scores, key=lambda n: (scores[n], n))
    listed = ", ".join(f"{n} {scores[n]:.3g}" for n in sorted(scores, key=lambda n: (scores[n], n)))
    evidence.notes.append(
        f"criterion '{best}' was chosen by output error, half of each of {len(groups)} groups and a quarter"
        f" of all: {listed}"
    )
    return best


def _mean(values: Sequence[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(np.maximum(values, TINY)))))


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
) -> dict[str, tuple[list[float], float]]:
    """Output errors by criterion: of each group's half, and of a quarter of all groups.

    A criterion that fails drops out, and the notes say so.
    """
    analysis = evidence.analysis
    graph = build(analysis)
    session = Session(graph.model, threads=evidence.threads)
    count = affordable(analysis.macs(), max(1, (len(groups) + 1) * len(names)), SECONDS)
    samples = evidence.samples.first(min(SAMPLES, count))
    reference = run(session, samples, graph.masks(analysis.kept({})))
    errors: dict[str, tuple[list[float], float]] = {}

    def error(units: dict[str, npt.NDArray[np.int64]]) -> float:
        return output_error(reference, run(session, samples, graph.masks(analysis.kept(units))))

    for name in names:
        try:
            order = {
                g.id: np.argsort(
                    -criteria.get(name)(GroupView(analysis, g, view.weights, view.seed, evidence)),
                    kind="stable",
                )
                for g in analysis.groups
            }
            alone = [error({g.id: order[g.id][: max(1, g.size // 2)]}) for g in groups]
            together = error({g.id: order[g.id][: max(1, round(0.75 * g.size))] for g in analysis.groups})
        except CondensecError as failure:
            evidence.notes.append(f"criterion '{name}' wasn't tried: {failure.message}")
            continue
        errors[name] = (alone, together)
    return errors
