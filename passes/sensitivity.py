"""Sensitivity: what the model loses when a share of one group goes, measured on calibration samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data import Samples
from condensec.passes.groups import Analysis, Group
from condensec.passes.supergraph import build
from condensec.runner import Session

Array = npt.NDArray[Any]
RATIOS = (0.75, 0.5, 0.25)  # kept shares measured by default; in between, curves are interpolated
MACS_PER_SECOND = 4e9  # a cautious figure for one or two cores and a graph whose masks hinder fusion
MOST = 256  # samples; more change the curves little
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Curve:
    """Loss of one group by kept units.

    Attributes:
        kept: numbers of kept units, descending, the first is all.
        loss: output error at each, relative to the outputs' variance; never falling.
    """

    kept: tuple[int, ...]
    loss: tuple[float, ...]

    def at(self, count: float) -> float:
        """Loss with ``count`` units kept, interpolated linearly."""
        return float(np.interp(count, self.kept[::-1], self.loss[::-1]))


@dataclass(frozen=True)
class Sensitivity:
    """Curves by group id.

    Attributes:
        curves: group id -> curve.
        samples: calibration samples used.
        seconds: time it took.
    """

    curves: Mapping[str, Curve]
    samples: int
    seconds: float

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
        progress: told (group id, share done).
    """
    start = time.monotonic()
    graph = build(analysis)
    session = Session(graph.model, threads=threads)
    whole = graph.masks(analysis.kept({}))
    runs = len(analysis.groups) * len(ratios)
    samples = samples.first(min(MOST, affordable(analysis.macs(), runs, seconds)))
    reference = run(session, samples, whole)
    curves: dict[str, Curve] = {}
    for number, group in enumerate(analysis.groups):

        def outputs(units: npt.NDArray[np.int64], group: Group = group) -> dict[str, Array]:
            return run(session, samples, graph.masks(analysis.kept({group.id: units})))

        curves[group.id] = _curve(group, order[group.id], outputs, reference, ratios)
        if progress is not None:
            progress(group.id, (number + 1) / len(analysis.groups))
    return Sensitivity(curves, len(samples), time.monotonic() - start)


def affordable(macs: int, runs: int, seconds: float, least: int = 16) -> int:
    """How many samples fit into a time, by the size of the model alone.

    Never by the clock: the same model, data and settings have to give the same choice.
    """
    return max(least, int(seconds * MACS_PER_SECOND / max(1, macs * runs)))


def batch_size(session: Session, limit: int = 32) -> int:
    """Samples a call: the model's own batch where it is fixed."""
    for port in session.inputs:
        if port.shape and isinstance(port.shape[0], int) and not port.name.startswith("condensec.mask"):
            return port.shape[0]
    return limit


def run(session: Session, samples: Samples, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the super-graph for all samples under one set of masks, joined along axis 0."""
    size = batch_size(session)
    count = len(samples)
    parts: list[dict[str, Array]] = []
    for first in range(0, count, size):
        index = np.minimum(np.arange(first, first + size), count - 1)[: size if size != 32 else count - first]
        feeds = {name: np.ascontiguousarray(array[index]) for name, array in samples.inputs.items()}
        parts.append(session.run({**feeds, **masks}))
    return {
        name: np.concatenate([p[name] for p in parts])[:count] if parts[0][name].ndim else parts[0][name]
        for name in parts[0]
    }


def _curve(
    group: Group,
    order: npt.NDArray[np.int64],
    outputs: Callable[[npt.NDArray[np.int64]], dict[str, Array]],
    reference: Mapping[str, Array],
    ratios: Sequence[float],
) -> Curve:
    kept, loss = [group.size], [0.0]
    for ratio in sorted(ratios, reverse=True):
        count = max(1, round(group.size * ratio))
        if count >= kept[-1]:
            continue
        kept.append(count)
        loss.append(max(loss[-1], output_error(reference, outputs(order[:count]))))
    if kept[-1] > 1:  # beyond the ladder: at least as steep as its last step
        slope = (loss[-1] - loss[-2]) / (kept[-2] - kept[-1]) if len(kept) > 1 else 1.0
        kept.append(1)
        loss.append(loss[-1] + slope * (kept[-2] - 1))
    return Curve(tuple(kept), tuple(loss))


def output_error(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
    """Squared error of all float outputs over their variance, averaged over outputs (0: the same)."""
    errors = []
    for name, a in reference.items():
        if a.dtype.kind != "f":
            continue
        b = outputs[name]
        x, y = a.astype(np.float64), b.astype(np.float64)
        variance = float(((x - x.mean(axis=0)) ** 2).mean()) if len(x) > 1 else float((x**2).mean())
        error = float(((x - y) ** 2).mean())
        errors.append(error / max(variance, 1e-12) if np.isfinite(error) else 1e6)
    return float(np.mean(errors)) if errors else 0.0
