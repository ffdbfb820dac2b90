"""How help looks: plain text in sections, like a compiler's. No boxes, no markup, no extra imports."""

from __future__ import annotations

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
_LAST = "Help"  # the section that comes last
_EXAMPLES = (
    "condensec model.onnx --target host --data samples.npz --budget 'latency<=0.5x'",
    "condensec model.onnx --target mobile-cpu --target host --max-drop 0.5",
)


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
                formatter.write_dl(rows)
        if ctx.info_name == "compress":
            self._format_rest(ctx, formatter)

    def _format_rest(self, ctx: Any, formatter: Any) -> None:
        """The other commands, the exit codes, and two examples."""
        commands = ctx.parent.command.commands if ctx.parent is not None else {}
        rows = [
            (name, " ".join((command.help or "").split()))
            for name, command in commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands (condensec COMMAND --help)"):
            formatter.write_dl(rows)
        with formatter.section("Exit codes"):
            formatter.write_dl(list(_EXIT_CODES))
        with formatter.section("Examples"):
            for example in _EXAMPLES:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _argument_name(param: Any) -> str:
    return str(param.metavar or param.name.upper())
