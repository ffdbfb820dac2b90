"""Settings one by one: functions that make a value of the right kind out of what the user gave.

Each says what is allowed when it can't; `condensec.config` says which setting takes which.
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
    """A path."""

    def parse(value: Any) -> Path:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ConfigError(f"{flag} can't be {value!r}", hint="give a path")
        return Path(value)

    return parse


def number(flag: str, allowed: str, holds: Callable[[float], bool]) -> Callable[[Any], float]:
    """A number for which a condition holds."""

    def parse(value: Any) -> float:
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found) or not holds(found):
            raise ConfigError(f"{flag} {value} can't be", hint=f"give {allowed}")
        return found

    return parse


def whole(flag: str, least: int) -> Callable[[Any], int]:
    """A whole number from a least one on."""
    check = number(flag, f"a whole number, at least {least}", lambda v: v >= least and v == int(v))
    return lambda value: int(value) if check(value) and isinstance(value, int) else int(check(value))


def choice(flag: str, known: Sequence[str]) -> Callable[[Any], str]:
    """One of several words."""

    def parse(value: Any) -> str:
        if value not in known:
            near = difflib.get_close_matches(str(value), known, 1, 0.5)
            hint = (f"did you mean '{near[0]}'? " if near else "") + f"known: {', '.join(known)}"
            raise ConfigError(f"{flag}: unknown value '{value}'", hint=hint)
        return str(value)

    return parse


def texts(flag: str, value: Any) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    if isinstance(value, str | os.PathLike):
        return (os.fspath(value),)
    try:
        return tuple(str(item) for item in value)
    except TypeError as error:
        raise ConfigError(f"{flag} can't be {value!r}", hint="give text or a list of texts") from error


def target_names(value: Any) -> tuple[str, ...]:
    """Names of targets, without repeats."""
    names = tuple(dict.fromkeys(texts("--target", value)))
    if not names or "" in names:
        raise ConfigError("--target needs a name", hint="'condensec targets' lists them")
    return names


def freeze_pattern(value: Any) -> str | None:
    """One regular expression out of several."""
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


def input_shapes(value: Any) -> dict[str, tuple[int, ...]]:
    """Whole shapes by input name."""
    if isinstance(value, Mapping):
        return dict(parse_shape(f"{name}={'x'.join(map(str, dims))}") for name, dims in value.items())
    return dict(parse_shape(text) for text in texts("--shape", value))


def input_values(value: Any) -> dict[str, str]:
    """Values as text by input name."""
    if isinstance(value, Mapping):
        found = [f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in value.items()]
    else:
        found = list(texts("--input", value))
    return dict(parse_input(text) for text in found)


def function(value: Any) -> Any:
    """A function for ``--augment``."""
    if not callable(value):
        raise ConfigError(
            f"--augment can't be {value!r}", hint="give text or a function (batch, rng) -> dict"
        )
    return value


def as_is(value: Any) -> Any:
    """Whatever it is."""
    return value
