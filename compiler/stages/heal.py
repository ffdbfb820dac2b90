"""How a cut model learns again: closed form, then by gradient in its own process, as the budget says."""

from __future__ import annotations

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
from condensec.errors import HealError, ModelError
from condensec.healing import HealOptions, HealResult, Thin, closed_form, environment, heal
from condensec.healing.augment import resolve as resolve_augment
from condensec.healing.qdq import as_stored, integer_weights, with_float_weights
from condensec.healing.rows import MOST_ROWS
from condensec.passes.prune import Cut, with_weights
from condensec.specs import parse_losses
from condensec.stages.job import Job
from condensec.stages.minutes import Minutes
from condensec.stages.steps import Steps

Weights = Mapping[str, npt.NDArray[Any]]
REPAIR_SAMPLES = 256
LOSS = "output=1,features=4"  # the plan says which of the original's inner channels are comparable


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
        self.minutes = Minutes(job)
        self.spec = self.minutes.spec
        self._job = job
        self._steps = steps
        self._folder = folder
        self.results: list[HealResult] = []
        self.failures: list[str] = []
        if self.minutes.gradient:  # what can't be had is told before anything is cut
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

    def train_quantized(self, path: Path) -> Trained | None:
        """A graph in int8, trained with its own rounding; None where no time is left for it.

        Args:
            path: a QDQ graph.

        Raises:
            HealError: as `train`.
        """
        seconds = self.minutes.quantized_seconds()
        if seconds is None:
            return None
        model = io.load(path)
        student, found = with_float_weights(model)
        if not found:
            return None
        result, spent = self._trained(student, seconds, {}, losses={"output": 1.0})
        self.minutes.quantized += spent
        return Trained(with_weights(model, as_stored(result.weights, found)), spent, bool(result.weights))

    def _trained(self, model: ir.Model, seconds: float, slices: Any, **more: Any) -> tuple[HealResult, float]:
        """What the worker makes of a student, and the seconds it took.

        A failure is kept for the report: whoever asked for training would think that it was trained.
        """
        try:
            return self._by_worker(model, seconds, slices, **more)
        except HealError as error:
            text = f"healing failed: {error}"
            self.failures += [] if text in self.failures else [text]
            raise

    def _by_worker(
        self,
        model: ir.Model,
        seconds: float,
        slices: Any,
        losses: Mapping[str, float] | None = None,
        **more: Any,
    ) -> tuple[HealResult, float]:
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
                is_enough=job.keeps_guard,
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
