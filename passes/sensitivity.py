"""Sensitivity: what the model loses when a share of one group goes, measured on calibration samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data import Samples
from condensec.fidelity import Outputs, sample_errors, standard_error
from condensec.passes.closing import close_bodies
from condensec.passes.curves import Curve, LayerLoss, Sensitivity
from condensec.passes.groups import Analysis, Group
from condensec.passes.layers import Layer, take_out
from condensec.passes.sampling import BATCH, affordable, batches
from condensec.passes.segments import Batch, Frontier, Line, Segment, behind
from condensec.passes.similarity import similarities
from condensec.passes.sites import sites
from condensec.passes.supergraph import build
from condensec.runner import Session

__all__ = ["Curve", "LayerLoss", "Sensitivity", "measure"]

Array = npt.NDArray[Any]
RATIOS = (0.875, 0.75, 0.5, 0.25, 0.125)  # kept shares measured; in between, curves are interpolated
MEASURED_PER_SECOND = 1e10  # the same where all but a few masks can be fused
MOST_PER_SECOND = 5e11  # with more than that for the fewest samples, less is measured
LEAST = (16, 8, 4)  # samples
MOST = 256  # samples; more change the curves little
FEWEST = 64  # samples of each loss; twice as many, and so on, until its standard error is at most
RELATIVE, ABSOLUTE = 0.05, 1e-4  # this share of it, or so much
Progress = Callable[[str, float], None]
Metric = Callable[[Outputs, Samples], float]
Measured = tuple[float, float, float | None]  # loss, its standard error, metric


def measure(
    analysis: Analysis,
    order: Mapping[str, npt.NDArray[np.int64]],
    samples: Samples,
    *,
    ratios: Sequence[float] = RATIOS,
    threads: int = 1,
    seconds: float = 20.0,
    most: int = MOST,
    layers: bool = False,
    groups: bool = True,
    metric: Metric | None = None,
    reuse: bool = True,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every group at a ladder of kept shares.

    Args:
        analysis: groups of the uncut model.
        order: group id -> unit indices, most important first: the first ones stay.
        samples: calibration samples.
        ratios: kept shares.
        threads: threads of the session.
        seconds: about how long it may take; fewer samples are used where the model is large.
        most: samples at most.
        layers: measure the removal of each layer, too.
        groups: measure the groups.
        metric: computed beside the output error.
        reuse: compute what lies in front of a mask once.
        progress: told (group id, share done).
    """
    start = time.monotonic()
    subjects: list[Group | Layer] = [
        *(analysis.groups if groups else ()),
        *(analysis.layers if layers else ()),
    ]
    work = _Work(analysis, order, ratios, subjects, reuse)
    least = _coarsened(work, ratios, seconds * MOST_PER_SECOND)
    count = affordable(work.macs, 1, seconds, least, rate=MEASURED_PER_SECOND)
    samples = samples.first(min(most, count))
    run = _Run(work, samples, threads, metric, progress)
    curves, removed = run.go()
    return Sensitivity(curves, len(samples), time.monotonic() - start, removed, work.reused)


def _coarsened(work: _Work, ratios: Sequence[float], limit: float) -> int:
    """Samples at least: fewer, and every other ratio, where all would be far too much for a large model."""
    if LEAST[0] * work.macs <= limit:
        return LEAST[0]
    work.climb(ratios[1::2] or ratios)
    return next((least for least in LEAST if least * work.macs <= limit), LEAST[-1])


class _Work:
    """What is to be measured, and from which position each of it differs."""

    def __init__(
        self,
        analysis: Analysis,
        order: Mapping[str, npt.NDArray[np.int64]],
        ratios: Sequence[float],
        subjects: Sequence[Group | Layer],
        reuse: bool,
    ) -> None:
        self.analysis, self.order, self.subjects = analysis, order, subjects
        self.line = Line(analysis)
        self.positions = [self._first(s) if reuse else 0 for s in self.subjects]
        self.climb(ratios)

    def climb(self, ratios: Sequence[float]) -> None:
        """Measure these kept shares."""
        self.counts = {g.id: _ladder(g, ratios) for g in self.analysis.groups}
        rungs = [len(self.counts[s.id]) if isinstance(s, Group) else 1 for s in self.subjects]
        whole = self.line.work(0)
        behind = [n * self.line.work(p) for n, p in zip(rungs, self.positions, strict=True)]
        self.macs = whole + sum(behind)  # of one sample, all in all
        self.reused = 1 - sum(behind) / max(1, whole * sum(rungs))
        self.rungs = max(rungs, default=1)

    def _first(self, subject: Group | Layer) -> int:
        """Position of the first node that sees a difference."""
        if isinstance(subject, Layer):
            return min(self.line.position[name] for name in subject.nodes)
        ids = {a.id for a in subject.atoms}
        analysis = self.analysis
        found = [
            self.line.position[s.cost.node.name or ""]
            for s in sites(analysis)
            if any(a.id in ids for a in analysis.axes.atoms(s.term))
        ]
        return min(found, default=len(self.line.names))


