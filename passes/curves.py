"""The sensitivity map as a value: a loss curve for each group, a loss for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

TIE = 1e-9  # what similarity counts beside a loss


@dataclass(frozen=True)
class Curve:
    """Loss of one group by kept units.

    Attributes:
        kept: numbers of kept units, descending, the first is all; the last may be extrapolated.
        loss: output error at each, relative to the outputs' variance; never falling.
        deviation: standard error of each measured loss over the samples; NaN where it isn't known.
        metric: the metric at each measured one, the first is the original's; empty without labels.
    """

    kept: tuple[int, ...]
    loss: tuple[float, ...]
    deviation: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()

    def at(self, count: float) -> float:
        """Loss with ``count`` units kept, interpolated linearly."""
        return float(np.interp(count, self.kept[::-1], self.loss[::-1]))


@dataclass(frozen=True)
class LayerLoss:
    """What is lost when a whole layer goes.

    Attributes:
        loss: output error, relative to the outputs' variance.
        deviation: its standard error; NaN where it isn't known.
        metric: the metric, or None without labels.
        similarity: cosine between what goes into the block and what comes out, mean over samples
            (Men et al. 2024, ShortGPT, arXiv:2403.03853); 1: it adds nothing. NaN where it isn't known.
    """

    loss: float
    deviation: float = float("nan")
    metric: float | None = None
    similarity: float = float("nan")

    @property
    def price(self) -> float:
        """The loss; of equal ones the block that changes its input least comes first."""
        return self.loss + (0.0 if np.isnan(self.similarity) else TIE * (1 - self.similarity))


@dataclass(frozen=True)
class Sensitivity:
    """Curves by group id.

    Attributes:
        curves: group id -> curve.
        samples: calibration samples used, at most; fewer for losses that are known well by then.
        seconds: time it took.
        layers: layer id -> what its removal costs.
        reused: share of the multiply-accumulates that didn't have to be done again.
    """

    curves: Mapping[str, Curve]
    samples: int
    seconds: float
    layers: Mapping[str, LayerLoss] = field(default_factory=dict)
    reused: float = 0.0
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False, compare=False)

    def loss(self, name: str, count: float) -> float:
        """Loss with ``count`` units of a group kept, or with a layer there (1) or taken out (0)."""
        found = self._known.get((name, count))
        if found is None:
            curve = self.curves.get(name)
            found = curve.at(count) if curve is not None else 0.0 if count else self.layers[name].price
            self._known[name, count] = found
        return found

    def to_json(self) -> dict[str, dict[str, float]]:
        """Group id -> kept share -> loss."""
        return {
            name: {
                f"{k / curve.kept[0]:.4g}": loss
                for k, loss in zip(curve.kept[1:], curve.loss[1:], strict=True)
            }
            for name, curve in self.curves.items()
        }
