"""What choosing and cutting go by: found once, used in every cycle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from condensec.passes.sensitivity import Sensitivity
from condensec.stages.goals import Budgets
from condensec.stages.heal import Healer
from condensec.stages.job import Job


@dataclass(frozen=True)
class Means:
    """What the loop decides with.

    Attributes:
        order: units of each group, most important first.
        sensitivity: loss curves.
        grid: allowed widths, descending, by group id.
        budgets: what has to be reached.
        healer: how a cut model learns again.
        notes: what the report should say of the choice.
    """

    order: Mapping[str, npt.NDArray[np.int64]]
    sensitivity: Sensitivity
    grid: Mapping[str, list[int]]
    budgets: Budgets
    healer: Healer
    notes: tuple[str, ...] = ()

    def uniform(self, keep: float | None) -> dict[str, int]:
        """``--keep``: every group at its lower level, and so many layers gone, those that matter least."""
        counts = {name: levels[-1] for name, levels in self.grid.items()}
        layers = sorted((x for x in self.sensitivity.layers if x in counts), key=self._price)
        stay = layers[len(layers) - int(len(layers) * (keep or 1.0) + 1e-9) :]
        return {**counts, **dict.fromkeys(stay, 1)}

    def _price(self, layer: str) -> float:
        return self.sensitivity.layers[layer].price

    def units(self, job: Job, counts: Mapping[str, int]) -> dict[str, list[int]]:
        """The most important units of every group that is cut, ascending."""
        return {
            g.id: sorted(int(i) for i in self.order[g.id][: counts[g.id]])
            for g in job.analysis.groups
            if counts[g.id] < g.size
        }
