"""The gate: does a model in the tree still keep its budgets of size, latency and accuracy?

`condensec.builds.rules` says what is to be kept; here figures are taken and held against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.builds.inputs import model_files
from condensec.builds.rules import MetricBudget, Rule
from condensec.errors import ConfigError
from condensec.specs import Budget

if TYPE_CHECKING:
    from condensec.data import Samples
    from condensec.hardware.bench import Comparison
    from condensec.hardware.latency import LatencyModel
    from condensec.metrics import Metric
    from condensec.report import Report

_ROUNDING = 1e-6  # points


@dataclass(frozen=True)
class Verdict:
    """One budget and what became of it.

    Attributes:
        budget: as written.
        value: the figure, in the unit of `unit`.
        limit: what it is held against, in the same unit.
        unit: ``bytes``, ``ms``, ``x``, ``points``, or the metric's name; empty for counts.
        how: how the figure was got: ``measured``, ``emulated``, ``parsed``, ``modelled``.
        kept: whether it keeps the budget.
    """

    budget: str
    value: float
    limit: float
    unit: str
    how: str
    kept: bool


@dataclass(frozen=True)
class Judgement:
    """What the gate says of one model."""

    model: str
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> bool:
        """Whether every budget is kept."""
        return all(verdict.kept for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "passed": self.kept,
            "checks": [vars(verdict) for verdict in self.verdicts],
        }


def judge(rule: Rule) -> Judgement:
    """Hold a model against its budgets.

    Raises:
        CondensecError: a file can't be read or doesn't fit, or a budget needs what isn't given.
    """
    figures = _Figures(rule)
    verdicts = [
        _metric(figures, one) if isinstance(one, MetricBudget) else _budget(figures, one)
        for one in rule.budgets
    ]
    if rule.max_drop is not None:
        verdicts.append(_drop(figures, rule.max_drop))
    return Judgement(str(rule.model), tuple(verdicts))


def _budget(figures: _Figures, budget: Budget) -> Verdict:
    value, how, unit = figures.relative(budget) if budget.relative else figures.absolute(budget.kind)
    return Verdict(str(budget), value, budget.value, unit, how, value <= budget.value)


def _metric(figures: _Figures, budget: MetricBudget) -> Verdict:
    metric = figures.metric_named(budget.metric)
    value = figures.value(figures.rule.model, metric)
    kept = value >= budget.limit if budget.at_least else value <= budget.limit
    return Verdict(
        budget.expr, value, budget.limit, metric.name, "measured", bool(np.isfinite(value) and kept)
    )


def _drop(figures: _Figures, most: float) -> Verdict:
    metric = figures.metric_named(None)
    before = figures.baseline(metric)
    lost = metric.points_lost(before, figures.value(figures.rule.model, metric))
    return Verdict(
        f"max-drop {most:g}", lost, most, "points", "measured", bool(lost <= most + _ROUNDING)
    )  # NaN never passes


class _Figures:
    """What is measured and counted of one model, each figure once and only if a budget asks for it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def absolute(self, kind: str) -> tuple[float, str, str]:
        """A figure of the model: its value, how it was got, and its unit."""
        if kind == "size":
            return _bytes(self.rule.model), "measured", "bytes"
        if kind == "latency":
            return self._latency()
        return float(getattr(self._inspected(self.rule.model), kind)), "parsed", ""

    def relative(self, budget: Budget) -> tuple[float, str, str]:
        """A figure as a share of the original's."""
        kind, rule = budget.kind, self.rule
        if rule.against is None:
            raise ConfigError(f"budget '{budget}' is a share of an original", hint="name it with --against")
        if self.report is None and kind == "latency" and self._measured:
            return self.comparison.ratio, "measured", "x"
        value, how, _ = self.absolute(kind)
        before = self._before(kind)
        if not before:
            raise ConfigError(f"{rule.against} doesn't say what the original's {kind} was on {rule.target}")
        return value / before, how, "x"

    def _before(self, kind: str) -> float | None:
        if self.report is None:
            original = self.original
            if kind == "size":
                return _bytes(original)
            if kind == "latency":
                return 1e3 * self._model_of_target(original).dense_seconds
            return float(getattr(self._inspected(original), kind))
        if kind == "latency":
            found = self.report.targets.get(self.rule.target)
            return None if found is None else found.latency_ms.before
        return float(getattr(self.report.before, "bytes" if kind == "size" else kind))

    # -- latency

    @cached_property
    def _measured(self) -> bool:
        return bool(self._target.measurable())

    @cached_property
    def _target(self) -> Any:
        from condensec.hardware.target import get

        return get(self.rule.target)

    def _latency(self) -> tuple[float, str, str]:
        if self._measured:
            from condensec.hardware import bench

            found = bench.measure(self.rule.model, shapes=self._shapes, protocol=self._protocol)
            return 1e3 * found.seconds, "measured", "ms"
        model = self._model_of_target(self.rule.model)
        return 1e3 * model.dense_seconds, model.verified, "ms"

    def _model_of_target(self, path: Path) -> LatencyModel:
        from condensec.hardware.latency import latency_model

        return latency_model(self._target, path, self._shapes)

    @cached_property
    def comparison(self) -> Comparison:
        """The model beside the original, in turns."""
        from condensec.hardware import bench

        return bench.compare(self.original, self.rule.model, shapes=self._shapes, protocol=self._protocol)

    @cached_property
    def _protocol(self) -> Any:
        from condensec.hardware.protocol import Protocol

        return Protocol(threads=self.rule.jobs)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        from condensec import io
        from condensec.probe import runnable_shapes

        path = self.rule.model
        return runnable_shapes(path, io.signature(io.load(path)), dict(self.rule.shapes))

    # -- the original

    @cached_property
    def report(self) -> Report | None:
        """The report the model is held against, where it is one."""
        from condensec.report import read_report

        against = self.rule.against
        return read_report(against) if against is not None and against.suffix == ".json" else None

    @property
    def original(self) -> Path:
        """The original's file."""
        if self.rule.against is None or self.report is not None:
            raise ConfigError(
                f"{self.rule.model}: this needs the original's file", hint="name it with --against"
            )
        return self.rule.against

    def _inspected(self, path: Path) -> Any:
        from condensec import api

        return api.inspect(path, shapes=self._shapes)

    # -- accuracy

    @cached_property
    def samples(self) -> Samples:
        """The samples that accuracy is measured on."""
        from condensec import data, io

        if self.rule.data is None:
            raise ConfigError(f"{self.rule.model}: accuracy needs samples", hint="name them with --data")
        return data.load(self.rule.data, io.signature(io.load(self.rule.model)))

    def metric_named(self, name: str | None) -> Metric:
        """The metric of a budget; without a name the rule's, or the one that fits the samples."""
        from condensec import io
        from condensec.metrics import resolve

        wanted = name or self.rule.metric
        return resolve(wanted, self.samples, io.signature(io.load(self.rule.model)))

    def value(self, path: Path, metric: Metric) -> float:
        """The metric of a model, beside the original's outputs where it needs them."""
        outputs = self._outputs(path)
        reference = self._outputs(self.original) if metric.needs_reference else outputs
        return float(metric.value(outputs, self.samples, reference))

    def baseline(self, metric: Metric) -> float:
        """The original's metric: measured on the same samples; where only a report is there, what it says."""
        if self.report is None:
            return self.value(self.original, metric)
        before = self.report.before.metric
        if before is None or before.value is None or before.name != metric.name:
            raise ConfigError(f"{self.rule.against} doesn't know the original's {metric.name}")
        return before.value

    def _outputs(self, path: Path) -> Any:
        from condensec.runner import Session

        return Session(path, threads=self.rule.jobs).run_samples(self.samples)


def _bytes(path: Path) -> float:
    return float(sum(file.stat().st_size for file in model_files(path)))
