"""Which round's weights are given back, where the metric can't tell some of them apart.

Of some hundred validation samples the share of right answers is known to a point or so. Over a dozen rounds
the highest is more luck than merit, and an early round that was lucky would be taken before the trained one.
The loss, a mean of smooth values, has far less noise: so of all rounds within one standard error of the best
metric the one with the lowest loss is taken (the one-standard-error rule of Breiman et al. 1984,
"Classification and Regression Trees", 3.4.3, for pairs of rounds on the same samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from condensec.fidelity import standard_error


@dataclass(frozen=True)
class Score:
    """What a round is worth.

    Attributes:
        number: of the round.
        value: the metric, higher = better; 0 without one, -inf where it isn't a number.
        loss: on validation samples.
        samples: the metric of each sample ``[N]``, higher = better; None where there is none.
    """

    number: int
    value: float
    loss: float
    samples: np.ndarray | None = None

    def is_behind(self, other: Score) -> bool:
        """Whether its metric is worse by more than chance: the standard error of the mean difference."""
        if self.value >= other.value:
            return False
        if self.samples is None or other.samples is None:
            return True
        return not other.value - self.value <= standard_error(other.samples - self.samples)


class Choice:
    """Takes in rounds in order, and says which is to be kept.

    Args:
        is_enough: whether a value of the metric, as the caller has it, is what is needed (a guard): rounds
            that reach it aren't given up for one that doesn't.
        sign: -1 where lower values of the metric are better.

    Attributes:
        best: the round to keep; None before the first one that may be.
        peak: the one with the highest metric.
        start: the student as it was given, if that may be kept.
    """

    def __init__(self, is_enough: Callable[[float], bool] | None = None, sign: float = 1.0) -> None:
        self._is_enough = is_enough or (lambda value: True)
        self._sign = sign
        self.best: Score | None = None
        self.peak: Score | None = None
        self.start: Score | None = None

    def take(self, new: Score) -> bool:
        """Whether a round is the best so far."""
        if new.number == 0:
            self.start = new
        if self.peak is None or new.value > self.peak.value:
            self.peak = new
        if self.best is not None:
            if not self._may_be(new):
                return False
            if self._may_be(self.best) and (self.best.loss, -self.best.value) <= (new.loss, -new.value):
                return False
        self.best = new
        return True

    def _may_be(self, one: Score) -> bool:
        """Not behind the peak, nor the start, nor short of what is needed."""
        assert self.peak is not None
        if self.start is not None and one.value < self.start.value:
            return False  # what training gives back is never worse than what it was given
        short = self._enough(self.peak) and not self._enough(one)
        return not short and not one.is_behind(self.peak)

    def _enough(self, one: Score) -> bool:
        return math.isfinite(one.value) and self._is_enough(self._sign * one.value)
