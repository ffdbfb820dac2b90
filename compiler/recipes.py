"""Recipes: the stack of patterns as a list of steps, and three ready ones behind ``-O1``, ``-O2``, ``-O3``.

    [[step]]
    kind = "structured"
    budget = "latency<=0.5x"

    [[step]]
    kind = "heal"
    minutes = 6

    [[step]]
    kind = "quantize"
    precision = "int8"

A recipe is another way to write the settings of a run: the steps become options (``--budget``, ``--heal``,
...), and options given beside it win. The order is that of the line: units first, single weights among what
is left, then precision; a step of healing belongs to the step before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from condensec.errors import ConfigError

Step = Mapping[str, Any]
_ORDER = ("structured", "unstructured", "n:m", "quantize")
_KEYS: dict[str, tuple[str, ...]] = {
    "structured": ("budget", "towards", "keep", "patterns", "criterion", "step"),
    "unstructured": ("share", "method"),
    "n:m": ("pattern", "method"),
    "quantize": ("precision",),
    "heal": ("minutes", "epochs", "mode"),
}
_UNITS = ("channels", "heads", "neurons")

READY: dict[str, tuple[Step, ...]] = {
    "1": (
        {"kind": "structured", "towards": "latency<=0.8x", "step": 0.05},
        {"kind": "heal", "minutes": 2},
    ),
    "2": (
        {"kind": "structured", "towards": "latency<=0.6x"},
        {"kind": "heal", "minutes": 4},
        {"kind": "quantize", "precision": "auto"},
        {"kind": "heal", "minutes": 1},
    ),
    "3": (
        {"kind": "structured", "towards": "params<=0.25x"},
        {"kind": "heal", "minutes": 8},
        {"kind": "quantize", "precision": "int8"},
        {"kind": "heal", "minutes": 2},
    ),
}
_MAX_DROP = {"1": 0.3, "2": 1.0, "3": 2.0}  # points


def ready(level: str) -> dict[str, Any]:
    """Options of a ready recipe.

    Args:
        level: "1" (safe), "2" (balanced) or "3" (smallest).

    Raises:
        ConfigError: there is no such recipe.
    """
    name = level.removeprefix("O")
    if name not in READY:
        raise ConfigError(
            f"-O{level}: there is no such recipe", hint="-O1 is safe, -O2 balanced, -O3 the smallest"
        )
    return {**options(READY[name]), "max_drop": _MAX_DROP[name]}


def beside(meant: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options and others, which win; a budget or ``keep`` of theirs replaces what it aims at."""
    aims = ("budget", "keep", "towards")
    if any(name in given for name in aims):
        meant = {name: value for name, value in meant.items() if name not in aims}
    return {**meant, **given}


def options(steps: Any) -> dict[str, Any]:
    """What a list of steps means in options, by their names in `condensec.config.configure`.

    Raises:
        ConfigError: a step that can't be, or an order that makes no sense; says which step.
    """
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise ConfigError("a recipe is a list of steps", hint='write [[step]] and kind = "structured" below')
    found: dict[str, Any] = {}
    minutes: dict[str, float] = {}
    heal: list[str] = []
    previous = ""
    for number, step in enumerate(steps, 1):
        where, kind = f"step {number} of the recipe", _kind(step, number)
        if kind == "heal":
            if not previous:
                raise ConfigError(
                    f"{where}: heal comes after what it heals", hint="put a structured step first"
                )
            heal.append(_healing(where, step, minutes, _stage(previous)))
            continue
        _follows(where, previous, kind)
        found |= _READERS[kind](where, step, found)
        previous = kind
    found.setdefault("patterns", ("none",))  # no step takes units out
    if heal:
        found["heal"] = _together(heal, minutes)
    return found


