"""What the program says: results on stdout, progress, errors and log on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from condensec.errors import CondensecError, Interrupted

_LOG = "condensec.console"  # name of the log handler
RESUME_HINT = "run the same command with --resume to go on"


@dataclass
class Console:
    """How to speak, for one run of the program.

    Attributes:
        json: stdout carries one JSON document and nothing else.
        quiet: no progress.
        verbose: 1 = log of what is done, 2 = everything, and tracebacks.
        stopping: Ctrl-C or SIGTERM came.
        resume_hint: how what runs can go on after an interruption; empty = not at all.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    stopping: bool = False
    resume_hint: str = ""

    def result(self, text: str, document: Any = None) -> None:
        """The command's result: the document under ``--json``, otherwise the text."""
        if self.json and document is not None:
            text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        _write(sys.stdout, text.rstrip("\n") + "\n")

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        if not self.quiet:
            _write(sys.stderr, f"condensec: {text}\n")

    def progress(self, text: str) -> None:
        """A line of progress, on stderr."""
        if not self.quiet:
            _write(sys.stderr, f"{text}\n")

    def fail(self, error: CondensecError) -> int:
        """Report an error and return its exit code."""
        message = one_line(error.message if error.hint else str(error))
        hint = one_line(error.hint) if error.hint else None
        word = "interrupted" if isinstance(error, Interrupted) else "error"
        if self.json:
            document = {"code": error.code, "message": message, "node": error.node, "hint": hint}
            self.result("", {"error": document})
        line = f"{message}; {hint}" if hint else message
        if not (word == "interrupted" and line.startswith(word)):
            line = f"{word}: {line}"
        _write(sys.stderr, f"condensec: {line}\n")
        self._trace(error)
        return error.exit_code

    def interrupted(self) -> int:
        """Report an interruption; exit code 130."""
        return self.fail(Interrupted("interrupted", hint=self.resume_hint or "nothing was written"))

    def crash(self, error: BaseException) -> int:
        """Report a fault of the program itself; exit code 1."""
        message = f"internal error: {type(error).__name__}: {one_line(str(error))}".rstrip(": ")
        if self.json:
            hint = "run again with -vv for the traceback, and report it"
            self.result("", {"error": {"code": "internal", "message": message, "node": None, "hint": hint}})
        more = "" if self.verbose > 1 else "; -vv shows where"
        _write(sys.stderr, f"condensec: {message}{more}\n")
        self._trace(error)
        return 1

    def _trace(self, error: BaseException) -> None:
        if self.verbose > 1:
            import traceback

            _write(sys.stderr, "".join(traceback.format_exception(error)))

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal that can redraw lines."""
        return not self.quiet and sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


_current = Console()


def current() -> Console:
    """The console of this run."""
    return _current


def start(arguments: Sequence[str]) -> Console:
    """A new console; reads just enough of the command line to report errors in the rest of it."""
    global _current
    verbose = sum(len(a) - 1 for a in arguments if a.startswith("-v") and set(a[1:]) == {"v"})
    _current = Console(
        json="--json" in arguments,
        quiet="-q" in arguments or "--quiet" in arguments,
        verbose=verbose + arguments.count("--verbose"),
    )
    _log(_current.verbose)
    return _current


def _log(verbose: int) -> None:
    """Show condensec's own log on stderr: nothing, what is done (-v), or everything (-vv)."""
    if not verbose and "logging" not in sys.modules:  # importing it takes a tenth of --help's time
        return
    import logging

    logger = logging.getLogger("condensec")
    for handler in [h for h in logger.handlers if h.name == _LOG]:
        logger.removeHandler(handler)
    logger.setLevel((logging.NOTSET, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if verbose:
        shown = logging.StreamHandler(_Stderr())
        shown.set_name(_LOG)
        shown.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(shown)


class _Stderr:
    """The stderr of the moment, as a stream."""

    def write(self, text: str) -> None:
        """Write text."""
        _write(sys.stderr, text)

    def flush(self) -> None:
        """Everything is flushed already."""


def one_line(text: str) -> str:
    """Text with all white space as single blanks."""
    return " ".join(text.split())


def color(stream: TextIO) -> bool:
    """Whether to write colours: to a terminal, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"


def _write(stream: TextIO, text: str) -> None:
    """Write and flush; a reader that has gone away is no error."""
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Send the rest nowhere, so that the interpreter's last flush doesn't fail either."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no real file, as in tests
        pass
