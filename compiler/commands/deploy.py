"""Commands that write graphs for targets: emit, quantize."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.config import Config
    from condensec.data import Samples
    from condensec.hardware.emission import Artifact
    from condensec.metrics import Metric

_MADE_UP = 192  # samples without --data: 128 to calibrate with, others to check on
_Folder = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="DIR", help="Folder for TARGET/model.onnx. Default: MODEL.emitted.",
        rich_help_panel=o.OUT, show_default=False,
    ),
]  # fmt: skip
_Precision = Annotated[
    str | None,
    typer.Option(
        "--quantize", metavar="SPEC", help="int8, fp16, or auto (the default): what is faster and as good.",
        rich_help_panel=o.HOW, show_default=False, autocompletion=o.OFFERS["--quantize"],
    ),
]  # fmt: skip


_Ort = Annotated[
    bool,
    typer.Option(
        "--ort", help="Beside it, model.ort and required_operators.config for minimal builds of onnxruntime.",
        rich_help_panel=o.OUT, show_default=False,
    ),
]  # fmt: skip


def emit(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    max_drop: o.MaxDrop = None,
    shape: o.Shape = None,
    input: o.Input = None,
    quantize: o.Quantize = None,
    calibrate: o.Calibrate = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _Folder = None,
    ort: _Ort = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Write a model as each target's runtime wants it, without cutting anything."""
    _emit(
        model, output, ort, target=target, data=data, val=val, metric=metric, max_drop=max_drop, shape=shape,
        input=input, quantize=quantize, calibrate=calibrate, seed=seed, jobs=jobs,
    )  # fmt: skip


def quantize(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    max_drop: o.MaxDrop = None,
    shape: o.Shape = None,
    input: o.Input = None,
    quantize: _Precision = "auto",
    calibrate: o.Calibrate = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _Folder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Write a model in lower precision for each target, where that is faster."""
    _emit(
        model, output, False, target=target, data=data, val=val, metric=metric, max_drop=max_drop,
        shape=shape, input=input, quantize=quantize, calibrate=calibrate, seed=seed, jobs=jobs,
    )  # fmt: skip


@dataclass(frozen=True)
class _Guard:
    """The metric of graphs on held-out samples, against that of the model given."""

    metric: Metric
    samples: Samples
    reference: Any
    value: float
    max_drop: float
    threads: int

    def judge(self, path: Path) -> float:
        from condensec.errors import DataError
        from condensec.runner import Session

        try:
            outputs = Session(path, threads=self.threads).run_samples(self.samples)
            return self.metric.value(outputs, self.samples, self.reference)
        except DataError:  # the model given passed this metric: a graph that doesn't is a bad one
            return float("nan")

    def accept(self, path: Path) -> bool:
        """NaN never passes."""
        return self.metric.points_lost(self.value, self.judge(path)) <= self.max_drop + 1e-6


def _emit(model: str, output: str | None, ort: bool, **options: Any) -> None:
    from condensec import io
    from condensec.config import check_output, configure
    from condensec.errors import TargetUnavailable
    from condensec.hardware import emit as emission
    from condensec.hardware.target import get

    folder = Path(output) if output is not None else Path(model).with_suffix(".emitted")
    settings: Config = configure(model=model, output=folder, **options)
    targets = [get(name) for name in settings.targets]
    for target in targets:
        if reason := target.available():
            raise TargetUnavailable(f"target '{target.name}' can't be served on this machine: {reason}")
    loaded = io.load(settings.model)
    given, guard = _samples(settings, io.signature(loaded))
    check_output(folder)
    guarded = guard is not None and (settings.quantize == "auto" or options["max_drop"] is not None)
    accept: Callable[[Path], bool] | None = guard.accept if guard is not None and guarded else None
    made = {}
    for target in targets:
        console.current().progress(f"writing for {target.name}")
        made[target.name] = emission.emit(
            settings.model, target, folder / target.name, precision=settings.quantize, samples=given,
            threads=settings.jobs, accept=accept if settings.quantize != "none" else None,
            calibrate=settings.calibrate, ort=ort,
        )  # fmt: skip
    _show(made, guard)


def _samples(settings: Config, signature: Any) -> tuple[Samples, _Guard | None]:
    """Samples to calibrate with, and the guard; no guard without data."""
    from condensec import data
    from condensec.metrics import resolve
    from condensec.probe import runnable_shapes
    from condensec.runner import Session

    values = settings.input_values
    if settings.data is None:
        shapes = runnable_shapes(settings.model, signature, settings.input_shapes, values)
        made = data.synthetic(signature, seed=settings.seed, count=_MADE_UP, shapes=shapes, values=values)
        return made, None
    given, held = (
        None if where is None else data.load(where, signature, seed=settings.seed, values=values)
        for where in (settings.data, settings.val)
    )
    assert given is not None
    splits = data.split(given, held, seed=settings.seed)
    metric = resolve(settings.metric, splits.validation, signature)
    reference = Session(settings.model, threads=settings.jobs).run_samples(splits.validation)
    value = metric.value(reference, splits.validation, reference)
    guard = _Guard(metric, splits.validation, reference, value, settings.max_drop, settings.jobs)
    return splits.calibration, guard


def _show(made: dict[str, Artifact], guard: _Guard | None) -> None:
    rows, documents = [], {}
    for name, one in made.items():
        rows.append((name, one.precision, f"{one.bytes:,}", one.verified, str(one.path)))
        notes, document = list(one.notes), one.to_json()
        if guard is not None:
            after = guard.judge(one.path)
            count = len(guard.samples)
            notes.append(f"{guard.metric.label}: {guard.value:.4g} -> {after:.4g} ({count} held-out samples)")
            document["metric"] = {
                "name": guard.metric.name,
                "before": guard.value,
                "after": after if math.isfinite(after) else None,
                "samples": count,
            }
        rows += [("", "", "", "", note) for note in [*notes, one.command] if note]
        documents[name] = document
    head = ("target", "precision", "bytes", "checked", "file and notes")
    console.current().result(table(head, rows), {"schema": 1, "targets": documents})
