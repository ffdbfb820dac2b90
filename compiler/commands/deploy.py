"""Commands that write graphs for targets: emit, quantize."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.hardware.emission import Artifact
    from condensec.stages.deploy import Guard

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


def _emit(model: str, output: str | None, ort: bool, **options: Any) -> None:
    from condensec.config import configure
    from condensec.stages.deploy import emitted

    folder = Path(output) if output is not None else Path(model).with_suffix(".emitted")
    settings = configure(model=model, output=folder, **options)
    made, guard = emitted(
        settings,
        folder,
        guarded=options["max_drop"] is not None,
        ort=ort,
        tell=lambda target: console.current().progress(f"writing for {target}"),
    )
    _show(made, guard)


def _show(made: dict[str, Artifact], guard: Guard | None) -> None:
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
