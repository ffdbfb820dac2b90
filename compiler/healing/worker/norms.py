"""Batch normalization that only the training has: begun, and folded into the weights that are given back.

See `condensec.healing.normalized` for the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .lanes import Arrays
from .optimizer import Flat

SAMPLES = 512  # that means and variances are taken over,
_BYTES = 1 << 27  # held in memory: fewer of large ones
_EPSILON = 1e-5  # of the normalization in the graph
Sites = Sequence[Sequence[str]]  # (weight, bias, scale) of each
Statistics = list[tuple[np.ndarray, np.ndarray]]  # (mean, variance) of each


class Norms:
    """Means and variances of what is normalized, and weights with them folded in.

    Args:
        files: "plain" and "statistics", graphs that give mean and mean square of every site.
        sites: what is normalized.
        weights: all that is trained, scales included; scales and shifts are begun here.
        threads: in all.
        part: samples the graphs take.
    """

    def __init__(
        self, files: Mapping[str, str], sites: Sites, weights: Flat, threads: int, part: int
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        self._plain, self._normalized = (
            onnxruntime.InferenceSession(files[name], options, providers=providers)
            for name in ("plain", "statistics")
        )
        self._sites, self._weights, self._part = sites, weights, part
        self._pool = ThreadPoolExecutor(threads)
        self._given = {name: view.copy() for name, view in weights.views.items()}
        self._samples: list[Arrays] = []

    @classmethod
    def of(cls, request: Mapping[str, Any], weights: Flat) -> Norms | None:
        """As a request has them; None where nothing is normalized."""
        asked = request.get("norms")
        if not asked:
            return None
        return cls(asked["files"], asked["sites"], weights, int(request["threads"]), int(request["part"]))

    def begin(self, next_batch: Callable[[], Arrays]) -> None:
        """Take some samples, and begin scales and shifts so that the copy gives what it gave without."""
        names = {i.name for i in self._plain.get_inputs()} - set(self._weights.views)
        held = seen = 0
        while seen < SAMPLES and held < _BYTES:
            batch = next_batch()
            count = len(next(iter(batch.values())))
            for start in range(0, count - self._part + 1, self._part):
                self._samples.append({n: batch[n][start : start + self._part] for n in names})
            seen += count
            held += sum(batch[n].nbytes for n in names)
        for (_, bias, scale), (mean, variance) in zip(
            self._sites, self._measured(self._plain, self._weights.views), strict=True
        ):
            self._weights.views[scale][...] = np.sqrt(variance + _EPSILON)
            self._weights.views[bias][...] = mean

    def folded(self, buffer: np.ndarray, *, begun: bool = True) -> Flat:
        """Weights as the file has them.

        Args:
            buffer: of all that is trained.
            begun: a step was taken; else they are those that were given, to the bit.
        """
        found = self._weights.like()
        found.buffer[:] = buffer
        if not begun:
            for name, array in self._given.items():
                found.views[name][...] = array
            return found
        statistics = self._measured(self._normalized, found.views)
        for (weight, bias, scale), (mean, variance) in zip(self._sites, statistics, strict=True):
            factor = found.views[scale] / np.sqrt(variance + _EPSILON)
            kernel = found.views[weight]
            kernel *= factor.reshape(-1, *[1] * (kernel.ndim - 1))
            found.views[bias][...] -= mean * factor
        return found

    def _measured(self, session: Any, weights: Mapping[str, np.ndarray]) -> Statistics:
        """Mean and variance of every site over the samples."""
        wanted = {i.name for i in session.get_inputs()}
        given = {name: array for name, array in weights.items() if name in wanted}

        def one(feeds: Arrays) -> list[np.ndarray]:
            known = {name: array for name, array in feeds.items() if name in wanted}
            return [np.asarray(v, np.float64) for v in session.run(None, {**known, **given})]

        total: list[np.ndarray] = []
        for found in self._pool.map(one, self._samples):
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        means = [v / len(self._samples) for v in total]
        return [
            (mean, np.maximum(square - mean**2, 0.0))
            for mean, square in zip(means[::2], means[1::2], strict=True)
        ]