class _Run:
    """The measuring itself, segment by segment from front to back."""

    def __init__(
        self,
        work: _Work,
        samples: Samples,
        threads: int,
        metric: Metric | None,
        progress: Progress | None,
    ) -> None:
        self._work, self._samples, self._threads = work, samples, threads
        self._metric, self._progress = metric, progress
        self._session = session = Session(work.line.model, threads=threads)
        self._batches = list(batches(session, samples))
        self._size = session.batch_size or BATCH
        self._reference: dict[str, Array] = {}
        self._reference = self._joined([session.run(b) for b in self._batches], len(samples))
        self._whole = metric(self._reference, samples) if metric is not None else None

    def go(self) -> tuple[dict[str, Curve], dict[str, LayerLoss]]:
        """Curves by group and losses by layer, in the order of the analysis."""
        work, analysis = self._work, self._work.analysis
        frontier = Frontier(work.line, work.line.model, self._batches, self._threads)
        curves: dict[str, Curve] = {}
        layers: dict[str, LayerLoss] = {}
        done = 0
        try:
            for segment in work.line.segments(work.positions, len(self._samples) * work.rungs):
                frontier.advance(segment.start)
                for subject, found in self._segment(segment, frontier):
                    if isinstance(found, Curve):
                        curves[subject] = found
                    else:
                        layers[subject] = found
                    done += 1
                    if self._progress is not None:
                        self._progress(subject, done / len(work.subjects))
        finally:
            frontier.close()
        alike = similarities(analysis, self._batches, self._threads) if layers else {}
        return (
            {g.id: curves[g.id] for g in analysis.groups if g.id in curves},
            {x.id: replace(layers[x.id], similarity=alike[x.id]) for x in analysis.layers if x.id in layers},
        )

    def _segment(self, segment: Segment, frontier: Frontier) -> Iterator[tuple[str, Curve | LayerLoss]]:
        """What is measured from one place, by id."""
        work, analysis = self._work, self._work.analysis
        subjects = [work.subjects[i] for i in segment.members]
        groups = [s for s in subjects if isinstance(s, Group)]
        before = work.line.names[: segment.start]
        if groups:
            graph = build(analysis, groups=[g.id for g in groups])
            session = Session(behind(graph.model, before, frontier.batches[0]), threads=self._threads)
            for group in groups:
                order = work.order[group.id]

                def losses(count: int, group: Group = group, order: Any = order) -> Measured:
                    masks = graph.masks(analysis.kept({group.id: order[:count]}))
                    return self._measured(session, frontier.batches, masks)

                yield group.id, self._curve(group, losses)
        for layer in subjects:
            if isinstance(layer, Layer):
                model = analysis.model.clone()
                take_out(model.graph, [layer])
                session = Session(
                    behind(close_bodies(model), before, frontier.batches[0]), threads=self._threads
                )
                yield layer.id, LayerLoss(*self._measured(session, frontier.batches, {}))

    def _measured(self, session: Session, some: Sequence[Batch], masks: Outputs) -> Measured:
        """(loss, standard error, metric), on as many samples as it takes to know the loss well enough."""
        parts: list[Outputs] = []
        wanted = FEWEST
        for batch in some:
            parts.append(session.run({**batch, **masks}))
            count = min(len(parts) * self._size, len(self._samples))
            if len(parts) < len(some) and count < wanted:
                continue
            outputs = self._joined(parts, count)
            errors = sample_errors(self._reference, outputs, count)
            loss, deviation = float(errors.mean()), standard_error(errors)
            if deviation <= max(RELATIVE * loss, ABSOLUTE):
                break
            wanted = 2 * count
        return loss, deviation, self._judged(outputs, count)

    def _judged(self, outputs: Outputs, count: int) -> float | None:
        return None if self._metric is None else self._metric(outputs, self._samples.first(count))

    def _joined(self, parts: Sequence[Outputs], count: int) -> dict[str, Array]:
        """Outputs of the first samples; those in front of the segment are the original's."""
        rows = {name: [self._session.by_sample(name, p[name]) for p in parts] for name in parts[0]}
        found = {n: np.concatenate(p)[:count] if p[0].ndim else p[0] for n, p in rows.items()}
        before = {n: a[:count] if a.ndim else a for n, a in self._reference.items() if n not in found}
        return {**before, **found}

    def _curve(self, group: Group, losses: Callable[[int], Measured]) -> Curve:
        kept, loss, deviation = [group.size], [0.0], [0.0]
        metric = [] if self._whole is None else [self._whole]
        for count in self._work.counts[group.id]:
            error, spread, value = losses(count)
            kept.append(count)
            loss.append(max(loss[-1], error))
            deviation.append(spread)
            if value is not None:
                metric.append(value)
        if kept[-1] > 1:  # beyond the ladder: at least as steep as its last step
            slope = (loss[-1] - loss[-2]) / (kept[-2] - kept[-1]) if len(kept) > 1 else 1.0
            kept.append(1)
            loss.append(loss[-1] + slope * (kept[-2] - 1))
        return Curve(tuple(kept), tuple(loss), tuple(deviation), tuple(metric))


def _ladder(group: Group, ratios: Sequence[float]) -> list[int]:
    """Kept counts to measure, descending, without repeats."""
    counts = {max(1, round(group.size * ratio)) for ratio in ratios}
    return sorted((n for n in counts if n < group.size), reverse=True)
