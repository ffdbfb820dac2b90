"""How the minutes of training are shared out: over cycles, zeros in a pattern, and graphs in int8."""

from __future__ import annotations

import math

from condensec.sparsity import asked
from condensec.specs import parse_heal
from condensec.stages.job import Job
from condensec.stages.state import Progress

LEAST_SECONDS = 2.0  # below that the worker's start costs more than it heals
EARLY = 0.25  # share of the training time for all cycles before the last one
LAST = 0.8  # of what is left, for the last cycle; the rest polishes the result, or is for another try
SLACK = 5.0  # times what the guard allows may be lost on the way, if training is to come,
FAR = 10.0  # or so many points, if the training
ZEROS = 0.4  # share of the training time for zeros in a pattern, where units are cut first
QUANTIZED = 0.15  # share of the training time kept for graphs in int8, where they are asked for
WORTH = 0.05  # of the asked minutes: less isn't worth another start
ENOUGH = 20_000  # sees so many samples (in proportion, if it sees fewer)
TRAINED_PER_SECOND = 1e10  # MACs of one forward run; a cautious figure, about a third of what two cores do


class Minutes:
    """The training time of one job.

    Args:
        job: the job.

    Attributes:
        spec: what was asked for.
        quantized: seconds that graphs in int8 have used.
    """

    def __init__(self, job: Job) -> None:
        self.spec = parse_heal(job.config.heal)
        self.quantized = 0.0
        self._job = job

    @property
    def gradient(self) -> bool:
        """Whether anything is trained."""
        return self.spec.gradient and not self._job.data.synthetic

    def allowance(
        self, progress: Progress, *, cycles_left: int, last: bool, endangered: bool
    ) -> float | None:
        """Seconds of gradient healing for this cycle (inf: as many as the epochs take), or None for none.

        A cycle in between trains only where the guard is in danger, and shares a part of what is left with
        the cycles to come; the last cycle gets most of it. The rest is for another try.
        """
        if not self.gradient:
            return None
        if self.spec.epochs is not None:
            return float("inf") if last or endangered else None
        left = self._left(progress, self._reserved)
        if progress.strict:
            share = left / 2 if last or endangered else 0.0
        else:
            early = left * EARLY / cycles_left if endangered else 0.0
            share = left * LAST if last else early
        return share if share >= LEAST_SECONDS else None

    def can_wait(self, progress: Progress, metric: float) -> bool:
        """Whether a model over the guard may be cut on: training in the last cycle can bring it back.

        How much it can bring back is a matter of how many samples it will see; estimated by the size of the
        model, never by the clock.
        """
        if not self.gradient:
            return False
        samples = float(self.spec.epochs or 0) * len(self._job.data.splits.train)
        if self.spec.epochs is None:
            seconds = self._left(progress, self._reserved) * LAST
            if seconds < LEAST_SECONDS:
                return False
            samples = seconds * TRAINED_PER_SECOND / max(1, self._job.analysis.macs())
        allowed = max(SLACK * self._job.config.max_drop, FAR * min(1.0, samples / ENOUGH))
        return self._job.points_lost(metric) <= allowed

    def polish_seconds(self, progress: Progress) -> float | None:
        """Seconds for a last training of the accepted model, or None where there is nothing to gain."""
        if not self.gradient or self.spec.epochs is not None or not self.spec.minutes:
            return None
        left, metric = self._left(progress, self._for_quantized), progress.safe.metric
        lost = metric is None or self._job.points_lost(metric) > 0
        return left if lost and left >= max(LEAST_SECONDS, WORTH * 60 * self.spec.minutes) else None

    def _left(self, progress: Progress, reserved: float = 0.0) -> float:
        """Seconds of training that are left, without a share of all that is kept for later."""
        return max(0.0, 60 * (self.spec.minutes or 0.0) * (1 - reserved) - progress.heal_seconds)

    @property
    def _reserved(self) -> float:
        """What cycles leave for the zeros that are set after them."""
        zeros = self.spec.of_stack("zeros", ZEROS) if asked(self._job.config.patterns) is not None else 0.0
        return float(zeros) + self._for_quantized

    def seconds_left(self, progress: Progress, share: float) -> float | None:
        """A share of the training time that is left (inf: by epochs), or None where that is too little."""
        if not self.gradient:
            return None
        if self.spec.epochs is not None:
            return float("inf")
        seconds = share * self._left(progress, self._for_quantized)
        return seconds if seconds >= LEAST_SECONDS else None

    @property
    def _for_quantized(self) -> float:
        """What is left of the training for graphs in int8; without a guard nothing says when they need it."""
        qat = self.spec.of_stack("qat", "auto")
        needed = qat == "on" or (qat == "auto" and math.isfinite(self._job.config.max_drop))
        wanted = needed and self._job.config.quantize in ("int8", "auto")
        return float(self.spec.of_stack("quantized", QUANTIZED)) if wanted else 0.0

    @property
    def trains_quantized(self) -> bool:
        """Whether graphs in int8 are trained."""
        return self.gradient and self._for_quantized > 0

    @property
    def always_quantized(self) -> bool:
        """``qat=on``: whatever they have lost."""
        return bool(self.spec.of_stack("qat", "auto") == "on")

    def quantized_seconds(self) -> float | None:
        """Seconds for one graph in int8 (inf: by epochs), or None where that is too little."""
        if not self.trains_quantized:
            return None
        if self.spec.epochs is not None:
            return float("inf")
        total = 60 * (self.spec.minutes or 0.0) * self._for_quantized
        seconds = (total - self.quantized) / 2  # there may be other targets, and another round
        return seconds if seconds >= LEAST_SECONDS else None
