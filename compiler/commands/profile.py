"""Where the time goes: profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.hardware.profile import Profile
    from condensec.hardware.target import Target

_SHOWN = 15
_TableFile = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Write the table as JSON; --table takes it.",
        rich_help_panel=o.OUT, show_default=False,
    ),
]  # fmt: skip
_Script = Annotated[
    str | None,
    typer.Option(
        "--script", metavar="FILE", rich_help_panel=o.OUT, show_default=False,
        help="Instead: write a script that makes the table on the device (needs numpy and onnxruntime).",
    ),
]  # fmt: skip
_Target = Annotated[
    str,
    typer.Option("--target", metavar="NAME", help="Where it runs. Default: host.", rich_help_panel=o.WHAT,
                 show_default=False),
]  # fmt: skip


def profile(
    model: o.Model,
    target: _Target = "host",
    shape: o.Shape = None,
    table: o.Table = None,
    script: _Script = None,
    output: _TableFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Build a target's latency table for a model: each node alone, at its own and smaller widths."""
    from condensec.commands.steps import refuse_overwriting, sample_shapes
    from condensec.hardware import profile as timing
    from condensec.stages.job import targets_of

    found = targets_of((target,), tuple(table or ()))[0]
    path = Path(model)
    shapes = sample_shapes(model, shape)
    screen = console.current()
    for file in filter(None, (script, output)):
        refuse_overwriting(Path(file), model)
    if script is not None:
        count = timing.script(found, path, Path(script), shapes)
        run = f"python3 {Path(script).name} {path.name} -o table.json"
        line = f"{script}: {count} nodes; run it on the device: {run}"
        screen.result(line, {"schema": 1, "script": script, "nodes": count, "target": found.name})
        return
    screen.progress(f"timing the nodes for {found.name}")
    made = timing.profile(found, path, shapes)
    if output is not None:
        _write(made, Path(output))
    screen.result(_text(made, found), made.to_json())
    if output is not None:
        screen.note(f"written to {output}")


def _write(made: Profile, path: Path) -> None:
    import json

    from condensec.errors import ConfigError

    try:
        path.write_text(json.dumps(made.to_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror or error}") from error


def _text(made: Profile, target: Target) -> str:
    rows = [
        (node.name or "(before the first)", node.op, f"{1e3 * node.seconds:.3f}", f"{100 * node.share:.1f}%")
        for node in made.nodes[:_SHOWN]
    ]
    more = len(made.nodes) - _SHOWN
    if more > 0:
        rest = sum(node.seconds for node in made.nodes[_SHOWN:])
        rows.append(
            (f"{more} more", "", f"{1e3 * rest:.3f}", f"{100 * rest / max(made.seconds, 1e-30):.1f}%")
        )
    entries = len(made.table.points.known)
    whole = f"{1e3 * made.seconds:.3f} ms on {target.name} ({made.verified}), {entries} table entries"
    return f"{table(('node, with what follows it', 'operator', 'ms', 'share'), rows)}\n\n{whole}"
