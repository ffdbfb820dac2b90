"""Commands for single steps: inspect, plan, apply, verify."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table
from condensec.errors import ConfigError, PostconditionError

_PlanFile = Annotated[str, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)]
_ProofData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Samples to prove the cut with, as for compressing. Default: made-up inputs.",
        rich_help_panel=o.WHAT,
        show_default=False,
    ),
]
_OutputFile = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="File to write.", rich_help_panel=o.OUT, show_default=False
    ),
]


def inspect(
    model: o.Model,
    shape: o.Shape = None,
    input: o.Input = None,
    freeze: o.Freeze = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Show what is in a model, what could be cut, and what can't be and why."""
    from condensec import api

    found = api.inspect(model, shapes=sample_shapes(model, shape, input), freeze=_freeze(freeze))
    facts = [
        ("inputs", ", ".join(found.inputs.values())),
        ("outputs", ", ".join(found.outputs.values())),
        ("opset", str(found.opset)),
        ("nodes", f"{found.nodes:,}"),
        ("parameters", f"{found.params:,}"),
        ("MACs", f"{found.macs:,} at {_listed(found.shapes)}"),
        ("reachable", f"{100 * found.reachable:.1f}% of the MACs"),
    ]
    parts = [table(("", ""), facts)]
    groups = [
        (g.id, g.kind, str(g.size), "exact" if g.exact else "reduced", _few(g.tensors)) for g in found.groups
    ]
    if groups:
        parts.append(table(("group", "kind", "units", "cut is", "weights"), groups))
    frozen = [(f.id, str(f.size), f.reason) for f in found.frozen]
    if frozen:
        parts.append(table(("frozen", "units", "why"), frozen))
    console.current().result("\n\n".join(parts), found.to_json())


def plan(
    model: o.Model,
    keep: o.Keep = None,
    data: o.Data = None,
    shape: o.Shape = None,
    input: o.Input = None,
    criterion: o.Criterion = None,
    align: o.Align = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _OutputFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Plan a uniform cut: the same share of every group (--keep, default 0.5), by importance."""
    from condensec import api
    from condensec.config import configure
    from condensec.report import write_text

    checked = configure(
        model=model,
        keep=0.5 if keep is None else keep,
        data=data,
        input=input,
        criterion=criterion,
        align=align,
        freeze=freeze,
        seed=seed,
        jobs=jobs,
    )
    made = api.plan(
        model,
        keep=checked.keep or 0.5,
        shapes=sample_shapes(model, shape, input),
        data=checked.data,
        input=dict(checked.inputs),
        criterion=criterion,
        align=checked.align,
        freeze=checked.freeze,
        seed=checked.seed,
        jobs=checked.jobs,
    )
    if output is not None:
        write_text(Path(output), made.dumps())
    rows = [(g.id, g.kind, str(g.size), str(len(g.kept))) for g in made.groups]
    console.current().result(table(("group", "kind", "units", "kept"), rows), made.to_json())


def apply(
    model: o.Model,
    plan: _PlanFile,
    data: _ProofData = None,
    output: _OutputFile = None,
    shape: o.Shape = None,
    input: o.Input = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Cut a model as a plan says, prove the cut, and write it (default: MODEL.pruned.onnx)."""
    from condensec import api

    path = Path(output) if output is not None else Path(model).with_suffix(".pruned.onnx")
    refuse_overwriting(path, model)
    written = api.apply(model, plan, path, shapes=shapes_of(shape), data=data, inputs=values_of(input))
    document = {
        "schema": 1,
        "file": str(written),
        "bytes": written.stat().st_size,
        "before": Path(model).stat().st_size,
    }
    console.current().result(
        f"{written}: {document['bytes']:,} bytes, {document['before']:,} before; the cut is proven", document
    )


def verify(
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help="The uncut ONNX file.", show_default=False)
    ],
    plan: _PlanFile,
    pruned: Annotated[
        str, typer.Argument(metavar="PRUNED", help="The cut ONNX file, before healing.", show_default=False)
    ],
    data: _ProofData = None,
    shape: o.Shape = None,
    input: o.Input = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Prove a cut: PRUNED computes what ORIGINAL does with the plan's slices zeroed."""
    from condensec import api

    proof = api.verify(original, plan, pruned, shapes=shapes_of(shape), data=data, inputs=values_of(input))
    document: dict[str, Any] = {"schema": 1, "passed": proof.passed, **vars(proof)}
    if not proof.passed:
        raise PostconditionError(
            f"{pruned} isn't the cut that {plan} says: error {proof.max_abs_error:.3g} on outputs up to"
            f" {proof.scale:.3g}"
        )
    text = f"proven: largest difference {proof.max_abs_error:.3g} on outputs up to {proof.scale:.3g}"
    console.current().result(text, document)


def refuse_overwriting(output: Path, *inputs: str | Path) -> None:
    """A result never replaces the model it was made from.

    Raises:
        ConfigError: it would.
    """
    for path in inputs:
        if os.path.realpath(output) == os.path.realpath(path):
            raise ConfigError(f"writing {output} would overwrite the model", hint="choose another --output")


def shapes_of(given: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Shapes by input name, from ``--shape`` as given."""
    from condensec.specs import parse_shape

    return dict(parse_shape(text) for text in given) if given else None


def values_of(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Values by input name, from ``--input`` as given."""
    from condensec.specs import input_value, parse_input

    pairs = [parse_input(text) for text in given or ()]
    return {name: input_value(name, text) for name, text in pairs} or None


def sample_shapes(
    model: str, given: Sequence[str] | None, values: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes at which a model with open dims runs: as ``--shape`` says, otherwise tried out."""
    from condensec import io
    from condensec.probe import runnable_shapes

    path = Path(model)
    return runnable_shapes(path, io.signature(io.load(path)), shapes_of(given), values_of(values))


def _freeze(given: Sequence[str] | None) -> str | None:
    from condensec.config import configure

    return configure(model="-", freeze=list(given)).freeze if given else None


def _listed(shapes: Any) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, dims)) or 'one number'}" for name, dims in shapes.items())


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
