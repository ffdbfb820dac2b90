"""How a cut model learns again: closed form, then by gradient in its own process, as the budget says."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from condensec import io
from condensec.data import Samples
from condensec.errors import ModelError
from condensec.healing import HealOptions, HealResult, Thin, closed_form, environment, heal
from condensec.healing.augment import resolve as resolve_augment
from condensec.healing.qdq import as_stored, integer_weights, with_float_weights
from condensec.healing.rows import MOST_ROWS
from condensec.passes.prune import Cut, with_weights
from condensec.sparsity import asked
from condensec.specs import parse_heal, parse_losses
from condensec.stages.job import Job
from condensec.stages.state import Progress
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
LEAST_SECONDS = 2.0  # below that the worker's start costs more than it heals
REPAIR_SAMPLES = 256
EARLY = 0.25  # share of the training time for all cycles before the last one
LAST = 0.8  # of what is left, for the last cycle; the rest polishes the result, or is for another try
SLACK = 5.0  # times what the guard allows may be lost on the way, if training is to come,
FAR = 10.0  # or so many points, if the training
LOSS = "output=1,features=4"  # the plan says which of the original's inner channels are comparable
ZEROS = 0.4  # share of the training time for zeros in a pattern, where units are cut first
QUANTIZED = 0.15  # share of the training time kept for graphs in int8, where they are asked for
WORTH = 0.05  # of the asked minutes: less isn't worth another start
ENOUGH = 20_000  # sees so many samples (in proportion, if it sees fewer)
TRAINED_PER_SECOND = 1e10  # MACs of one forward run; a cautious figure, about a third of what two cores do


@dataclass(frozen=True)
class Healed:
    """Weights after some healing.

    Attributes:
        weights: all weights that differ from the plain cut, in the cut's shapes.
        metric: on validation samples; NaN until judged.
        how: in words.
        gradient_seconds: time spent training.
        note: what else is worth saying.
    """

    weights: Weights = field(default_factory=dict)
    metric: float = float("nan")
    how: str = "off"
    gradient_seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """A graph in int8 after training.

    Attributes:
        model: with its new weights.
        seconds: the training took.
        changed: whether anything was better than before.
    """

    model: ir.Model
    seconds: float
    changed: bool


class Healer:
    """Heals cuts of one job; keeps what the healing cost, for the report."""

    def __init__(self, job: Job, steps: Steps, folder: Path) -> None:
        self.spec = parse_heal(job.config.heal)
        self._job = job
        self._steps = steps
        self._folder = folder
        self.results: list[HealResult] = []
        self.quantized_seconds = 0.0
        if self._gradient:  # what can't be had is told before anything is cut
            _check_teacher(job)
            resolve_augment(job.config.augment, job.data.splits.train, seed=0, batch=4)

    @property
    def notes(self) -> tuple[str, ...]:
        """What healing can't reach, for the report."""
        out_of_reach = integer_weights(self._job.loaded.model) if self.spec.mode != "off" else []
        if not out_of_reach:
            return ()
        return (
            f"{len(out_of_reach)} weights are stored as integers that healing can't change: heal before"
            " quantizing, or give the graph with QuantizeLinear and DequantizeLinear (QDQ)",
        )

    @property
    def closed_form(self) -> bool:
        """Whether cuts are repaired by least squares."""
        return self.spec.closed_form

    def allowance(
        self, progress: Progress, *, cycles_left: int, last: bool, endangered: bool
    ) -> float | None:
        """Seconds of gradient healing for this cycle (inf: as many as the epochs take), or None for none.

        A cycle in between trains only where the guard is in danger, and shares a part of what is left with
        the cycles to come; the last cycle gets most of it. The rest is for another try.
        """
        if not self._gradient:
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
        if not self._gradient:
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
        if not self._gradient or self.spec.epochs is not None or not self.spec.minutes:
            return None
        left, metric = self._left(progress, self._for_quantized), progress.safe.metric
        lost = metric is None or self._job.points_lost(metric) > 0
        return left if lost and left >= max(LEAST_SECONDS, WORTH * 60 * self.spec.minutes) else None

    @property
    def _gradient(self) -> bool:
        return self.spec.gradient and not self._job.data.synthetic

    def _left(self, progress: Progress, reserved: float = 0.0) -> float:
        """Seconds of training that are left, without a share of all that is kept for later."""
        return max(0.0, 60 * (self.spec.minutes or 0.0) * (1 - reserved) - progress.heal_seconds)

    @property
    def _reserved(self) -> float:
        """What cycles leave for the zeros that are set after them."""
        zeros = self.spec.of_stack("zeros", ZEROS) if asked(self._job.config.patterns) is not None else 0.0
        return float(zeros) + self._for_quantized

    def repair(
        self, cut: Cut, weights: Weights, samples: Samples | None = None, *, most_rows: int = MOST_ROWS
    ) -> Healed:
        """Closed form: least squares on calibration activations (or on others) against the original."""
        student = with_weights(cut.model, weights)
        samples = samples or self._job.data.splits.calibration.first(REPAIR_SAMPLES)
        # thousands of small systems: BLAS threads would spend their time waiting for one another
        with threadpool_limits(1, user_api="blas"):
            result = closed_form.repair(
                self._job.analysis.runnable,
                student,
                samples,
                cut.plan,
                freeze=self.spec.options.get("freeze"),
                most_rows=most_rows,
            )
        return Healed(dict(result.weights), how="closed-form")

    def seconds_left(self, progress: Progress, share: float) -> float | None:
        """A share of the training time that is left (inf: by epochs), or None where that is too little."""
        if not self._gradient:
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

    def train(
        self,
        cut: Cut,
        weights: Weights,
        seconds: float,
        *,
        zeros: Sequence[str] = (),
        thin: Thin | None = None,
    ) -> Healed:
        """By gradient, in the worker's own process: distil the teacher, and the labels where there are any.

        Zeros of the weights named in ``zeros`` stay zeros; those of ``thin`` come on the way. Weights stored
        as integers behind a DequantizeLinear are trained as floats that are rounded in every step.

        Raises:
            HealError: the worker crashed, hung or could not be had; the weights before stay.
        """
        by_epochs = seconds == float("inf")
        student, found = with_float_weights(with_weights(cut.model, weights))
        result, spent = self._trained(student, seconds, cut.plan.slices, zeros=tuple(zeros), thin=thin)
        how = f"epochs={self.spec.epochs}" if by_epochs else f"minutes={spent / 60:.2g}"
        healed = as_stored(result.weights, found)
        return Healed(healed, how=how, gradient_seconds=spent, note=result.note)

    @property
    def trains_quantized(self) -> bool:
        """Whether graphs in int8 are trained."""
        return self._gradient and self._for_quantized > 0

    @property
    def always_quantized(self) -> bool:
        """``qat=on``: whatever they have lost."""
        return bool(self.spec.of_stack("qat", "auto") == "on")

    def train_quantized(self, path: Path) -> Trained | None:
        """A graph in int8, trained with its own rounding; None where no time is left for it.

        Args:
            path: a QDQ graph.

        Raises:
            HealError: as `train`.
        """
        if not self.trains_quantized:
            return None
        seconds = float("inf")
        if self.spec.epochs is None:
            total = 60 * (self.spec.minutes or 0.0) * self._for_quantized
            seconds = (total - self.quantized_seconds) / 2  # there may be other targets, and another round
            if seconds < LEAST_SECONDS:
                return None
        model = io.load(path)
        student, found = with_float_weights(model)
        if not found:
            return None
        result, spent = self._trained(student, seconds, {}, losses={"output": 1.0})
        self.quantized_seconds += spent
        return Trained(with_weights(model, as_stored(result.weights, found)), spent, bool(result.weights))

    def _trained(
        self,
        model: ir.Model,
        seconds: float,
        slices: Any,
        losses: Mapping[str, float] | None = None,
        **more: Any,
    ) -> tuple[HealResult, float]:
        """What the worker makes of a student, and the seconds it took."""
        job, splits = self._job, self._job.data.splits
        by_epochs = seconds == float("inf")
        own = job.config.teacher is None  # another teacher's inner values aren't the student's
        default = parse_losses(LOSS) if own else {"output": 1.0}
        chosen = parse_losses(job.config.loss) if job.config.loss else losses or default
        options = HealOptions(
            epochs=self.spec.epochs if by_epochs else None,
            minutes=None if by_epochs else seconds / 60,
            seed=job.config.seed,
            jobs=job.config.jobs,
            augment=job.config.augment,
            losses=chosen,
            **more,
            **self.spec.options,
        )
        environment.ensure(lambda line: self._steps.progress("heal", 0.0, line))  # not on the budget
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="condensec-heal-") as name:
            student, teacher = Path(name) / "student.onnx", Path(name) / "teacher.onnx"
            io.save(model, student)
            if own:
                io.save(job.analysis.runnable, teacher)
            result = heal(
                student,
                teacher if own else Path(job.config.teacher or teacher),
                splits.train,
                splits.validation,
                options,
                metric=job.data.metric,
                state=self._folder / "heal",
                progress=lambda share, text: self._steps.progress("heal", share, text),
                slices=slices,
            )
        self.results.append(result)
        return result, time.monotonic() - start


def _check_teacher(job: Job) -> None:
    """A teacher of the user's own has the model's inputs and outputs.

    Raises:
        ModelError: it hasn't, or can't be read.
    """
    if job.config.teacher is None:
        return
    other = io.signature(io.load(Path(job.config.teacher)))
    for mine, theirs in (
        (job.loaded.signature.inputs, other.inputs),
        (job.loaded.signature.outputs, other.outputs),
    ):
        if [v.name for v in mine] != [v.name for v in theirs]:
            raise ModelError(
                f"{job.loaded.path} and its teacher {job.config.teacher} have other inputs or outputs"
            )
