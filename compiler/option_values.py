"""Values of single options, checked: each function takes what a flag, a file or Python gave.

All raise `ConfigError`, which names the flag and says what is allowed.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from condensec.errors import ConfigError
from condensec.specs import parse_input, parse_shape


def path(flag: str) -> Callable[[Any], Path]:
    """A path that isn't empty."""

    def parse(value: Any) -> Path:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ConfigError(f"{flag} can't be {value!r}", hint="give a path")
        return Path(value)

    return parse


def number(flag: str, allowed: str, holds: Callable[[float], bool]) -> Callable[[Any], float]:
    """A number that holds; anything else is told with what is allowed."""

    def parse(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number) or not holds(number):
            raise ConfigError(f"{flag} {value} can't be", hint=f"give {allowed}")
        return number

    return parse


def whole(flag: str, least: int) -> Callable[[Any], int]:
    """A whole number of at least ``least``."""
    check = number(flag, f"a whole number, at least {least}", lambda v: v >= least and v == int(v))
    return lambda value: int(value) if check(value) and isinstance(value, int) else int(check(value))


def choice(flag: str, known: Sequence[str]) -> Callable[[Any], str]:
    """One of a few words."""

    def parse(value: Any) -> str:
        if value not in known:
            near = difflib.get_close_matches(str(value), known, 1, 0.5)
            hint = (f"did you mean '{near[0]}'? " if near else "") + f"known: {', '.join(known)}"
            raise ConfigError(f"{flag}: unknown value '{value}'", hint=hint)
        return str(value)

    return parse


def texts(flag: str, value: Any) -> tuple[str, ...]:
    """One text or several."""
    if isinstance(value, str | os.PathLike):
        return (os.fspath(value),)
    try:
        return tuple(str(item) for item in value)
    except TypeError as error:
        raise ConfigError(f"{flag} can't be {value!r}", hint="give text or a list of texts") from error


def targets(value: Any) -> tuple[str, ...]:
    """Names of targets, each once."""
    names = tuple(dict.fromkeys(texts("--target", value)))
    if not names or "" in names:
        raise ConfigError("--target needs a name", hint="'condensec targets' lists them")
    return names


def freeze(value: Any) -> str | None:
    """One regular expression out of one or several."""
    patterns = texts("--freeze", value)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"--freeze '{pattern}' is no regular expression: {error}",
                hint="escape it as Python's re does",
            ) from error
    return "|".join(f"(?:{p})" for p in patterns) if len(patterns) > 1 else (patterns or (None,))[0]


def shapes(value: Any) -> dict[str, tuple[int, ...]]:
    """Whole shapes by input name."""
    if isinstance(value, Mapping):
        return dict(parse_shape(f"{name}={'x'.join(map(str, dims))}") for name, dims in value.items())
    return dict(parse_shape(text) for text in texts("--shape", value))


def inputs(value: Any) -> dict[str, str]:
    """Values of inputs without a sample axis, by name."""
    if isinstance(value, Mapping):
        given = [f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in value.items()]
    else:
        given = list(texts("--input", value))
    return dict(parse_input(text) for text in given)


def function(value: Any) -> Any:
    """A function that augments."""
    if not callable(value):
        raise ConfigError(
            f"--augment can't be {value!r}", hint="give text or a function (batch, rng) -> dict"
        )
    return value


def asis(value: Any) -> Any:
    """What is looked at later, where the model is known."""
    return value
