"""Healing by training: the student learns to answer as its teacher did.

The teacher's outputs are computed once, by the current onnxruntime; the worker trains on files; after
each round this process judges the student, as it will be shipped, by the caller's metric, and the best
weights are given back. Nothing here changes the student's file.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.data.side import side_inputs
from condensec.errors import HealError
from condensec.healing import budget, events, targets
from condensec.healing.augment import Augmenter, resolve
from condensec.healing.client import Event, Worker, follow
from condensec.healing.copies import Models, made, sizes
from condensec.healing.environment import ensure
from condensec.healing.events import Progress
from condensec.healing.features import Slices
from condensec.healing.judge import Judge
from condensec.healing.normalized import samples_of
from condensec.healing.options import HealOptions, HealResult
from condensec.healing.request import fingerprint, request_of
from condensec.healing.side import ports
from condensec.healing.teacher import Teacher, Watch
from condensec.healing.training import Training
from condensec.healing.views import Views

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from condensec.data import Samples


def heal(
    student: Path,
    teacher: Path,
    train: Samples,
    validation: Samples,
    options: HealOptions,
    *,
    metric: Any = None,
    is_enough: Callable[[float], bool] | None = None,
    state: Path,
    progress: Progress | None = None,
    slices: Slices | None = None,
) -> HealResult:
    """Train a student to give what its teacher gives.

    Args:
        student: model file; not changed.
        teacher: model file with the same interface.
        train: samples; labels are used where they fit an output.
        validation: samples that decide which weights are the best.
        options: settings.
        metric: a `condensec.metrics.Metric`, or a function (outputs, samples) -> float, higher = better;
            None judges by the validation loss.
        is_enough: whether a value of the metric is what the caller needs: of rounds that differ by no more
            than chance one that is goes first, see `condensec.healing.choice`.
        state: folder for checkpoints; the same call with the same folder goes on where it was stopped.
            Removed when healing is done.
        progress: gets the share done and a line of text as it goes.
        slices: of the plan that cut the student, weight -> axis -> kept indices: says which of the teacher's
            inner values are comparable. Without them only those of the same shape are.

    Returns:
        The best weights by validation, and what happened. Never worse than before: no weights and a note
        if none were better.

    Raises:
        HealError: the worker can't be had, or failed; the state folder stays, so a repeated call resumes.
        ConfigError, DataError: the augmentation can't be had, or gives what doesn't fit.
    """
    begun = time.monotonic()
    say = progress or (lambda share, text: None)
    python = ensure(lambda line: say(0.0, line))
    models = Models(_load(student), student, teacher, slices or {})
    try:
        state.mkdir(parents=True, exist_ok=True)
        job = _prepare(models, (train, validation), options, state, say, begun)
        reference = _reference(models, job, metric, options.jobs)
        judge = Judge(
            models.student, job.training, job.validation, metric, state, options, reference, is_enough
        )
        with job.views, Worker(python, [str(job.request)], stall=options.stall) as worker:
            end = follow(worker, _answers(job, judge, say))
    except OSError as error:
        raise HealError(
            f"healing can't write to {state}: {error.strerror or error}", hint="is the disk full?"
        ) from error
    result = judge.result(job.training, end, time.monotonic() - begun)
    sides = side_inputs(ports(models.student))  # constants of the training copy, no weights of the model
    result = replace(result, frozen=tuple(part for part in result.frozen if part[0] not in sides))
    shutil.rmtree(state, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Job:
    """What was prepared for the worker.

    Attributes:
        training: the training graph.
        request: file the worker reads.
        views: makes the training samples, if they are augmented.
        validation_files: graph input -> .npy file.
        validation: the samples to judge by.
    """

    training: Training
    request: Path
    views: Views
    validation_files: dict[str, str]
    validation: Samples


def _answers(job: _Job, judge: Judge, say: Progress) -> dict[str, Callable[[Event], Any]]:
    """What is done at the worker's events."""
    return {
        "round": events.on_round(judge, say),
        "gradient": events.improve,
        "view": lambda event: {"files": job.views.get(int(event["epoch"]))},
        **events.pass_on(say),
    }


def _reference(models: Models, job: _Job, metric: Any, threads: int) -> dict[str, np.ndarray]:
    """The teacher's outputs on the validation samples, as far as the metric may ask for them."""
    found = targets.reference(job.validation_files, job.training)
    if getattr(metric, "needs_reference", False):
        found |= targets.untrained(models.student, models.teacher, job.validation, found, threads)
    return found


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:
        raise HealError(f"can't read the student {path}: {error}") from error


def _prepare(
    models: Models,
    given: tuple[Samples, Samples],
    options: HealOptions,
    state: Path,
    say: Progress,
    begun: float,
) -> _Job:
    """Write the training graph, the data and the request into the state folder.

    Args:
        models: student and teacher.
        given: training and validation samples.
        options: settings.
        state: folder to write to.
        say: told what is going on.
        begun: when the call began, for the time budget.
    """
    train, validation = given
    _, batch = sizes(models.student, train, options)
    augment = resolve(options.augment, train, seed=options.seed, batch=batch)
    copies = made(models, train, options, augmented=augment is not None)
    key = budget.job_key(models.path, models.teacher, options, (len(train), len(validation)))
    share = budget.stored(state, key)
    counts = (share.train, share.validation) if share else budget.counts(
        options, len(train), len(validation), copies.pace, copies.batch
    )  # fmt: skip
    train = budget.chosen(train, counts[0], options.seed)
    validation = budget.chosen(validation, counts[1], options.seed)
    say(0.0, f"computing the teacher's outputs on {len(train)} samples")
    original = Teacher(models.teacher, copies.training, options.jobs, copies.part, copies.padded)
    files = {"validation": original.write(validation, state / "validation")}
    views = _views(original, train, augment, options, state)
    if augment is None:
        files["train"] = original.write(train, state / "train")
    if copies.training.normalized is not None:
        files["statistics"] = samples_of(train, copies.training.inputs, copies.part, state)
    if share is None:
        share = budget.Share(key, *counts, budget.remaining(options, begun))
        budget.store(state, share)
    shorter = copies.lengths({"train": train, "validation": validation})
    request = request_of(copies.training, files, share, options, state, (copies.part, copies.batch), shorter)
    digest = fingerprint(request, copies.training, options, (train, validation))
    path = state / "request.json"
    path.write_text(json.dumps({**request, "fingerprint": digest}), encoding="utf-8")
    return _Job(copies.training, path, views, files["validation"], validation)


def _views(
    original: Teacher, train: Samples, augment: Augmenter | None, options: HealOptions, state: Path
) -> Views:
    """Makes the training samples, with the teacher's answers, as the worker asks for them."""
    watch = Watch(train)

    def make(view: int, folder: Path, is_stopped: Callable[[], bool]) -> dict[str, str]:
        return original.write(train, folder, augment=augment, view=view, watch=watch, is_stopped=is_stopped)

    return Views(make, state / "train", options.views, options.epochs)
