"""Sensitivity: what the model loses when a share of one group goes, measured on calibration samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data import Samples
from condensec.data.side import batch_of, single_call
from condensec.passes.closing import close_bodies
from condensec.passes.fidelity import Outputs, sample_errors, standard_error
from condensec.passes.groups import Analysis, Group
from condensec.passes.layers import Layer, take_out
from condensec.passes.segments import Batch, Frontier, Line, Segment, behind
from condensec.passes.similarity import similarities
from condensec.passes.sites import sites
from condensec.passes.supergraph import build
from condensec.runner import Session

Array = npt.NDArray[Any]
RATIOS = (0.875, 0.75, 0.5, 0.25, 0.125)  # kept shares measured; in between, curves are interpolated
MACS_PER_SECOND = 4e9  # a cautious figure for one or two cores
MEASURED_PER_SECOND = 1e10  # the same where all but a few masks can be fused
MOST = 256  # samples; more change the curves little
BATCH = 32  # samples a call, where the model's batch is open
FEWEST = 64  # samples of each loss; twice as many, and so on, until its standard error is at most
RELATIVE, ABSOLUTE = 0.05, 1e-4  # this share of it, or so much
TIE = 1e-9  # what similarity counts beside a loss
Progress = Callable[[str, float], None]
Metric = Callable[[Outputs, Samples], float]
Measured = tuple[float, float, float | None]  # loss, its standard error, metric


@dataclass(frozen=True)
class Curve:
    """Loss of one group by kept units.

    Attributes:
        kept: numbers of kept units, descending, the first is all; the last may be extrapolated.
        loss: output error at each, relative to the outputs' variance; never falling.
        deviation: standard error of each measured loss over the samples; NaN where it isn't known.
        metric: the metric at each measured one, the first is the original's; empty without labels.
    """

    kept: tuple[int, ...]
    loss: tuple[float, ...]
    deviation: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()

    def at(self, count: float) -> float:
        """Loss with ``count`` units kept, interpolated linearly."""
        return float(np.interp(count, self.kept[::-1], self.loss[::-1]))


@dataclass(frozen=True)
class LayerLoss:
    """What is lost when a whole layer goes.

    Attributes:
        loss: output error, relative to the outputs' variance.
        deviation: its standard error; NaN where it isn't known.
        metric: the metric, or None without labels.
        similarity: cosine between what goes into the block and what comes out, mean over samples
            (Men et al. 2024, ShortGPT, arXiv:2403.03853); 1: it adds nothing. NaN where it isn't known.
    """

    loss: float
    deviation: float = float("nan")
    metric: float | None = None
    similarity: float = float("nan")

    @property
    def price(self) -> float:
        """The loss; of equal ones the block that changes its input least comes first."""
        return self.loss + (0.0 if np.isnan(self.similarity) else TIE * (1 - self.similarity))


@dataclass(frozen=True)
class Sensitivity:
    """Curves by group id.

    Attributes:
        curves: group id -> curve.
        samples: calibration samples used, at most; fewer for losses that are known well by then.
        seconds: time it took.
        layers: layer id -> what its removal costs.
        reused: share of the multiply-accumulates that didn't have to be done again.
    """

    curves: Mapping[str, Curve]
    samples: int
    seconds: float
    layers: Mapping[str, LayerLoss] = field(default_factory=dict)
    reused: float = 0.0
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False, compare=False)

    def loss(self, name: str, count: float) -> float:
        """Loss with ``count`` units of a group kept, or with a layer there (1) or taken out (0)."""
        found = self._known.get((name, count))
        if found is None:
            curve = self.curves.get(name)
            found = curve.at(count) if curve is not None else 0.0 if count else self.layers[name].price
            self._known[name, count] = found
        return found

    def to_json(self) -> dict[str, dict[str, float]]:
        """Group id -> kept share -> loss."""
        return {
            name: {
                f"{k / curve.kept[0]:.4g}": loss
                for k, loss in zip(curve.kept[1:], curve.loss[1:], strict=True)
            }
            for name, curve in self.curves.items()
        }


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
    samples = samples.first(min(most, affordable(work.macs, 1, seconds, rate=MEASURED_PER_SECOND)))
    run = _Run(work, samples, threads, metric, progress)
    curves, removed = run.go()
    return Sensitivity(curves, len(samples), time.monotonic() - start, removed, work.reused)


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
        self.counts = {g.id: _ladder(g, ratios) for g in analysis.groups}
        self.positions = [self._first(s) if reuse else 0 for s in self.subjects]
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


def affordable(macs: int, runs: int, seconds: float, least: int = 16, rate: float = MACS_PER_SECOND) -> int:
    """How many samples fit into a time, by the size of the model alone.

    Never by the clock: the same model, data and settings have to give the same choice.
    """
    return max(least, int(seconds * rate / max(1, macs * runs)))


def batches(session: Session, samples: Samples) -> list[Batch]:
    """Inputs a call; a model with a fixed batch gets whole ones, filled up with the last sample."""
    size = session.batch_size or BATCH
    count = len(samples)
    found = []
    for first in range(0, count, size):
        stop = first + size if session.batch_size else min(first + size, count)
        index = np.minimum(np.arange(first, stop), count - 1)
        feeds = {n: np.ascontiguousarray(a[index]) for n, a in samples.inputs.items()}
        found.append(single_call(session.ports, feeds))
    return found


def batch_size(session: Session, limit: int = BATCH) -> int:
    """Samples a call: the model's own batch where it is fixed."""
    own = [port for port in session.ports if not port[0].startswith("condensec.mask")]
    return batch_of(own) or limit


def run(session: Session, samples: Samples, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the super-graph for all samples under one set of masks, joined along axis 0."""
    size = batch_size(session)
    count = len(samples)
    parts: list[dict[str, Array]] = []
    for first in range(0, count, size):
        index = np.minimum(np.arange(first, first + size), count - 1)[: size if size != 32 else count - first]
        feeds = {name: np.ascontiguousarray(array[index]) for name, array in samples.inputs.items()}
        found = session.run({**feeds, **masks})
        parts.append({name: session.by_sample(name, value) for name, value in found.items()})
    return {
        name: np.concatenate([p[name] for p in parts])[:count] if parts[0][name].ndim else parts[0][name]
        for name in parts[0]
    }
