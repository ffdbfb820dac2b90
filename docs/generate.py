"""Makes the reference pages from the code while the site is built (a hook of mkdocs).

`reference/cli.md` from the commands' own declarations, `reference/python.md` from signatures and docstrings,
`reference/schemas.md` and the schemas themselves from `condensec.schemas`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

PAGES = ("reference/cli.md", "reference/python.md", "reference/schemas.md")


def cli() -> str:
    """Every command with its arguments and options, as its help has them."""
    import typer.main

    from condensec.commands import build
    from condensec.commands.layout import _EXIT_CODES

    command: Any = typer.main.get_command(build())
    parts = [
        "# Commands",
        "Made from the code. Without a command's name, `compress` is meant.",
        "| exit code | |\n|---|---|",
    ]
    parts[-1] += "".join(f"\n| {code} | {text} |" for code, text in _EXIT_CODES)
    for name, one in command.commands.items():
        context = one.make_context(name, [], resilient_parsing=True)
        usage = (
            " ".join(one.collect_usage_pieces(context))
            if name != "compress"
            else "MODEL --target TARGET [options]"
        )
        shown = "condensec" if name == "compress" else f"condensec {name}"
        parts += [f"## {name}", (one.help or "").strip(), f"    {shown} {usage}", _options(one, context)]
    return "\n\n".join(parts) + "\n"


def _options(command: Any, context: Any) -> str:
    rows = []
    for param in command.get_params(context):
        if param.param_type_name == "argument":
            rows.append((f"`{param.metavar or param.name.upper()}`", param.help or ""))
        elif (record := param.get_help_record(context)) is not None and param.name != "help":
            rows.append((f"`{record[0]}`", record[1]))
    return "| | |\n|---|---|" + "".join(f"\n| {flag} | {_cell(text)} |" for flag, text in rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def python() -> str:
    """Functions of `condensec.api`, what they return, and the errors."""
    from condensec import api, errors
    from condensec.builds.gate import Judgement, Verdict
    from condensec.config import Config
    from condensec.hardware.bench import Comparison, Measurement
    from condensec.hardware.emission import Artifact
    from condensec.healing import HealResult
    from condensec.plan import GroupCut, Plan
    from condensec.report import Figures, Report, TargetResult
    from condensec.verify import Proof

    parts = [
        "# Python",
        "Made from the code. The functions are in `condensec.api`; most of them in `condensec`, too.",
    ]
    for name, function in vars(api).items():
        if inspect.isfunction(function) and function.__module__ == api.__name__ and not name.startswith("_"):
            parts += [f"## {name}", _signature(name, function), _doc(function)]
    parts.append("## What they return")
    kinds = (Report, Figures, TargetResult, Plan, GroupCut, api.Inspection, Proof, HealResult, Artifact,
             Measurement, Comparison, Judgement, Verdict, Config)  # fmt: skip
    for kind in kinds:
        fields = ", ".join(field.name for field in dataclasses.fields(kind))
        parts += [f"### {kind.__name__}", _doc(kind), f"Fields: `{fields}`"]
    parts += ["## Errors", "```text\n" + inspect.cleandoc(errors.__doc__ or "") + "\n```"]
    return "\n\n".join(parts) + "\n"


def _signature(name: str, function: Any) -> str:
    made = inspect.signature(function)
    text = f"{name}{made}".replace("'", "")
    if len(text) > 100:
        inner = ",\n    ".join(str(p).replace("'", "") for p in _starred(made))
        text = f"{name}(\n    {inner},\n) -> {made.return_annotation}".replace("'", "")
    return f"```python\n{text}\n```"


def _starred(made: inspect.Signature) -> list[Any]:
    found: list[Any] = []
    for parameter in made.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(parameter)
    return found


def _doc(thing: Any) -> str:
    """A Google docstring as Markdown: sections in bold, entries as a list."""
    lines: list[str] = []
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises):", line)
        entry = re.match(r"    (\w[\w, ]*): (.*)", line)
        if section:
            lines += ["", f"**{section[1]}**", ""]
        elif entry:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(
                f"  {line.strip()}" if line.startswith("    ") and lines[-1:] != [""] else line.strip()
            )
    return re.sub(r"``([^`]+)``", r"`\1`", "\n".join(lines))


def schemas() -> str:
    """The list of schemas."""
    from condensec import schemas as known

    rows = []
    for name in known.names():
        users = ", ".join(f"`{command}`" for command, used in known.COMMANDS.items() if used == name)
        rows.append(f"| [{name}](schemas/{name}.json) | {known.load(name)['title']} | {users} |")
    head = "# JSON schemas\n\nMade from the code; `condensec schema NAME` prints one.\n\n"
    return head + "| schema | what it describes | printed by |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Mkdocs calls this with the files it found; the made ones are added."""
    from mkdocs.structure.files import File

    from condensec import schemas as known

    made = dict(zip(PAGES, (cli(), python(), schemas()), strict=True))
    for name in known.names():
        made[f"reference/schemas/{name}.json"] = (
            json.dumps(known.load(name), indent=1, ensure_ascii=False) + "\n"
        )
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files
