"""Healing by training: the student learns to answer as its teacher did.

The teacher's outputs are computed once, by the current onnxruntime; the worker trains on files; after
each round this process judges the student, as it will be shipped, by the caller's metric, and the best
weights are given back. Nothing here changes the student's file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import CondensecError, HealError
from condensec.healing import losses, targets
from condensec.healing.client import Event, Worker, follow
from condensec.healing.environment import ensure
from condensec.healing.judge import Judge
from condensec.healing.options import HealOptions, HealResult, Round
from condensec.healing.training import Training, prepare

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

Progress = Callable[[float, str], None]  # share of the work done in [0, 1], what is going on
_VERSION = 1  # of the files in the state folder


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

    Returns:
        The best weights by validation, and what happened. Never worse than before: no weights and a note
        if none were better.

    Raises:
        HealError: the worker can't be had, or failed; the state folder stays, so a repeated call resumes.
    """
    begun = time.monotonic()
    say = progress or (lambda share, text: None)
    python = ensure(lambda line: say(0.0, line))
    try:
        state.mkdir(parents=True, exist_ok=True)
        model = _load(student)
        job = _prepare(model, teacher, train, validation, options, state, say)
        reference = targets.reference(job.files["validation"], job.training)
        judge = Judge(model, job.training, validation, metric, state, options, reference)
        with Worker(python, [str(job.request)], stall=options.stall) as worker:
            end = follow(worker, {"round": _on_round(judge, say), **_pass_on(say)})
    except OSError as error:
        raise HealError(f"healing can't write to {state}: {error}", hint="is the disk full?") from error
    result = judge.result(job.training, end, time.monotonic() - begun)
    shutil.rmtree(state, ignore_errors=True)
    return result


class _Job:
    """What was prepared for the worker."""

    def __init__(self, training: Training, request: Path, files: dict[str, dict[str, str]]) -> None:
        self.training, self.request, self.files = training, request, files


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:
        raise HealError(f"can't read the student {path}: {error}") from error


def _prepare(
    model: onnx.ModelProto,
    teacher: Path,
    train: Samples,
    validation: Samples,
    options: HealOptions,
    state: Path,
    say: Progress,
) -> _Job:
    """Write the training graph, the data and the request into the state folder."""
    batch = _batch_size(model, len(train), options.batch)
    feeds = {name: targets.rows(array, batch) for name, array in train.inputs.items()}
    labels = None if train.labels is None else targets.rows(train.labels, batch)
    wanted = targets.shared_outputs(model, teacher)
    sample = targets.sample(teacher, train, wanted, options.jobs)

    def choose(graph: Any) -> list[losses.Term]:
        return losses.choose(graph, sample, train.labels, options.losses, options.temperature)

    pattern = re.compile(options.freeze) if options.freeze else None
    training = prepare(
        model, feeds, choose, labels, freeze=lambda name: bool(pattern and pattern.search(name))
    )
    say(0.0, "computing the teacher's outputs")
    files = {}
    for part, samples in (("train", train), ("validation", validation)):
        files[part] = targets.store(teacher, samples, training, state / part, options.jobs, batch)
    (state / "forward.onnx").write_bytes(training.model.SerializeToString())
    names = list(training.weights)
    initial = {f"w{i}": training.weights[name] for i, name in enumerate(names)}
    targets.write_npz(state / "initial.npz", initial)
    request = {
        "model": str(state / "forward.onnx"),
        "weights": str(state / "initial.npz"),
        "names": names,
        "train": files["train"],
        "validation": files["validation"],
        "batch": batch,
        "epochs": options.epochs,
        "seconds": None if options.minutes is None else 60 * options.minutes,
        "threads": options.jobs,
        "seed": options.seed,
        "optimizer": {
            "kind": options.optimizer,
            "lr": options.lr,
            "weight_decay": options.weight_decay,
            "warmup": options.warmup,
        },
        "state": str(state),
    }
    request["fingerprint"] = _fingerprint(request, training, files)
    path = state / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    return _Job(training, path, files)


def _batch_size(model: onnx.ModelProto, samples: int, wanted: int) -> int:
    """The batch to train with: the fixed one of the model, else what was asked, if there is as much."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value > 0 and value.name not in {t.name for t in model.graph.initializer}:
            return int(dims[0].dim_value)
    return max(1, min(wanted, samples))


def _fingerprint(request: Mapping[str, Any], training: Training, files: Mapping[str, Any]) -> str:
    """Equal for equal jobs: a checkpoint of another job is not taken up."""
    digest = hashlib.sha256()
    plain = {k: v for k, v in request.items() if k not in ("threads", "state")}
    digest.update(json.dumps([_VERSION, plain], sort_keys=True, default=str).encode())
    digest.update(training.model.SerializeToString(deterministic=True))
    for value in training.weights.values():
        digest.update(np.ascontiguousarray(value).tobytes())
    for part in files.values():
        for name, path in part.items():
            digest.update(f"{name}{Path(path).stat().st_size}".encode())
            digest.update(targets.head(Path(path)))
    return digest.hexdigest()


def _on_round(judge: Judge, say: Progress) -> Callable[[Event], Mapping[str, Any]]:
    def handle(event: Event) -> Mapping[str, Any]:
        begun = time.monotonic()
        try:
            done: Round = judge.round(event)
        except CondensecError as error:
            raise HealError(f"the healed student can't be judged: {error}") from error
        score = f"loss {done.validation_loss:.4g}" if done.metric is None else f"metric {done.metric:.4f}"
        say(float(event["share"]), f"epoch {done.epoch:.2f}: {score} on validation")
        stop = "stop" if judge.is_exhausted() else "go on"
        return {"do": stop, "seconds": time.monotonic() - begun}

    return handle


def _pass_on(say: Progress) -> dict[str, Callable[[Event], None]]:
    def progress(event: Event) -> None:
        left = "" if event.get("left") is None else f", {float(event['left']):.0f} s left"
        text = f"epoch {event['epoch']}: loss {event['loss']:.4g}, {event['rate']:.0f} samples/s{left}"
        say(float(event["share"]), text)

    def resumed(event: Event) -> None:
        say(0.0, f"going on from step {event['step']}")

    def diverged(event: Event) -> None:
        say(0.0, f"diverged at step {event['step']}: rolled back, slower")

    return {"progress": progress, "resumed": resumed, "diverged": diverged}
