"""What the gate holds models against: flags, or a condensec-check.toml.

[[model]]
path = "models/*.onnx"              # relative to this file
budget = ["size<=4MB", "latency<=5ms", "top1>=0.93"]
data = "validation.npz"

[[model]]
path = "small.onnx"
against = "original.onnx"           # or the report.json of the run that made it
budget = ["latency<=0.5x", "macs<=0.5x"]
max-drop = 0.5
data = "validation.npz"
target = "mobile-cpu"               # default: host
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condensec.config import configure
from condensec.errors import ConfigError
from condensec.metrics import METRICS
from condensec.specs import BUDGET_KINDS, Budget, parse_budget
from condensec.toml_file import read_toml

FILE = "condensec-check.toml"
_KEYS = ("path", "budget", "against", "data", "metric", "max-drop", "target", "shape", "jobs")
_METRIC = re.compile(r"\s*([\w.:]+)\s*(>=|<=)\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class MetricBudget:
    """A bound on a metric, in its own unit: ``top1>=0.93`` or ``top1>=93%``.

    Attributes:
        metric: its name; None = the rule's (written ``metric>=0.93``).
        at_least: the bound is a lower one.
        limit: the bound.
        expr: as written.
    """

    metric: str | None
    at_least: bool
    limit: float
    expr: str


@dataclass(frozen=True)
class Rule:
    """What one model has to keep.

    Attributes:
        model: the file.
        budgets: all have to be kept.
        against: the original model, or a report.json of the run that made it; for shares and `max_drop`.
        data: samples that accuracy is measured on.
        metric: name, or ``module:callable``; None = what fits the samples.
        max_drop: points of the metric that may be lost against the original; None = not asked.
        target: where latency counts.
        shapes: input name -> shape, for dynamic dims.
        jobs: threads.
    """

    model: Path
    budgets: tuple[Budget | MetricBudget, ...] = ()
    against: Path | None = None
    data: str | None = None
    metric: str | None = None
    max_drop: float | None = None
    target: str = "host"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    jobs: int = 1


def rule(model: str | Path, options: Mapping[str, Any], folder: Path | None = None) -> Rule:
    """One rule from options named like the flags.

    Args:
        model: the file.
        options: ``budget``, ``against``, ``data``, ``metric``, ``max_drop``, ``target``, ``shape``, ``jobs``.
        folder: what relative paths count from; None = the current folder.

    Raises:
        ConfigError: a value that can't be, or nothing to keep.
    """
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    budgets = tuple(parse(text) for text in _texts(given.get("budget", ())))
    checked = configure(
        model=model,
        **{name: given[name] for name in ("max_drop", "target", "shape") if name in given},
        jobs=given.get("jobs", 1),
    )
    if len(checked.targets) > 1:
        raise ConfigError("a model is checked for one --target at a time", hint="run it once for each")
    if not budgets and "max_drop" not in given:
        raise ConfigError(f"nothing to check of {model}", hint="give --budget or --max-drop")
    against, data = given.get("against"), given.get("data")
    base = folder or Path()
    located = None if data is None else str(base / data) if (base / str(data)).exists() else str(data)
    return Rule(
        model=Path(model),
        budgets=budgets,
        against=None if against is None else base / against,
        data=located,
        metric=given.get("metric"),
        max_drop=checked.max_drop if "max_drop" in given else None,
        target=checked.targets[0],
        shapes=checked.input_shapes,
        jobs=checked.jobs,
    )


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a condensec-check.toml, one for each file that a ``path`` matches.

    Raises:
        ConfigError: it can't be read, has an unknown key, or a path matches nothing.
    """
    tables = read_toml(path).get("model")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path} has no [[model]] table", hint="see 'condensec check --help'")
    rules: list[Rule] = []
    for table in tables:
        unknown = sorted(set(table) - set(_KEYS))
        if unknown or "path" not in table:
            what = f"unknown key '{unknown[0]}'" if unknown else "a [[model]] without a path"
            raise ConfigError(f"{path}: {what}", hint=f"known: {', '.join(_KEYS)}")
        options = {key.replace("-", "_"): value for key, value in table.items() if key != "path"}
        found = sorted(path.parent.glob(str(table["path"])))
        if not found:
            raise ConfigError(
                f"{path}: no file matches '{table['path']}'", hint="paths count from its folder"
            )
        rules += [rule(model, options, path.parent) for model in found]
    return tuple(rules)


def parse(text: str) -> Budget | MetricBudget:
    """A budget of the gate: those of a run, and bounds on a metric.

    Raises:
        ConfigError: neither.
    """
    match = _METRIC.fullmatch(text)
    if match is None or match[1] in BUDGET_KINDS:
        return parse_budget(text)
    name, relation, number, percent = match.groups()
    if name != "metric" and name not in METRICS and ":" not in name:
        known = ", ".join((*BUDGET_KINDS, "metric", *METRICS, "module:callable"))
        raise ConfigError(f"budget '{text}': unknown figure '{name}'", hint=f"known: {known}")
    limit = float(number) / (100 if percent else 1)
    return MetricBudget(None if name == "metric" else name, relation == ">=", limit, text.strip())


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return (value,)
    try:
        return tuple(str(item) for item in value)
    except TypeError as error:
        raise ConfigError(f"budget can't be {value!r}", hint="give text or a list of texts") from error
