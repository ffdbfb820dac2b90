"""The commands, a few related ones in each file. Heavy imports stay inside the functions."""

from __future__ import annotations

from typing import Any

import typer

from condensec.commands.layout import PlainCommand

# command -> (module, function), in the order of the help
_COMMANDS = {
    "compress": ("line", "compress"),
    "inspect": ("steps", "inspect"),
    "analyze": ("line", "analyze"),
    "plan": ("steps", "plan"),
    "apply": ("steps", "apply"),
    "verify": ("steps", "verify"),
    "heal": ("graphs", "heal"),
    "quantize": ("deploy", "quantize"),
    "emit": ("deploy", "emit"),
    "bench": ("bench", "bench"),
    "profile": ("profile", "profile"),
    "report": ("info", "report"),
    "targets": ("info", "targets"),
    "doctor": ("info", "doctor"),
    "check": ("builds", "check"),
    "cache": ("builds", "cache"),
    "schema": ("info", "schema"),
    "cmake-dir": ("builds", "cmake_dir"),
    "completion": ("completion", "script"),
}


def build() -> typer.Typer:
    """The typer application with every command."""
    import importlib

    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for name, (module, function) in _COMMANDS.items():
        loaded: Any = importlib.import_module(f"condensec.commands.{module}")
        app.command(name, cls=PlainCommand, hidden=name == "compress")(getattr(loaded, function))
    return app
