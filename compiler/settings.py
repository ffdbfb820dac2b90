"""The settings of a run, by the names of their flags: how each one's value is read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from condensec import setting_values as values
from condensec.specs import parse_augment, parse_budget, parse_heal, parse_losses, parse_patterns

QUANTIZATIONS = ("none", "int8", "fp16", "auto")
CALIBRATIONS = ("auto", "minmax", "entropy", "percentile")  # hardware's words; a test compares them

KEYS: Mapping[str, Callable[[Any], Any]] = {
    "model": values.path("MODEL"),
    "output": values.path("--output"),
    "target": values.target_names,
    "table": lambda value: values.texts("--table", value),
    "budget": lambda value: tuple(parse_budget(text) for text in values.texts("--budget", value)),
    "towards": lambda value: parse_budget(str(value)),
    "keep": values.number("--keep", "a share above 0 and at most 1", lambda v: 0 < v <= 1),
    "pareto": values.whole("--pareto", 1),
    "align": values.whole("--align", 1),
    "max_drop": values.number(
        "--max-drop", "points of the metric, at least 0 (inf = no guard)", lambda v: v >= 0
    ),
    "data": values.as_is,
    "val": values.as_is,
    "metric": values.as_is,
    "step": values.number("--step", "a share above 0 and at most 1", lambda v: 0 < v <= 1),
    "teacher": values.path("--teacher"),
    "recipe": str,
    "heal": lambda value: str(parse_heal(str(value))),
    "augment": lambda value: (
        ",".join(parse_augment(value)) if isinstance(value, str) else values.function(value)
    ),
    "loss": lambda value: ",".join(f"{k}={w:g}" for k, w in parse_losses(str(value)).items()),
    "patterns": lambda value: parse_patterns(",".join(values.texts("--patterns", value))),
    "sparse": bool,
    "quantize": values.choice("--quantize", QUANTIZATIONS),
    "calibrate": values.choice("--calibrate", CALIBRATIONS),
    "criterion": str,
    "freeze": values.freeze_pattern,
    "shape": values.input_shapes,
    "input": values.input_values,
    "seed": values.whole("--seed", 0),
    "jobs": values.whole("--jobs", 1),
    "resume": bool,
    "dry_run": bool,
}
FIELDS = {  # name -> field of `Config`, where that is another
    "target": "targets",
    "table": "tables",
    "budget": "budgets",
    "shape": "input_shapes",
    "input": "inputs",
}


def near_key(key: str) -> str:
    """A hint that names the key that was meant, or all of them."""
    known = [name.replace("_", "-") for name in KEYS]
    near = difflib.get_close_matches(key.replace("_", "-"), known, 1, 0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
