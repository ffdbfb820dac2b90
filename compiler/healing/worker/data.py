"""Batches from memory-mapped arrays: what is read is copied batch by batch, never the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Files = dict[str, str]  # graph input -> .npy file, axis 0 = sample
Feeds = dict[str, np.ndarray]
Shapes = Mapping[str, Sequence[int]]  # graph input -> shape of a sample


@dataclass(frozen=True)
class Kinds:
    """Samples of several lengths (see `condensec.healing.lengths`): a batch holds those of one.

    Attributes:
        of: kind of each sample.
        shapes: by kind, what its graph takes; samples are cut to it.
    """

    of: np.ndarray
    shapes: Sequence[Shapes]

    @classmethod
    def asked(cls, request: Mapping[str, Any], split: str) -> Kinds | None:
        """As a request has them for "train" or "validation"; None where all samples are alike."""
        if "kinds" not in request:
            return None
        return cls(np.load(request["kinds"][split], allow_pickle=False), request["shapes"])

    def batches(self, size: int) -> np.ndarray:
        """Batches of so many an epoch, by kind: as many as if all samples were alike, but one at least.

        Those that don't come out even go to the kinds with the largest rest (Hamilton's method).
        """
        counts = np.bincount(self.of, minlength=len(self.shapes))
        found: np.ndarray = np.maximum(counts // size, counts > 0)
        spare = max(0, int(counts.sum() // size - found.sum()))
        found[np.argsort(found * size - counts, kind="stable")[:spare]] += 1
        return found

    def steps(self, size: int) -> int:
        """Batches of so many an epoch."""
        return int(self.batches(size).sum())


class Batches:
    """Samples as batches of one fixed size.

    Args:
        arrays: graph input -> .npy file, axis 0 = sample.
        size: samples a batch.
        seed: of the order.
        kinds: of the samples; None = all are alike.
    """

    def __init__(self, arrays: Files, size: int, seed: int, kinds: Kinds | None = None) -> None:
        self._arrays = {
            name: np.load(Path(p), mmap_mode="r", allow_pickle=False) for name, p in arrays.items()
        }
        self.count = min(len(a) for a in self._arrays.values())
        self.size = size
        self._seed = seed
        self._kinds = kinds or Kinds(np.zeros(self.count, np.int64), [{}])

    def epoch(self, number: int, start: int = 0) -> Iterator[Feeds]:
        """Shuffled batches of one epoch, the same for the same number and seed.

        Args:
            number: of the epoch.
            start: first batch to give.
        """
        rng = np.random.default_rng((self._seed, number))
        counts = self._kinds.batches(self.size)
        batches = [
            (rows[i * self.size : (i + 1) * self.size], kind)
            for kind, rows in self._by_kind(rng.permutation(self.count))
            for i in range(counts[kind])
        ]
        if len(self._kinds.shapes) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        for rows, kind in batches[start:]:
            yield self._take(rows, kind)

    def in_order(self) -> Iterator[tuple[Feeds, int]]:
        """All samples in order, with how many of the batch are new; the kinds evenly mixed."""
        batches = []
        for kind, rows in self._by_kind(np.arange(self.count)):
            count = -(-len(rows) // self.size)
            for i in range(count):
                some = rows[i * self.size : (i + 1) * self.size]
                batches.append(((i + 0.5) / count, kind, some, rows))
        for _, kind, some, rows in sorted(batches, key=lambda batch: batch[:2]):
            filling = np.resize(rows, self.size - len(some)) if len(some) < self.size else rows[:0]
            yield self._take(np.concatenate([some, filling]), kind), len(some)

    def _by_kind(self, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        kinds = self._kinds.of[order]
        for kind in range(len(self._kinds.shapes)):
            rows = order[kinds == kind]
            if rows.size:
                yield kind, rows

    def _take(self, rows: np.ndarray, kind: int) -> Feeds:
        """A batch of samples of one kind; repeated where they are too few."""
        chosen = np.resize(rows, self.size)
        shapes = self._kinds.shapes[kind]
        return {name: _cut(array[chosen], shapes.get(name)) for name, array in self._arrays.items()}


class Stream:
    """Training batches without end: epoch after epoch, from wherever one was stopped.

    Args:
        files: epoch -> where its samples are; with augmentation every epoch has its own.
        steps: batches an epoch.
        size: samples a batch.
        seed: of the order.
        kinds: of the samples.

    Attributes:
        epoch: the running one.
        position: batches of it that were given.
    """

    def __init__(
        self, files: Callable[[int], Files], steps: int, size: int, seed: int, kinds: Kinds | None = None
    ) -> None:
        self._files, self._size, self._seed, self._kinds = files, size, seed, kinds
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
            samples = Batches(self._files(self.epoch), self._size, self._seed, self._kinds)
            self._running = samples.epoch(self.epoch, self.position)
        batch = next(self._running)
        self.position += 1
        if self.position >= self.steps:
            self.seek(self.epoch + 1, 0)
        return batch


def _cut(array: np.ndarray, shape: Sequence[int] | None) -> np.ndarray:
    """The corner of that shape; half precision, in which large targets are stored, as single."""
    if shape is not None:
        array = array[(slice(None), *(slice(n) for n in shape))]
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else array.dtype)
