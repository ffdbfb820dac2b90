"""The error tree.

    CondensecError
    ├── ConfigError            a flag, a budget, an unknown target or metric      exit code 2
    ├── ModelError             the model file can't be read or isn't supported    exit code 2
    ├── DataError              samples that don't fit the model                   exit code 2
    ├── PreconditionError      a step was given something it can't work on        exit code 1
    ├── PostconditionError     a step's result failed its own proof               exit code 1
    ├── PassError              a step failed; names it and the steps before it    exit code 1
    ├── HealError              the healing worker failed; costs that heal only    exit code 1
    ├── TargetUnavailable      the target can't be served on this machine         exit code 4
    └── Interrupted            stopped at a safe point; can be resumed            exit code 130

Only the command line turns these into exit codes and one-line messages.
"""

from __future__ import annotations


class CondensecError(Exception):
    """Base of every error condensec raises on purpose.

    Args:
        message: one sentence that names the file, node or array.
        node: the graph node or tensor concerned, if there is one.
        hint: what the user can do about it.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, node: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigError(CondensecError):
    """A setting that can't be: a bad flag, budget, target, metric or output folder."""

    exit_code = 2
    code = "config"


class ModelError(CondensecError):
    """A model file that can't be read, or uses something condensec doesn't know."""

    exit_code = 2
    code = "model"


class DataError(CondensecError):
    """Samples whose names, shapes, dtypes or values don't fit the model."""

    exit_code = 2
    code = "data"


class PreconditionError(CondensecError):
    """A step was given something it can't work on."""

    code = "precondition"


class PostconditionError(CondensecError):
    """A step's result failed its own proof; nothing was written under the final name."""

    code = "postcondition"


class PassError(CondensecError):
    """A step failed.

    Args:
        step: name of the failed step.
        done: names of the steps already done.
        cause: what went wrong.
    """

    code = "pass"

    def __init__(self, step: str, done: tuple[str, ...], cause: BaseException) -> None:
        after = f" (after {', '.join(done)})" if done else ""
        super().__init__(f"step '{step}' failed{after}: {cause or type(cause).__name__}")
        self.step = step
        self.done = done


class HealError(CondensecError):
    """The healing worker failed. The model as it was before healing stays."""

    code = "heal"


class TargetUnavailable(CondensecError):
    """The target can't be served on this machine."""

    exit_code = 4
    code = "target"


class Interrupted(CondensecError):
    """Stopped at a safe point. Run the same command with --resume to go on."""

    exit_code = 130
    code = "interrupted"
