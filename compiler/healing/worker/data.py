"""Batches from memory-mapped arrays: what is read is copied batch by batch, never the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Batches:
    """Samples as batches of one fixed size.

    Args:
        arrays: graph input -> .npy file, axis 0 = sample.
        size: samples a batch.
        seed: of the order.
    """

    def __init__(self, arrays: dict[str, str], size: int, seed: int) -> None:
        self._arrays = {
            name: np.load(Path(p), mmap_mode="r", allow_pickle=False) for name, p in arrays.items()
        }
        self.count = min(len(a) for a in self._arrays.values())
        self.size = size
        self._seed = seed

    @property
    def steps(self) -> int:
        """Batches an epoch; the last one is filled up with others where they don't come out even."""
        return max(1, self.count // self.size)

    def epoch(self, number: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Shuffled batches of one epoch, the same for the same number and seed.

        Args:
            number: of the epoch.
            start: first batch to give.
        """
        order = np.random.default_rng((self._seed, number)).permutation(self.count)
        for i in range(start, self.steps):
            yield self._take(order, i)

    def in_order(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """All samples in order, with how many of the batch are new."""
        order = np.arange(self.count)
        for i in range(-(-self.count // self.size)):
            yield self._take(order, i), min(self.size, self.count - i * self.size)

    def _take(self, order: np.ndarray, index: int) -> dict[str, np.ndarray]:
        chosen = np.take(order, np.arange(index * self.size, (index + 1) * self.size), mode="wrap")
        return {name: _plain(array[chosen]) for name, array in self._arrays.items()}


def _plain(array: np.ndarray) -> np.ndarray:
    """Half precision, in which large targets are stored, as single."""
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else array.dtype)
