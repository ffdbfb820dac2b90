"""Batch normalization that only the training has: begun, and folded into the weights that are given back.

See `condensec.healing.normalized` for the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .lanes import Arrays
from .optimizer import Flat

Sites = Sequence[Sequence[str]]  # (weight, bias, scale) of each
Statistics = list[tuple[np.ndarray, np.ndarray]]  # (mean, variance) of each


class Norms:
    """Means and variances of what is normalized, and weights with them folded in.

    Args:
        files: "plain" and "statistics", graphs that give mean and mean square of every site.
        samples: input -> what they are taken over.
        sites: what is normalized.
        epsilon: of the normalization in the graph.
        weights: all that is trained, scales included; scales and shifts are begun here, so that the copy
            gives what it gave without.
        threads: in all.
        part: samples the graphs take.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        samples: Arrays,
        sites: Sites,
        epsilon: float,
        weights: Flat,
        threads: int,
        part: int,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        plain, self._normalized = (
            onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"])
            for name in ("plain", "statistics")
        )
        self._sites, self._epsilon, self._weights = sites, epsilon, weights
        self._pool = ThreadPoolExecutor(threads)
        self._given = {name: view.copy() for name, view in weights.views.items()}
        count = min(len(array) for array in samples.values())
        self._parts = [
            {name: array[start : start + part] for name, array in samples.items()}
            for start in range(0, count, part)
        ]
        for (_, bias, scale), (mean, variance) in zip(
            sites, self._measured(plain, weights.views), strict=True
        ):
            weights.views[scale][...] = np.sqrt(variance + epsilon)
            weights.views[bias][...] = mean

    @classmethod
    def of(cls, request: Mapping[str, Any], weights: Flat) -> Norms | None:
        """As a request has them; None where nothing is normalized."""
        asked = request.get("norms")
        if not asked:
            return None
        samples = {name: np.load(path, allow_pickle=False) for name, path in request["statistics"].items()}
        threads, part = int(request["threads"]), int(request["part"])
        return cls(asked["files"], samples, asked["sites"], asked["epsilon"], weights, threads, part)

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
            factor = found.views[scale] / np.sqrt(variance + self._epsilon)
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
        for found in self._pool.map(one, self._parts):
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        means = [v / len(self._parts) for v in total]
        return [
            (mean, np.maximum(square - mean**2, 0.0))
            for mean, square in zip(means[::2], means[1::2], strict=True)
        ]
