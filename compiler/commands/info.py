"""Commands that only tell: report, targets, doctor, schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import offers
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.hardware.target import Target

_HOW = (
    "measured: run and timed on this machine; emulated: run under an emulator;\n"
    "parsed: accepted by the target's own parser; modelled: calculated, good for\n"
    "ordering and no promise"
)


def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder condensec wrote, or its report.json.", show_default=False
        ),
    ],
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the report as one HTML file.",
            rich_help_panel=o.OUT,
            show_default=False,
        ),
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Show the report of an earlier run."""
    from condensec.report import read_report
    from condensec.report.html import write_html
    from condensec.report.terminal import text

    path = Path(folder)
    found = read_report(path / "report.json" if path.is_dir() else path)
    if html is not None:
        write_html(found, Path(html))
    screen = console.current()
    screen.result("" if screen.json else text(found, color=console.color(sys.stdout)), found.to_json())


def targets(json: o.Json = False, quiet: o.Quiet = False, verbose: o.Verbose = 0) -> None:
    """List the targets, and how far each can be checked on this machine."""
    from condensec.hardware.target import all_targets, problems

    rows, documents = [], []
    for target in all_targets().values():
        reason = target.available()
        rows.append(
            (target.name, target.summary, _channels(target), _emits(target), reason or target.how_checked())
        )
        documents.append(
            {
                "name": target.name,
                "summary": target.summary,
                "runtime": target.runtime,
                "isa": target.isa,
                "precisions": list(target.precisions),
                "grid": target.grid,
                "dialect": target.dialect,
                "verified": target.verified,
                "how_verified": target.how_verified(),
                "how_checked": target.how_checked(),
                "alignment": {precision: dict(kinds) for precision, kinds in target.hard.items()},
                "file_format": target.file_format,
                "fixed_shapes": target.fixed_shapes,
                "sparsity": list(target.sparsity),
                "unavailable": reason,
            }
        )
    screen = console.current()
    screen.result(
        table(("target", "what it is", "channels", "emits", "checked here"), rows),
        {"schema": 1, "targets": documents},
    )
    for name, why in problems().items():
        screen.note(f"the plugin {name} couldn't be loaded: {why}")


def _channels(target: Target) -> str:
    """Which numbers of channels are fast: "grid 16; conv, depthwise 4, int8 depthwise 16"."""
    steps = {p: dict(target.hard.get(p, {})) for p in target.precisions}
    found: dict[str, list[str]] = {}
    for precision, kinds in steps.items():
        for kind, step in kinds.items():
            same = all(other.get(kind) == step for other in steps.values())
            alike = (
                len(kinds) > 1
                and len(set(kinds.values())) == 1
                and not any(all(other.get(k) == step for other in steps.values()) for k in kinds)
            )
            name = precision if alike else kind if same else f"{precision} {kind}"
            if step > 1 and name not in found.setdefault(str(step), []):
                found[str(step)].append(name)
    parts = [f"{', '.join(names)} {step}" for step, names in found.items() if names]
    return "; ".join([f"grid {target.grid}", *parts])


def _emits(target: Target) -> str:
    shapes = ("fixed shapes",) if target.fixed_shapes else ()
    return (
        f"{target.runtime} {target.file_format}: {', '.join((*target.precisions, *target.sparsity, *shapes))}"
    )


def doctor(
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Set up what is missing.", rich_help_panel="What", show_default=False),
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Say what is installed, what is missing (--fix sets it up), and what each target can check here."""
    from condensec.hardware.target import all_targets, problems
    from condensec.healing import environment

    screen = console.current()
    state = environment.fix(screen.note) if fix else environment.status()
    versions = _versions()
    missing = [name for name, version in versions.items() if version is None]
    document: dict[str, Any] = {
        "schema": 1,
        "condensec": versions.pop("condensec"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": versions,
        "isa": _isa(),
        "healing": {
            "ready": state.ready,
            "python": _text(state.python),
            "folder": _text(state.folder),
            "detail": state.detail,
        },
        "targets": [
            {
                "name": t.name,
                "verified": t.how_verified(),
                "how_checked": t.how_checked(),
                "unavailable": t.available(),
            }
            for t in all_targets().values()
        ],
    }
    rows = [("condensec", document["condensec"] or "?"), ("Python", document["python"])]
    rows += [(name, version or "missing: pip install condensec") for name, version in versions.items()]
    rows += [("instruction set", document["isa"]), ("healing", state.detail)]
    if not state.ready and not fix:
        rows.append(("", "'condensec doctor --fix' sets it up now"))
    checks = [
        (t["name"], f"missing: {t['unavailable']}" if t["unavailable"] else t["how_checked"])
        for t in document["targets"]
    ]
    rows += [(f"plugin {name}", f"can't be loaded: {why}") for name, why in problems().items()]
    text = f"{table(('', ''), rows)}\n\n{table(('target', 'checked here'), checks)}"
    screen.result(f"{text}\n\n{_HOW}", document)
    return 1 if missing else 0


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Without it, all are listed.",
            show_default=False,
            autocompletion=offers.schemas,
        ),
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Print the JSON schema of a document that --json prints, or list them."""
    from json import dumps

    from condensec import schemas

    if name is not None:
        found = schemas.load(schemas.COMMANDS.get(name, name))
        console.current().result(dumps(found, indent=1, ensure_ascii=False), found)
        return
    known = schemas.names()
    users = [", ".join(c for c, used in schemas.COMMANDS.items() if used == one) for one in known]
    rows = [(one, str(schemas.load(one)["title"]), user) for one, user in zip(known, users, strict=True)]
    document = {"schema": 1, "schemas": list(known), "commands": dict(schemas.COMMANDS)}
    console.current().result(table(("schema", "what it describes", "commands"), rows), document)


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in (
        "condensec",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnx-graphsurgeon",
        "numpy",
        "typer",
        "rich",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _isa() -> str:
    from condensec.hardware.isa import detect

    return str(detect())


def _text(value: object) -> str | None:
    return None if value is None else str(value)
