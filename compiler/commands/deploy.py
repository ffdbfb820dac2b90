"""Commands that write graphs for targets: emit, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.config import Config
    from condensec.hardware.emission import Artifact

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
        rich_help_panel=o.HOW, show_default=False,
    ),
]  # fmt: skip


def emit(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    shape: o.Shape = None,
    input: o.Input = None,
    quantize: o.Quantize = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _Folder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Write a model as each target's runtime wants it, without cutting anything."""
    _emit(
        model,
        output,
        target=target,
        data=data,
        shape=shape,
        input=input,
        quantize=quantize,
        seed=seed,
        jobs=jobs,
    )


def quantize(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    shape: o.Shape = None,
    input: o.Input = None,
    quantize: _Precision = "auto",
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _Folder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Write a model in lower precision for each target, where that is faster."""
    _emit(
        model,
        output,
        target=target,
        data=data,
        shape=shape,
        input=input,
        quantize=quantize,
        seed=seed,
        jobs=jobs,
    )


def _emit(model: str, output: str | None, **options: Any) -> None:
    from condensec import data as samples
    from condensec import io
    from condensec.config import check_output, configure
    from condensec.errors import TargetUnavailable
    from condensec.hardware.target import get
    from condensec.probe import runnable_shapes

    folder = Path(output) if output is not None else Path(model).with_suffix(".emitted")
    settings: Config = configure(model=model, output=folder, **options)
    targets = [get(name) for name in settings.targets]
    for target in targets:
        if reason := target.available():
            raise TargetUnavailable(f"target '{target.name}' can't be served on this machine: {reason}")
    loaded = io.load(settings.model)
    signature = io.signature(loaded)
    if settings.data is not None:
        given = samples.load(settings.data, signature, seed=settings.seed, values=settings.input_values)
        given = samples.split(given, seed=settings.seed).calibration
    else:
        values = settings.input_values
        shapes = runnable_shapes(settings.model, signature, settings.input_shapes, values)
        given = samples.synthetic(signature, seed=settings.seed, shapes=shapes, values=values)
    check_output(folder)
    from condensec.hardware import emit as emission

    made = {}
    for target in targets:
        console.current().progress(f"writing for {target.name}")
        made[target.name] = emission.emit(
            settings.model, target, folder / target.name, precision=settings.quantize, samples=given,
            threads=settings.jobs,
        )  # fmt: skip
    _show(made)


def _show(made: dict[str, Artifact]) -> None:
    rows, documents = [], {}
    for name, one in made.items():
        rows.append((name, one.precision, f"{one.bytes:,}", one.verified, str(one.path)))
        rows += [("", "", "", "", note) for note in one.notes]
        documents[name] = one.to_json()
    head = ("target", "precision", "bytes", "checked", "file and notes")
    console.current().result(table(head, rows), {"schema": 1, "targets": documents})
