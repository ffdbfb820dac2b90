"""The multiple-choice knapsack: one level for each item, least loss within a capacity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BUCKETS = 4096
ROUNDING = 1e-9  # buckets: 3 * 0.1 isn't more than 0.3


def knapsack(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], capacity: float, buckets: int = BUCKETS
) -> list[int] | None:
    """Choose one level of each item so that the costs fit and the summed loss is least.

    Dynamic programming over buckets of cost (Sinha & Zoltners 1979): after each item, the least loss for
    every number of buckets used. Costs are rounded up to whole buckets, so that what is found always fits;
    it is the best for costs that are whole buckets, and else the best for a capacity that is smaller by at
    most one bucket an item.

    Args:
        losses: ``[levels]`` of each item.
        costs: ``[levels]`` of each item, at least 0.
        capacity: of all costs together.
        buckets: the capacity is divided into so many.

    Returns:
        The level of each item; None where even the cheapest levels don't fit.
    """
    if capacity < 0 or sum(float(c.min()) for c in costs) > capacity * (1 + 1e-12):
        return None
    unit = capacity / buckets
    steps = [_steps(c, unit, buckets) for c in costs]
    least = np.full(buckets + 1, np.inf)
    least[0] = 0.0
    chosen = np.zeros((len(losses), buckets + 1), np.int16)
    for item, (loss, step) in enumerate(zip(losses, steps, strict=True)):
        after = np.full(buckets + 1, np.inf)
        for level in _worthwhile(loss, step):
            used = int(step[level])
            if used > buckets:
                continue
            found = least[: buckets + 1 - used] + loss[level]
            better = found < after[used:]
            after[used:][better] = found[better]
            chosen[item, used:][better] = level
        least = after
    if not np.isfinite(least).any():  # rounding up left no room: the cheapest of everything does fit
        return [int(np.argmin(c)) for c in costs]
    at = int(np.argmin(least))
    levels = [0] * len(losses)
    for item in reversed(range(len(losses))):
        levels[item] = int(chosen[item, at])
        at -= int(steps[item][levels[item]])
    return levels


def _steps(costs: FloatArray, unit: float, buckets: int) -> npt.NDArray[np.int64]:
    if unit <= 0:  # nothing fits but what is free
        return np.where(costs > 0, buckets + 1, 0).astype(np.int64)
    return np.ceil(np.minimum(costs / unit, buckets + 1) - ROUNDING).astype(np.int64).clip(0)


def _worthwhile(loss: FloatArray, step: npt.NDArray[np.int64]) -> list[int]:
    """Levels that no other beats in both, by cost; of equal ones the first."""
    found: list[int] = []
    best = np.inf
    for level in np.lexsort((np.arange(len(loss)), loss, step)):
        if loss[level] < best:
            best = float(loss[level])
            found.append(int(level))
    return found
