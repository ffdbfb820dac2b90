"""How help looks: plain text in sections, like a compiler's. No boxes, no markup, no extra imports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

_ROOT_USAGE = ("MODEL.onnx --target TARGET [options]", "COMMAND [options]")
_EXIT_CODES = (
    ("0", "done, budget met and guard kept"),
    ("1", "internal error"),
    ("2", "bad usage or bad input"),
    ("3", "budget not reachable within the guard; the best safe model is written"),
    ("4", "target not available"),
    ("130", "interrupted; --resume goes on"),
)
_NAMES = 30  # widest column of names
_LAST = "Help"  # the section that comes last
_EXAMPLES: dict[str, tuple[str, ...]] = {
    "compress": (
        "condensec model.onnx --target host --data samples.npz --budget 'latency<=0.5x'",
        "condensec model.onnx --target mobile-cpu --target host --max-drop 0.5",
        "condensec model.onnx --budget 'params<=0.4x' --dry-run",
    ),
    "inspect": (
        "condensec inspect model.onnx",
        "condensec inspect model.onnx --shape image=1x3x224x224 --json",
    ),
    "analyze": (
        "condensec analyze model.onnx --data samples.npz -o map",
        "condensec analyze model.onnx --criterion fisher --data samples.npz",
    ),
    "plan": (
        "condensec plan model.onnx --keep 0.5 -o plan.json",
        "condensec plan model.onnx --keep 0.75 --criterion obs --data samples.npz -o plan.json",
    ),
    "apply": (
        "condensec apply model.onnx plan.json -o small.onnx",
        "condensec apply model.onnx plan.json --data samples.npz --input sr=16000",
    ),
    "verify": ("condensec verify model.onnx plan.json small.onnx",),
    "heal": (
        "condensec heal small.onnx --teacher model.onnx --data samples.npz --heal minutes=10",
        "condensec heal small.onnx --teacher model.onnx --data images.npz --augment flip,crop=4",
    ),
    "quantize": ("condensec quantize model.onnx --target host --data samples.npz",),
    "emit": ("condensec emit model.onnx --target nvidia-t4 --target mobile-cpu -o deploy",),
    "bench": (
        "condensec bench model.onnx",
        "condensec bench model.onnx model.condensed/host/model.onnx --shape x=1x3x224x224",
    ),
    "report": (
        "condensec report model.condensed",
        "condensec report model.condensed --html report.html",
    ),
    "targets": ("condensec targets",),
    "doctor": ("condensec doctor", "condensec doctor --fix"),
    "profile": ("condensec profile model.onnx --target host",),
    "check": ("condensec check model.onnx --budget 'size<=4MB' --against old.onnx --max-drop 0.5",),
    "cache": ("condensec cache", "condensec cache --clear"),
    "schema": ("condensec schema", "condensec schema report"),
    "cmake-dir": ("condensec cmake-dir",),
    "completion": (
        "condensec completion bash > ~/.local/share/bash-completion/completions/condensec",
        "condensec completion zsh > ~/.zfunc/_condensec",
        "condensec completion fish > ~/.config/fish/completions/condensec.fish",
    ),
}


class PlainCommand(TyperCommand):
    """A command whose options are shown in sections (their ``rich_help_panel``)."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """The usage line; compressing has no command word."""
        if ctx.info_name != "compress":
            super().format_usage(ctx, formatter)
            return
        for number, usage in enumerate(_ROOT_USAGE):
            formatter.write_usage("condensec", usage, None if number == 0 else "       ")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments by their names, the optional ones in brackets."""
        names = [
            _argument_name(param) if param.required else f"[{_argument_name(param)}]"
            for param in self.get_params(ctx)
            if param.param_type_name == "argument"
        ]
        return [*names, "[options]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """All options, section by section, in the order of the declaration."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                record = (_argument_name(param), str(getattr(param, "help", "")))
            default = "Arguments" if param.param_type_name == "argument" else _LAST
            title = getattr(param, "rich_help_panel", None) or default
            sections.setdefault(str(title), []).append(record)
        sections[_LAST] = sections.pop(_LAST)
        for title, rows in sections.items():
            with formatter.section(title):
                _write(formatter, rows)
        if ctx.info_name == "compress":
            self._format_rest(ctx, formatter)
        if ctx.info_name in _EXAMPLES:
            with formatter.section("Examples"):
                for example in _EXAMPLES[ctx.info_name]:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

    def _format_rest(self, ctx: Any, formatter: Any) -> None:
        """The other commands and the exit codes."""
        commands = ctx.parent.command.commands if ctx.parent is not None else {}
        rows = [
            (name, " ".join((command.help or "").split()))
            for name, command in commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands (condensec COMMAND --help)"):
            _write(formatter, rows)
        with formatter.section("Exit codes"):
            _write(formatter, _EXIT_CODES)


def _write(formatter: Any, rows: Sequence[tuple[str, str]]) -> None:
    """Two columns; names of options aren't broken at their hyphens."""
    first = min(max(len(name) for name, _ in rows), _NAMES)
    indent = formatter.current_indent
    room = max(20, formatter.width - indent - first - 2)
    for name, text in rows:
        lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        head = name if len(name) <= first else f"{name}\n{'':{indent + first}}"
        formatter.write(f"{'':{indent}}{head:{first}}  {lines[0]}".rstrip() + "\n")
        for line in lines[1:]:
            formatter.write(f"{'':{indent + first + 2}}{line}\n")


def _argument_name(param: Any) -> str:
    return str(param.metavar or param.name.upper())
