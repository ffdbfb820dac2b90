"""Healing by training: the student learns to answer as its teacher did.

The teacher's outputs are computed once, by the current onnxruntime; the worker trains on files; after
each round this process judges the student, as it will be shipped, by the caller's metric, and the best
weights are given back. Nothing here changes the student's file.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.data.side import side_inputs
from condensec.errors import HealError
from condensec.healing import budget, events, features, lengths, losses, parts, targets
from condensec.healing.augment import resolve
from condensec.healing.client import Event, Worker, follow
from condensec.healing.environment import ensure
from condensec.healing.events import Progress
from condensec.healing.features import Slices
from condensec.healing.judge import Judge
from condensec.healing.lengths import Lengths
from condensec.healing.normalized import samples_of
from condensec.healing.options import HealOptions, HealResult
from condensec.healing.request import Shorter, fingerprint, request_of
from condensec.healing.side import ports, settled
from condensec.healing.teacher import Teacher, Watch
from condensec.healing.training import Choose, Training, prepare
from condensec.healing.views import Views

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples
    from condensec.healing.graph import Graph
    from condensec.healing.lengths import Compared

BROKEN = 0.3  # of the outputs' variance: what a student is off by where batch normalization pays


def heal(
    student: Path,
    teacher: Path,
    train: Samples,
    validation: Samples,
    options: HealOptions,
    *,
    metric: Any = None,
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
    models = _Models(_load(student), student, teacher, slices or {})
    try:
        state.mkdir(parents=True, exist_ok=True)
        job = _prepare(models, (train, validation), options, state, say, begun)
        reference = targets.reference(job.validation_files, job.training)
        judge = Judge(models.student, job.training, job.validation, metric, state, options, reference)
        with job.views, Worker(python, [str(job.request)], stall=options.stall) as worker:
            on_view: dict[str, Callable[[Event], Mapping[str, Any]]] = {"gradient": events.improve}
            on_view |= {"view": lambda event: {"files": job.views.get(int(event["epoch"]))}}
            end = follow(worker, {"round": events.on_round(judge, say), **on_view, **events.pass_on(say)})
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
class _Models:
    """Student and teacher.

    Attributes:
        student: the student.
        path: its file.
        teacher: the teacher's file.
        slices: of the plan.
    """

    student: onnx.ModelProto
    path: Path
    teacher: Path
    slices: Slices


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


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:
        raise HealError(f"can't read the student {path}: {error}") from error


def _prepare(
    models: _Models,
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
    part, batch = parts.sizes(models.student, max(1, min(options.batch, len(train))), options.jobs)
    augment = resolve(options.augment, train, seed=options.seed, batch=batch)
    outputs = targets.shared_outputs(models.student, models.teacher)
    answers, pace = targets.sample(models.teacher, train, outputs, options.jobs)
    training = _training(models, train, answers, options, part)
    fitting = parts.fitting(models.student, training.model, part)
    if fitting != part:
        part, training = fitting, _training(models, train, answers, options, fitting)
    padded = None if augment is not None else lengths.find(models.student, train, batch)
    shorter = [] if padded is None else _shorter(models, train, training, options, part, padded)
    padded = padded if shorter else None
    if shorter or not _pays(training, models, train, answers, options):  # shorter ones have other means
        training = replace(training, normalized=None)
    key = budget.job_key(models.path, models.teacher, options, (len(train), len(validation)))
    share = budget.stored(state, key)
    counts = (share.train, share.validation) if share else budget.counts(
        options, len(train), len(validation), pace, batch
    )  # fmt: skip
    train = budget.chosen(train, counts[0], options.seed)
    validation = budget.chosen(validation, counts[1], options.seed)
    say(0.0, f"computing the teacher's outputs on {len(train)} samples")
    original = Teacher(models.teacher, training, options.jobs, part, padded)
    judged = original.write(validation, state / "validation")

    watch = Watch(train)

    def make(view: int, folder: Path, is_stopped: Callable[[], bool]) -> dict[str, str]:
        return original.write(train, folder, augment=augment, view=view, watch=watch, is_stopped=is_stopped)

    views = Views(make, state / "train", options.views, options.epochs)
    files = {"validation": judged}
    if augment is None:
        files["train"] = original.write(train, state / "train")
    if training.normalized is not None:
        files["statistics"] = samples_of(train, training.inputs, part, state)
    if share is None:
        share = budget.Share(key, *counts, budget.remaining(options, begun))
        budget.store(state, share)
    splits = {"train": train, "validation": validation}
    kinds = {name: padded.kinds(samples) for name, samples in splits.items()} if padded else {}
    request = request_of(training, files, share, options, state, (part, batch), Shorter(shorter, kinds))
    digest = fingerprint(request, training, options, (train, validation))
    path = state / "request.json"
    path.write_text(json.dumps({**request, "fingerprint": digest}), encoding="utf-8")
    return _Job(training, path, views, judged, validation)


def _pays(
    training: Training,
    models: _Models,
    train: Samples,
    answers: Mapping[str, np.ndarray],
    options: HealOptions,
) -> bool:
    """Whether batch normalization is worth its time, where it can be had: asked for, or much is broken."""
    if training.normalized is None:
        return False
    if options.batch_norm == "on" or options.thin is not None:
        return True
    return targets.off(models.path, train, answers, options.jobs) > BROKEN


def _training(
    models: _Models,
    train: Samples,
    answers: Mapping[str, np.ndarray],
    options: HealOptions,
    batch: int,
) -> Training:
    """The training graph for one part of a batch, of ``batch`` samples."""
    within = (options.losses or {}).get(losses.FEATURES, 0.0)

    def choose(graph: Graph, barriers: Mapping[str, str]) -> list[losses.Term]:
        terms = losses.choose(graph, answers, train.labels, options.losses, options.temperature)
        stops = features.in_front_of(graph, barriers)
        if not within and not stops:
            return terms
        known = features.look(models.student, models.slices)
        blocks = features.spread(known.blocks) if within else []
        inner = targets.insides(models.teacher, train, [*stops, *blocks], options.jobs)
        for names, weight in ((stops, 1.0), ([n for n in blocks if n not in stops], within)):
            terms += features.terms(graph, known, inner, names, weight, len(train))
        return terms

    return _prepared(models, train, choose, options, batch)


def _prepared(models: _Models, train: Samples, choose: Choose, options: HealOptions, batch: int) -> Training:
    feeds = {name: targets.rows(array, batch) for name, array in train.inputs.items()}
    labels = None if train.labels is None else targets.rows(train.labels, batch)
    sides = side_inputs(ports(models.student))
    pattern = re.compile(options.freeze) if options.freeze else None

    def is_frozen(name: str) -> bool:
        return name in sides or bool(pattern and pattern.search(name))

    student = settled(models.student, train, batch)
    return prepare(student, feeds, choose, labels, freeze=is_frozen, batch_norm=options.batch_norm != "off")


def _shorter(
    models: _Models,
    train: Samples,
    training: Training,
    options: HealOptions,
    batch: int,
    padded: Lengths,
) -> list[Training]:
    """The training graph for each shorter length; none where padding can't be cut off."""
    values = dict.fromkeys(training.targets.values())
    inside = [name for name in values if name in training.matches]
    outputs = [name for name in values if name not in training.matches]
    pair: list[Compared] = [(models.teacher, outputs, inside), (models.student, outputs, [])]
    if not lengths.hold(padded, pair, train):
        return []
    found = []
    for size in padded.sizes[:-1]:
        try:
            cut = padded.cut(train, size)
            found.append(_prepared(models, cut, lambda graph, barriers: list(training.terms), options, batch))
        except HealError:  # the graph computes with its length in a way that a copy can't follow
            return []
    return found if all(map(training.fits, found)) else []
