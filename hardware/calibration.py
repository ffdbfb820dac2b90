"""Ranges of activations for int8: what values occur, and how many of the outermost are worth keeping.

All methods look at one and the same set of values, so trying them all costs one pass:

- ``minmax``: nothing is clipped;
- ``percentile``: one value in 10,000 is, half of them at each end;
- ``entropy``: the range whose 8-bit histogram keeps most of the original's information, that is, has the
  least Kullback-Leibler divergence (Migacz, 8-bit inference with TensorRT, GTC 2017), searched for at each
  end alone where values of both signs occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condensec.runner import Session

if TYPE_CHECKING:
    from condensec.data import Samples

METHODS = ("minmax", "entropy", "percentile")
SAMPLES = 128  # least and largest values change little beyond
_KEPT = 1 << 16  # values kept of each tensor
_PERCENTILE = 99.99
_BINS, _LEVELS = 1024, 128  # of the histogram; of the quantized one
_CALL_BYTES = 128 << 20  # all values of one call


@dataclass(frozen=True)
class Values:
    """What one tensor held.

    Attributes:
        low, high: least and largest value of all.
        sample: some of the values, drawn at random.
        means: of each channel (entry of the second axis); None where there is no such axis.
    """

    low: float
    high: float
    sample: NDArray[np.float32]
    means: NDArray[np.float64] | None = None

    def range(self, method: str) -> tuple[float, float]:
        """What 8 bits should cover; always holds zero."""
        low, high = self.low, self.high
        if method == "percentile" and self.sample.size:
            cut = (100 - _PERCENTILE) / 2
            low, high = (float(v) for v in np.percentile(self.sample, [cut, 100 - cut]))
        elif method == "entropy" and self.sample.size:
            low, high = -entropy_limit(-self.sample, -low), entropy_limit(self.sample, high)
        return min(0.0, max(low, self.low)), max(0.0, min(high, self.high))


def entropy_limit(values: NDArray[np.float32], limit: float) -> float:
    """The upper end of the range with the least divergence, for values up to ``limit``.

    Args:
        values: of either sign; only those above zero count.
        limit: the largest one, above all of ``values``.
    """
    positive = values[values > 0]
    if limit <= 0 or positive.size < _BINS:
        return max(0.0, limit)  # too few values to tell what is rare
    counts = np.histogram(positive, bins=_BINS, range=(0.0, limit))[0].astype(np.float64)
    ends = np.arange(_LEVELS, _BINS + 1, 8)
    best = min(ends, key=lambda end: _divergence(counts, int(end)))
    return float(limit * best / _BINS)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Kullback-Leibler divergence of the first ``end`` bins, what is above clipped, from its coarse form."""
    kept = counts[:end]
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    starts = np.arange(_LEVELS) * end // _LEVELS
    used = kept > 0
    level = np.searchsorted(starts, np.arange(end), side="right") - 1
    sums, occupied = np.add.reduceat(kept, starts), np.add.reduceat(used.astype(np.float64), starts)
    coarse = np.where(used, (sums / np.maximum(occupied, 1))[level], 0.0)
    if not coarse.sum():
        return float("inf")
    p, q = clipped / clipped.sum(), coarse / coarse.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-10))).sum())


def observe(source: Path, samples: Samples, threads: int = 1) -> dict[str, Values]:
    """Run a model and note what every float32 value of its main graph holds; infinities don't count.

    Args:
        source: the model.
        samples: calibration samples; the first `SAMPLES` are run.
        threads: of the runs.

    Raises:
        PostconditionError: the model can't be run.
    """
    session = Session(source, threads=threads, extra_outputs=computed(source))
    given = [port.name for port in session.inputs if port.dtype == np.float32]
    made = [port.name for port in session.outputs if port.dtype == np.float32]
    found: dict[str, list[NDArray[np.float32]]] = {}
    ends: dict[str, tuple[float, float]] = {}
    means: dict[str, list[NDArray[np.float64]]] = {}
    count, rng = min(len(samples), SAMPLES), np.random.default_rng(0)
    for feeds in _calls(session, samples, made):
        share = max(1, _KEPT * len(next(iter(feeds.values()))) // count)
        values = {**{name: feeds[name] for name in given}, **session.run(feeds, made)}
        for name, value in values.items():
            array = np.asarray(value).reshape(-1)
            if array.size and value.ndim > 1:
                axes = (0, *range(2, value.ndim))
                means.setdefault(name, []).append(np.asarray(value).mean(axis=axes, dtype=np.float64))
            if array.size and not np.isfinite(array.min() + array.max()):
                array = array[np.isfinite(array)]  # masks hold minus infinity
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            before = ends.get(name, (low, high))
            ends[name] = (min(low, before[0]), max(high, before[1]))
            # at random: even steps might fall on the same channel again and again
            picked = array if array.size <= share else array[rng.integers(0, array.size, share)]
            found.setdefault(name, []).append(picked.copy())
    return {
        name: Values(*ends[name], np.concatenate(parts), _mean(means.get(name, ())))
        for name, parts in found.items()
    }


def _mean(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """The mean of all calls' means, which are of equally many samples; None where shapes or values forbid."""
    if not parts or len({part.shape for part in parts}) > 1:
        return None
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return mean if np.isfinite(mean).all() else None


def computed(source: Path) -> list[str]:
    """Names of what the main graph's nodes compute."""
    import onnx

    graph = onnx.load_model(source, load_external_data=False).graph
    return [name for node in graph.node for name in node.output if name]


def _calls(session: Session, samples: Samples, made: list[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Feeds of the model's own batch size, or of as many samples as have room in memory with all values."""
    names = [port.name for port in session.inputs]

    def feeds(start: int, size: int) -> dict[str, NDArray[Any]]:
        rows = np.arange(start, start + size) % len(samples)
        return {name: np.ascontiguousarray(samples.inputs[name][rows]) for name in names}

    size = session.batch_size
    if size is None:
        one = sum(value.nbytes for value in session.run(feeds(0, 1), made).values())
        size = int(np.clip(_CALL_BYTES // max(1, one), 1, 16))
    for start in range(0, min(len(samples), SAMPLES), size):
        yield feeds(start, size)


def ranges(values: Mapping[str, Values], method: str) -> dict[str, tuple[float, float]]:
    """What 8 bits should cover of each tensor."""
    return {name: one.range(method) for name, one in values.items()}
