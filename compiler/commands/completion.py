"""What the shell offers when Tab is pressed, and the command that sets it up.

Names only: files are completed by the shell itself wherever nothing is offered.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Annotated

import typer

from condensec import console
from condensec.commands import offers
from condensec.commands import options as o
from condensec.errors import ConfigError

VARIABLE = "_CONDENSEC_COMPLETE"  # set by the shell when it asks
SHELLS = ("bash", "zsh", "fish")
_WORDS = "_TYPER_COMPLETE_ARGS"  # the line so far, from zsh and fish


def routed(commands: Collection[str]) -> None:
    """Put the word ``compress`` into the line that the shell asks about, where the user leaves it out.

    Args:
        commands: names of all commands.
    """
    if "COMP_WORDS" in os.environ:
        words = os.environ["COMP_WORDS"].split()
        at = int(os.environ.get("COMP_CWORD", "0") or 0)
        if _compressing(words[1:], at == 1, commands):
            os.environ["COMP_WORDS"] = " ".join([*words[:1], "compress", *words[1:]])
            os.environ["COMP_CWORD"] = str(at + 1)
    elif _WORDS in os.environ:
        line = os.environ[_WORDS]
        first, _, rest = line.lstrip().partition(" ")
        words = rest.split()
        if _compressing(words, len(words) <= 1 and not rest.endswith(" "), commands):
            os.environ[_WORDS] = f"{first} compress {rest}"


def _compressing(words: list[str], first: bool, commands: Collection[str]) -> bool:
    """Whether words belong to compressing; ``first``: the first one is still being written."""
    if not words:
        return False
    if first:
        return words[0].startswith("-")
    return words[0] not in commands


def script(
    shell: Annotated[
        str,
        typer.Argument(
            metavar="SHELL", help="bash, zsh or fish.", show_default=False, autocompletion=offers.shells
        ),
    ],
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Print the script that lets a shell complete commands, options, targets and criteria."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise ConfigError(f"no completion for the shell '{shell}'", hint=f"known: {', '.join(SHELLS)}")
    text = get_completion_script(prog_name="condensec", complete_var=VARIABLE, shell=shell)
    console.current().result(text, {"schema": 1, "shell": shell, "script": text})
