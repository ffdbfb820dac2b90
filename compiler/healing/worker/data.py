"""Batches from memory-mapped arrays: what is read is copied batch by batch, never the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Files = dict[str, str]  # graph input -> .npy file, axis 0 = sample
Feeds = dict[str, np.ndarray]


class Batches:
    """Samples as batches of one fixed size.

    Args:
        arrays: graph input -> .npy file, axis 0 = sample.
        size: samples a batch.
        seed: of the order.
    """

    def __init__(self, arrays: Files, size: int, seed: int) -> None:
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

    def epoch(self, number: int, start: int = 0) -> Iterator[Feeds]:
        """Shuffled batches of one epoch, the same for the same number and seed.

        Args:
            number: of the epoch.
            start: first batch to give.
        """
        order = np.random.default_rng((self._seed, number)).permutation(self.count)
        for i in range(start, self.steps):
            yield self._take(order, i)

    def in_order(self) -> Iterator[tuple[Feeds, int]]:
        """All samples in order, with how many of the batch are new."""
        order = np.arange(self.count)
        for i in range(-(-self.count // self.size)):
            yield self._take(order, i), min(self.size, self.count - i * self.size)

    def _take(self, order: np.ndarray, index: int) -> Feeds:
        chosen = np.take(order, np.arange(index * self.size, (index + 1) * self.size), mode="wrap")
        return {name: _plain(array[chosen]) for name, array in self._arrays.items()}


class Stream:
    """Training batches without end: epoch after epoch, from wherever one was stopped.

    Args:
        files: epoch -> where its samples are; with augmentation every epoch has its own.
        steps: batches an epoch.
        size: samples a batch.
        seed: of the order.

    Attributes:
        epoch: the running one.
        position: batches of it that were given.
    """

    def __init__(self, files: Callable[[int], Files], steps: int, size: int, seed: int) -> None:
        self._files, self._size, self._seed = files, size, seed
        self.steps = steps
        self.epoch = self.position = 0
        self._running: Iterator[Feeds] | None = None

    @property
    def done(self) -> int:
        """Batches given since the very beginning."""
        return self.epoch * self.steps + self.position

    def seek(self, epoch: int, position: int) -> None:
        """Go on from another place."""
        self.epoch, self.position, self._running = epoch, position, None

    def next(self) -> Feeds:
        """The next batch."""
        if self._running is None:
            samples = Batches(self._files(self.epoch), self._size, self._seed)
            self._running = samples.epoch(self.epoch, self.position)
        batch = next(self._running)
        self.position += 1
        if self.position >= self.steps:
            self.seek(self.epoch + 1, 0)
        return batch


def _plain(array: np.ndarray) -> np.ndarray:
    """Half precision, in which large targets are stored, as single."""
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else array.dtype)
