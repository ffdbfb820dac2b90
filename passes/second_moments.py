"""Second moments of what each weight is multiplied with, uncentred: ``X'X / samples``, by calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.data import Samples
from condensec.passes.contraction import Place, columns
from condensec.runner import Session

FloatArray = npt.NDArray[np.float64]
WIDEST = 4096  # columns of a weight; a wider one's inverse takes longer than it is worth
ROWS = 16_384  # of a moment: positions are thinned out to about so many, but 8 a column
CHUNK_BYTES = 1 << 28  # of moments held at a time
BATCH = 8


@dataclass
class Moments:
    """Second moments, collected a lot at a time and only when asked for.

    Attributes:
        model: the model that is run.
        places: where to look.
        samples: calibration samples.
        threads: of the session.
    """

    model: ir.Model
    places: Sequence[Place]
    samples: Samples
    threads: int = 1
    _squares: dict[str, FloatArray | None] = field(default_factory=dict, repr=False)
    _held: dict[str, FloatArray | None] = field(default_factory=dict, repr=False)

    def squares(self, place: Place) -> FloatArray | None:
        """Mean square of each column's input, ``[groups, columns]``; None where it can't be had."""
        if not self._squares:
            sums = self._sums(list(self.places), squares=True)
            self._squares = {p.weight: sums.get(p.weight) for p in self.places}
        return self._squares[place.weight]

    def full(self, place: Place) -> FloatArray | None:
        """``[groups, columns, columns]``; None where it can't be had or is too wide."""
        if place.weight not in self._held:
            lot = next(lot for lot in self._lots() if place in lot)
            sums = self._sums(lot, squares=False)
            self._held = {p.weight: sums.get(p.weight) for p in lot}
        return self._held[place.weight]

    def _lots(self) -> list[list[Place]]:
        lots: list[list[Place]] = [[]]
        used = 0
        for place in self.places:
            wide = _width(place)
            size = 0 if wide > WIDEST else 8 * place.groups * wide**2
            if used and used + size > CHUNK_BYTES:
                lots.append([])
                used = 0
            lots[-1].append(place)
            used += size
        return lots

    def _sums(self, places: Sequence[Place], *, squares: bool) -> dict[str, FloatArray]:
        sums: dict[str, FloatArray] = {}
        counts: dict[str, int] = {}
        wanted = [p for p in places if squares or _width(p) <= WIDEST]
        for share, values in self._batches([p.source for p in wanted]):
            for place in wanted:
                most = int(np.ceil(max(ROWS, 8 * _width(place)) * share))
                x = columns(place, values[place.source], most) if place.source in values else None
                if x is None:
                    continue
                x = x.astype(np.float32)
                part = np.square(x).sum(axis=1) if squares else np.matmul(x.transpose(0, 2, 1), x)
                old = sums.get(place.weight)
                sums[place.weight] = part.astype(np.float64) if old is None else old + part
                counts[place.weight] = counts.get(place.weight, 0) + x.shape[1]
        return {name: total / max(counts[name], 1) for name, total in sums.items()}

    def _batches(self, names: Sequence[str]) -> Iterator[tuple[float, dict[str, npt.NDArray[Any]]]]:
        wanted = sorted(set(names))
        given = {v.name for v in self.model.graph.inputs}
        outputs = {v.name for v in self.model.graph.outputs}
        inside = [n for n in wanted if n not in given]
        extra = [n for n in inside if n not in outputs]
        session = Session(self.model, threads=self.threads, extra_outputs=extra)
        count, size = len(self.samples), session.batch_size or BATCH
        for start in range(0, count, size):
            stop = start + size if session.batch_size else min(start + size, count)
            index = np.arange(start, stop) % count
            feeds = {n: np.ascontiguousarray(a[index]) for n, a in self.samples.inputs.items()}
            found = session.run(feeds, inside) if inside else {}  # to onnxruntime no names are all of them
            yield len(index) / count, {**found, **{n: feeds[n] for n in wanted if n in given}}


def _width(place: Place) -> int:
    """Columns of the matrix view."""
    size = place.size
    if place.convolution:
        size *= int(np.prod(place.shape[2:], dtype=np.int64))
    return size
