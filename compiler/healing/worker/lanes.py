"""Arrays shared out among threads: sums of gradients, piece by piece, while the pieces are in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

PIECE = 1 << 15  # elements: large enough that calls cost little, small enough for a core's second-level cache
Arrays = dict[str, np.ndarray]


class Gradients:
    """What the lanes of an engine write, and their mean.

    Every lane has a place that its session writes to, and where it runs several parts one after another a
    second one, for their sum. The first lane's sum is where the gradients are wanted.

    Args:
        wanted: name -> array that gets the mean.
        lanes: how many.
        turns: parts a lane runs at most.
    """

    def __init__(self, wanted: Arrays, lanes: int, turns: int) -> None:
        def like() -> Arrays:
            return {name: np.zeros_like(array) for name, array in wanted.items()}

        self._sums = [wanted, *(like() for _ in range(lanes - 1))]
        self.into = self._sums if turns == 1 else [like() for _ in range(lanes)]
        self._pieces = [
            [sums[name].reshape(-1)[start : start + PIECE] for sums in self._sums]
            for name, array in wanted.items()
            for start in range(0, array.size, PIECE)
        ]

    def add(self, lane: int, *, first: bool) -> None:
        """Take up what a lane's session wrote."""
        if self.into is self._sums:
            return
        for total, found in zip(self._sums[lane].values(), self.into[lane].values(), strict=True):
            if first:
                np.copyto(total, found)
            else:
                np.add(total, found, out=total)

    def average(self, parts: int, pool: Executor, threads: int) -> None:
        """Write the mean over all parts; sums are taken in the lanes' order, so that rounding is the same."""
        if parts > 1:
            share = np.float32(1 / parts)
            list(pool.map(lambda i: _averaged(self._pieces[i::threads], share), range(threads)))


def _averaged(pieces: Sequence[list[np.ndarray]], share: np.float32) -> None:
    for first, *others in pieces:
        for other in others:
            np.add(first, other, out=first)
        np.multiply(first, share, out=first)
