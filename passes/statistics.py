"""Statistics of activations where they are contracted: means, second moments, covariances.

The model runs once over the calibration samples with the contracted values as extra outputs, batch by
batch; nothing but sums is kept. Sums are over samples and all other axes (positions, tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.evidence import Evidence
from condensec.passes.groups import Group
from condensec.passes.sites import Site, consumer, sites
from condensec.runner import Session

FloatArray = npt.NDArray[np.float64]
BATCH = 8  # samples whose activations are held at a time, at most,
BATCH_BYTES = 1 << 28  # or so much of them
CHUNK_BYTES = 1 << 30  # of covariances held at a time; each further lot is another run of the model
ROWS = 16_384  # of a covariance: positions are thinned out evenly to about so many, but 8 for each index
Key = tuple[str, int]


@dataclass(frozen=True)
class Moments:
    """Of one value's axis, by index: ``[n]``.

    Attributes:
        mean: mean.
        square: mean of squares.
    """

    mean: FloatArray
    square: FloatArray

    @property
    def variance(self) -> FloatArray:
        """Variance, never negative."""
        return np.maximum(self.square - self.mean**2, 0.0)


def group_sites(evidence: Evidence, group: Group) -> list[Site]:
    """The sites that contract units of a group, those inside bodies apart: nobody can look into them."""
    ids = {a.id for a in group.atoms}
    every = _sites(evidence)
    return [s for s in every if any(a.id in ids for a in evidence.analysis.axes.atoms(s.term))]


def _sites(evidence: Evidence) -> list[Site]:
    return evidence.once("sites", lambda: [s for s in sites(evidence.analysis) if s.observable])


def weights(evidence: Evidence, site: Site) -> npt.NDArray[Any]:
    """`condensec.passes.sites.consumer`, remembered."""
    key = ("consumer", site.cost.node.name, site.index)
    return evidence.once(key, lambda: consumer(evidence.analysis, site))


def moments(evidence: Evidence) -> dict[Key, Moments]:
    """First and second moments at all sites; one pass over the samples."""
    return evidence.once("moments", lambda: _moments(evidence))


def _moments(evidence: Evidence) -> dict[Key, Moments]:
    keys = list(dict.fromkeys(s.key for s in _sites(evidence)))
    sums: dict[Key, list[Any]] = {}
    for _, values in _batches(evidence, [name for name, _ in keys]):
        for key in keys:
            x = _rows(values[key[0]], key[1]).astype(np.float64)
            total = sums.setdefault(key, [0.0, 0.0, 0])
            total[0], total[1] = total[0] + x.sum(axis=0), total[1] + np.einsum("ij,ij->j", x, x)
            total[2] += len(x)
    return {key: Moments(first / count, second / count) for key, (first, second, count) in sums.items()}


def covariance(evidence: Evidence, site: Site) -> FloatArray:
    """Covariance of a site's indices over samples and positions, ``[n, n]``; positions are thinned out.

    A few sites are collected in one pass, as many as fit into memory; the last such lot is kept.
    """
    lots = evidence.once("lots", lambda: _lots(evidence))
    lot = lots[site.key]
    held: dict[int, dict[Key, FloatArray]] = evidence.once("covariances", dict)
    if lot not in held:
        held.clear()
        held[lot] = _covariances(evidence, [key for key, number in lots.items() if number == lot])
    return held[lot][site.key]


def _lots(evidence: Evidence) -> dict[Key, int]:
    result: dict[Key, int] = {}
    lot, used = 0, 0
    for site in _sites(evidence):
        if site.key in result:
            continue
        size = 8 * site.term.size**2
        if used and used + size > CHUNK_BYTES:
            lot, used = lot + 1, 0
        result[site.key] = lot
        used += size
    return result


def _covariances(evidence: Evidence, keys: Sequence[Key]) -> dict[Key, FloatArray]:
    means: dict[Key, FloatArray] = {key: moments(evidence)[key].mean for key in keys}
    sums: dict[Key, FloatArray] = {}
    counts: dict[Key, int] = dict.fromkeys(keys, 0)
    for count, values in _batches(evidence, [name for name, _ in keys]):
        for key in keys:
            x = _rows(values[key[0]], key[1])
            wanted = max(ROWS, 8 * x.shape[1]) * count / len(evidence.samples)
            step = max(1, int(len(x) / max(wanted, 1)))
            step += step % 2 == 0 and step > 1  # an odd stride doesn't fall in step with even rows of pixels
            part = (x[::step] - means[key]).astype(np.float32)
            gram = (part.T @ part).astype(np.float64)
            sums[key] = sums[key] + gram if key in sums else gram
            counts[key] += len(part)
    return {key: sums[key] / max(counts[key], 1) for key in keys}


def _batches(evidence: Evidence, names: Sequence[str]) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """(samples, the named values) batch by batch; whole ones, wrapping around, where the batch is fixed."""
    wanted = list(dict.fromkeys(names))
    model, samples = evidence.analysis.runnable, evidence.samples
    given = {v.name for v in model.graph.inputs}
    outputs = {v.name for v in model.graph.outputs}
    session = Session(
        model,
        threads=evidence.threads,
        extra_outputs=[n for n in wanted if n not in given and n not in outputs],
    )
    size = session.batch_size or _batch(evidence, wanted)
    count = len(samples)
    for start in range(0, count, size):
        index = (
            np.arange(start, start + size) % count
            if session.batch_size
            else np.arange(start, min(start + size, count))
        )
        feeds = {name: np.ascontiguousarray(array[index]) for name, array in samples.inputs.items()}
        found = session.run(feeds, [n for n in wanted if n not in given])
        yield len(index), {**found, **{n: feeds[n] for n in wanted if n in given}}


def _batch(evidence: Evidence, names: Sequence[str]) -> int:
    """Samples a call, by the size of the values in the sample world."""
    world = evidence.analysis.world
    batch = max(1, min((s[0] for s in world.inputs.values() if s), default=1))
    size = sum(4 * prod(world.shapes.get(name, (0,))) for name in names) // batch
    return max(1, min(BATCH, BATCH_BYTES // max(1, size)))


def _rows(value: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """``[everything else, n]``."""
    moved = np.moveaxis(value, axis, -1)
    return moved.reshape(-1, moved.shape[-1])
