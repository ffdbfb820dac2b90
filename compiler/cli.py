"""The command line: finds the command, and turns every end into one line and an exit code.

    0 done   1 internal error   2 bad usage or bad input   3 budget not reachable within the guard
    4 target not available   130 interrupted, resumable

A first argument that is no command is the model: ``condensec MODEL.onnx --target TARGET``. Nothing heavy is
imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from condensec import __version__, console
from condensec.errors import CondensecError, ConfigError, Interrupted

if TYPE_CHECKING:
    import typer

_HELP = ("--help", "-h")
_ROOT_OPTIONS = ("--install-completion", "--show-completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    screen = console.start(given)
    try:
        with _signals(screen):
            return _run(given)
    except KeyboardInterrupt:
        return screen.interrupted()
    except CondensecError as error:
        # native code turns Ctrl-C into errors of its own
        lost = isinstance(error, Interrupted) and not screen.resume_hint
        asked = screen.stopping and not isinstance(error, Interrupted)
        return screen.interrupted() if asked or lost else screen.fail(error)
    except MemoryError:
        return screen.fail(CondensecError("out of memory", hint="use less --data, or fewer --jobs"))
    except SystemExit as end:  # from completion scripts
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        return _other(screen, error)


def _run(given: list[str]) -> int:
    from typer.main import get_command

    from condensec.commands import build, completion

    if given[:1] in (["--version"], ["-V"]):
        console.current().result(f"condensec {__version__}", {"version": __version__})
        return 0
    app = build()
    command: Any = get_command(app)
    if completion.VARIABLE in os.environ:  # the shell asks
        completion.routed([name for name in command.commands if name != "compress"])
        arguments = given
    else:
        arguments = _route(given, command)
    result = command.main(arguments, prog_name="condensec", standalone_mode=False)
    if result == Interrupted.exit_code:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _route(given: list[str], command: Any) -> list[str]:
    """The arguments with the command in front; compressing is what is done if none is named."""
    if not given:
        raise ConfigError("no model given", hint="condensec MODEL.onnx --target TARGET, or condensec --help")
    first = given[0]
    known = [name for name in command.commands if name != "compress"]
    if first in command.commands or first.split("=")[0] in _ROOT_OPTIONS:
        return given
    if first in _HELP:
        return ["compress", "--help"]
    if not first.startswith("-") and not os.path.lexists(first) and "." not in first:
        near = difflib.get_close_matches(first, known, 1, 0.7)
        if near or len(given) == 1 or not given[1].startswith("-"):
            hint = f"did you mean '{near[0]}'?" if near else f"commands: {', '.join(known)}"
            raise ConfigError(f"'{first}' is neither a file nor a command", hint=hint)
    return ["compress", *given]


def _other(screen: console.Console, error: Exception) -> int:
    """Wrong usage (typer's errors) is code 2, an unusable file or full disk code 1, the rest our fault."""
    import typer

    if screen.stopping or isinstance(error, typer.Abort):
        return screen.interrupted()
    usage = typer.BadParameter.__mro__[2]  # ClickException, wherever typer has its click from
    if isinstance(error, usage):
        message = console.one_line(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        return screen.fail(ConfigError(message[:1].lower() + message[1:], hint=_help_hint(error)))
    if isinstance(error, OSError) and error.filename is not None:
        return screen.fail(CondensecError(f"{error.filename}: {error.strerror}"))
    return screen.crash(error)


def _help_hint(error: Exception) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "condensec"
    return f"see {path.removesuffix(' compress')} --help"


@contextlib.contextmanager
def _signals(screen: console.Console) -> Iterator[None]:
    """SIGTERM interrupts like Ctrl-C while the block runs; both are remembered."""

    def stop(number: int, frame: FrameType | None) -> None:
        screen.stopping = True
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
