"""The worker's budget: how far a run is, when it validates, and when it is over."""

from __future__ import annotations

import math
import time

# ruff: noqa: TID251 (this package's own modules)
from .data import Batches, Stream

_STARTED = time.monotonic()
_VALIDATION = 0.1  # share of the time, at most
_ROUNDS = 12  # of a timed run, at most
_FORWARD = 1 / 3  # of a training step: what a batch of validation costs; and once more for the parent's judge
_RESERVED = 1.1  # times the longest validation so far is kept for the last one


class Clock:
    """Counts a budget of seconds, of this process and those before it, or of epochs.

    Args:
        epochs: the budget in passes over the samples.
        seconds: the budget in wall time, this process's start and the parent's answers included; None = by
            epochs.
        stream: training batches.
        validation: validation batches.

    Attributes:
        seconds: as given.
        epochs: as given; 1 where neither is.
        earlier: seconds used by processes before this one.
        validated: seconds of the last validation.
    """

    def __init__(
        self, epochs: float | None, seconds: float | None, stream: Stream, validation: Batches
    ) -> None:
        self.seconds, self.epochs = seconds, epochs or 1.0
        self.earlier = self.validated = 0.0
        self._stream, self._validation = stream, validation
        self._longest = 0.0
        self._ended = False

    @property
    def spent(self) -> float:
        """Seconds used so far."""
        return self.earlier + time.monotonic() - _STARTED

    @property
    def left(self) -> float:
        """Seconds that are left; inf of a run counted in epochs."""
        return math.inf if self.seconds is None else max(self.seconds - self.spent, 0.0)

    def share(self) -> float:
        """Share of the budget used, in [0, 1]; what the last validation will take isn't there to be used."""
        if self._ended:
            return 1.0
        if self.seconds is not None:
            return min(1.0, self.spent / max(self.seconds - _RESERVED * self._longest, 1e-3))
        return min(1.0, self._stream.done / self._stream.steps / self.epochs)

    def is_over(self) -> bool:
        """Whether the budget is used."""
        return self.share() >= 1.0

    def end(self) -> None:
        """It is over, whatever is left."""
        self._ended = True

    def validation_took(self, seconds: float) -> None:
        """Note what one took."""
        self.validated = seconds
        self._longest = max(self._longest, seconds)

    def is_round_over(self, begun: float) -> bool:
        """Time to validate: often enough to catch the best weights, rarely enough to train most of the time.

        A run counted in epochs goes by steps, so that it does the same on every machine: whole epochs, as
        many as keep validation to a tenth of the work, but four rounds at least.

        Args:
            begun: when the round began, as `time.monotonic` has it.
        """
        if self.is_over():
            return True
        if self.seconds is not None:
            share = (1 - _VALIDATION) / _VALIDATION
            return time.monotonic() - begun > max(self.seconds / _ROUNDS, share * self.validated)
        steps = self._stream.steps
        cost = 2 * _FORWARD * -(-self._validation.count // self._validation.size)
        wanted = min(cost / _VALIDATION, steps * self.epochs / 4)
        return self._stream.done % (max(1, round(wanted / steps)) * steps) == 0