def _kind(step: Any, number: int) -> str:
    where = f"step {number} of the recipe"
    kind = step.get("kind") if isinstance(step, Mapping) else None
    if kind not in _KEYS:
        near = difflib.get_close_matches(str(kind), _KEYS, 1, 0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"{where}: unknown kind '{kind}'", hint=f"{hint}known: {', '.join(_KEYS)}")
    wrong = next((key for key in step if key != "kind" and key not in _KEYS[kind]), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {kind} has no '{wrong}'", hint=f"known: {', '.join(_KEYS[kind])}")
    return str(kind)


def _stage(kind: str) -> str:
    return "zeros" if kind in ("unstructured", "n:m") else kind


def _follows(where: str, previous: str, kind: str) -> None:
    """Whether a step may come after another.

    Raises:
        ConfigError: why it can't.
    """
    if not previous:
        return
    if _stage(previous) == _stage(kind):
        why = (
            "its cycles already go there step by step"
            if kind == "structured"
            else "a graph holds one pattern of zeros"
            if _stage(kind) == "zeros"
            else "a graph has one precision"
        )
        raise ConfigError(f"{where}: {kind} after {previous}: {why}", hint="make one step of the two")
    if _ORDER.index(kind) < _ORDER.index(previous):
        why = (
            "integers can't be cut and healed as well as what they are made of"
            if previous == "quantize"
            else "zeros are chosen among the weights that stay"
        )
        raise ConfigError(f"{where}: {kind} after {previous}: {why}", hint=f"put {kind} before {previous}")


# -- one kind of step each ---------------------------------------------------------------------------------


def _structured(where: str, step: Step, found: Mapping[str, Any]) -> dict[str, Any]:
    aims = [key for key in ("budget", "towards", "keep") if key in step]
    if len(aims) > 1:
        raise ConfigError(f"{where}: {aims[0]} and {aims[1]} exclude each other", hint="use one of them")
    made = {key: step[key] for key in ("budget", "towards", "keep", "criterion", "step") if key in step}
    asked = step.get("patterns", _UNITS)
    made["patterns"] = tuple(asked.split(",") if isinstance(asked, str) else asked)
    return made


def _unstructured(where: str, step: Step, found: Mapping[str, Any]) -> dict[str, Any]:
    if "share" not in step:
        raise ConfigError(f"{where}: unstructured needs a share", hint="write share = 0.5")
    return {"patterns": (*found.get("patterns", ()), _method(f"unstructured={step['share']}", step))}


def _n_m(where: str, step: Step, found: Mapping[str, Any]) -> dict[str, Any]:
    if "pattern" not in step:
        raise ConfigError(f"{where}: n:m needs a pattern", hint='write pattern = "2:4"')
    return {"patterns": (*found.get("patterns", ()), _method(str(step["pattern"]), step))}


def _method(text: str, step: Step) -> str:
    return f"{text}:{step['method']}" if "method" in step else text


def _quantize(where: str, step: Step, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"quantize": str(step.get("precision", "int8"))}


_READERS: dict[str, Callable[[str, Step, Mapping[str, Any]], dict[str, Any]]] = {
    "structured": _structured,
    "unstructured": _unstructured,
    "n:m": _n_m,
    "quantize": _quantize,
}


# -- healing -------------------------------------------------------------------------------------------


def _healing(where: str, step: Step, minutes: dict[str, float], stage: str) -> str:
    """How a stage is healed: a mode, or minutes, which are counted."""
    ways = [key for key in ("minutes", "epochs", "mode") if key in step]
    if len(ways) != 1:
        raise ConfigError(f"{where}: heal needs one of minutes, epochs and mode", hint="write minutes = 5")
    if "mode" in step:
        return str(step["mode"])
    value = step[ways[0]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{where}: {ways[0]} = {value} can't be", hint=f"give {ways[0]} above 0")
    if ways[0] == "epochs":
        return f"epochs={value}"
    minutes[stage] = minutes.get(stage, 0.0) + float(value)
    return "minutes"


def _together(heal: Sequence[str], minutes: Mapping[str, float]) -> str:
    """One ``--heal`` for all stages: minutes add up, and each stage has its share of them."""
    kinds = {h.partition("=")[0] for h in heal} - {"off", "closed-form"}
    if len(kinds) > 1 or (len(kinds) == 1 and not minutes and len(set(heal)) > 1):
        raise ConfigError(
            f"a recipe heals by {' and '.join(sorted(set(heal)))}",
            hint="use minutes in all of its heal steps",
        )
    if not minutes:
        return heal[0]
    total = sum(minutes.values())
    text = f"minutes={total:g}"
    for stage, name in (("zeros", "zeros"), ("quantize", "quantized")):
        if stage in minutes and len(minutes) > 1:
            text += f",{name}={minutes[stage] / total:.3g}"
    return text
