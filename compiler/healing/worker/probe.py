"""The step size, found by trying: a few short runs from the same start on the same batches.

What a weight may move a step differs by a factor of thirty between networks: a trained convolutional
network with half of its channels gone is thrown off by a step that a small transformer still finds too
short. So every rate of a coarse grid gets a run in miniature, warm-up and cosine included, and is judged
by the loss of its averaged weights on validation batches.

A short run favours short steps (short-horizon bias, Wu et al. 2018, arXiv:1803.02021): what a long step
breaks first, it needs time to make good. Measured on a ResNet-56 cut to 0.47x, 0.07% a step did best in 24
steps, 0.2% in 192, 0.5% in 690 (87.9% right; 86.9 with 0.07%); on a MiniLM 0.2% in 24 and in 48 steps, 0.2%
and 0.5% alike in 220. So the rate found grows with how much longer the whole run is. Not so where much was
broken before (nine of ten weights zero): there the longest steps go the farthest in little time, and a
longer run could take shorter ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .data import Batches, Feeds, Stream
from .engine import Engines
from .optimizer import Flat, Optimizer, Settings

DEFAULT = 0.004  # where there is no time to try: slow, but nothing was seen that it throws off
JUDGED = 16  # validation batches that a run is judged by
# (steps of the whole run from which on, rates, steps of one run, share of the whole run). Below some dozen
# steps a run in miniature says nothing: Adam's first steps are noise, and the smallest rate always wins.
_PLANS = (
    (384, (0.0007, 0.002, 0.005, 0.0125), 24, 0.07),
    (144, (0.0007, 0.002, 0.008), 16, 0.0),
    (72, (0.002, 0.008), 12, 0.0),
)
_MOST = 250  # steps of one run
GROWTH, MOST_GROWTH = 0.35, 6.0  # of the rate, with the length of the run: the exponent, and how far at most
BROKEN = 0.5  # of the loss at the start is gone in a run in miniature: much was broken, and no rate grows
NORMALIZED = 2.5  # times the rates with batch normalization, which lets longer steps pass
LARGEST = 0.032  # relative step that nothing was seen to gain from


@dataclass(frozen=True)
class Trial:
    """One rate and what came of it.

    Attributes:
        lr: the rate.
        loss: of the averaged weights on the validation batches; inf if the run diverged.
    """

    lr: float
    loss: float


LATEST = 0.3  # share of the time left after which trying ends, come what may


def plan(total: float, *, normalized: bool = False) -> tuple[tuple[float, ...], int]:
    """(rates, steps of one run) for a run of `total` steps; no rates where it is too short for trials."""
    factor = NORMALIZED if normalized else 1.0
    for least, rates, steps, share in _PLANS:
        if total >= least:
            longer = int(share * total / len(rates))
            return tuple(factor * rate for rate in rates), min(max(steps, longer), _MOST)
    return (), 0


def run(
    optimizer: Optimizer,
    next_batch: Callable[[], Feeds],
    steps: int,
    loss_of: Callable[[Feeds], float],
    is_late: Callable[[], bool],
) -> bool | None:
    """A run in miniature; False if it diverged, None if the time for it was up."""
    for i in range(steps):
        if is_late():
            return None
        loss, norm = loss_of(next_batch()), optimizer.gradient_norm()
        if not math.isfinite(loss) or not math.isfinite(norm):
            return False
        optimizer.step((i + 0.5) / steps, norm)
    return True


def choose(trials: list[Trial], before: float, steps: int, total: float) -> float:
    """The rate to train with: the best one, larger by as much as the run is longer than its miniature.

    Args:
        trials: in order of their rates.
        before: loss at the start, on the same batches.
        steps: of each of them.
        total: steps of the whole run.
    """
    best = min(trials, key=lambda t: t.loss)
    gained = 1.0 - best.loss / max(before, 1e-30)
    exponent = GROWTH * min(max(1.0 - gained / BROKEN, 0.0), 1.0)
    growth = min(max(total / steps, 1.0) ** exponent, MOST_GROWTH)
    return float(min(best.lr * growth, max(best.lr, LARGEST)))


@dataclass(frozen=True)
class Bench:
    """What runs in miniature need.

    Attributes:
        engine: gives losses and gradients.
        optimizer: of the weights; left as the last run made it.
        stream: training batches.
        shipped: weights as they are judged, of a buffer.
        validation: what the runs are judged by.
    """

    engine: Engines
    optimizer: Optimizer
    stream: Stream
    shipped: Callable[[np.ndarray], Flat]
    validation: Batches

    def tried(
        self, settings: Settings, steps: int, start: np.ndarray, is_late: Callable[[], bool]
    ) -> Trial | None:
        """A run in miniature from some weights; None if the time for it was up."""
        self.optimizer.restart(start)
        self.optimizer.settings = settings
        self.stream.seek(0, 0)
        with np.errstate(all="ignore"):
            went_well = run(self.optimizer, self.stream.next, steps, self.engine.step, is_late)
        if went_well is None:
            return None
        loss = self.loss_on_few(self.optimizer.average) if went_well else math.inf
        return Trial(settings.lr, loss if math.isfinite(loss) else math.inf)

    def loss_on_few(self, buffer: np.ndarray) -> float:
        """Loss under some weights on the first validation batches."""
        weights = self.shipped(buffer)
        total = count = 0.0
        for batch, new in self.validation.in_order():
            total += new * self.engine.loss(batch, weights.views)
            count += new
            if count >= JUDGED * self.validation.size:
                break
        return total / count
