"""A finished graph for each target, outside of the line: what `condensec emit` and `quantize` do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condensec import data, io, provenance
from condensec.config import Config, check_output
from condensec.data import Samples, Signature
from condensec.errors import DataError
from condensec.hardware import emit
from condensec.metrics import Metric, resolve
from condensec.probe import runnable_shapes
from condensec.runner import Session
from condensec.stages.job import find_targets

MADE_UP = 192  # samples without data: 128 to calibrate with, others to check on
Accept = Callable[[Path], bool]


@dataclass(frozen=True)
class Guard:
    """The metric of graphs on held-out samples, against that of the model given."""

    metric: Metric
    samples: Samples
    reference: Any
    value: float
    max_drop: float
    threads: int

    def judge(self, path: Path) -> float:
        """The metric of a graph; NaN where it can't be had."""
        try:
            outputs = Session(path, threads=self.threads).run_samples(self.samples)
            return self.metric.value(outputs, self.samples, self.reference)
        except DataError:  # the model given passed this metric: a graph that doesn't is a bad one
            return float("nan")

    def accept(self, path: Path) -> bool:
        """NaN never passes."""
        return self.metric.points_lost(self.value, self.judge(path)) <= self.max_drop + 1e-6


def emitted(
    config: Config,
    folder: Path,
    *,
    guarded: bool,
    accept: Accept | None = None,
    ort: bool = False,
    tell: Callable[[str], None] = lambda target: None,
) -> tuple[dict[str, emit.Artifact], Guard | None]:
    """Write a model for every target.

    Args:
        config: ``model``, ``targets``, ``quantize``, ``data``, ``val``, ``metric``, ``max_drop``, ...
        folder: the graphs are in ``<target>/model.onnx``.
        guarded: with data a lower precision has to keep the guard; with "auto" it always has to.
        accept: whether a graph of lower precision is good enough, instead of the guard.
        ort: write onnxruntime's own format beside.
        tell: called with the name of each target.

    Returns:
        What was written, by target, and the guard; None without data.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    targets = find_targets(config)
    given, guard = _samples(config, io.signature(io.load(config.model)))
    check_output(folder)
    if accept is None and guard is not None and (guarded or config.quantize == "auto"):
        accept = guard.accept
    origin = provenance.entries(io.sha256(config.model))
    made = {}
    for target in targets:
        tell(target.name)
        made[target.name] = emit.emit(
            config.model, target, folder / target.name, precision=config.quantize, samples=given,
            threads=config.jobs, accept=accept if config.quantize != "none" else None,
            calibrate=config.calibrate, ort=ort, origin=origin,
        )  # fmt: skip
    return made, guard


def _samples(config: Config, signature: Signature) -> tuple[Samples, Guard | None]:
    """Samples to calibrate with, and the guard; no guard without data."""
    values = config.input_values
    if config.data is None:
        shapes = runnable_shapes(config.model, signature, config.input_shapes, values)
        made = data.synthetic(signature, seed=config.seed, count=MADE_UP, shapes=shapes, values=values)
        return made, None
    given, held = (
        None if where is None else data.load(where, signature, seed=config.seed, values=values)
        for where in (config.data, config.val)
    )
    assert given is not None
    splits = data.split(given, held, seed=config.seed)
    metric = resolve(config.metric, splits.validation, signature)
    reference = Session(config.model, threads=config.jobs).run_samples(splits.validation)
    value = metric.value(reference, splits.validation, reference)
    guard = Guard(metric, splits.validation, reference, value, config.max_drop, config.jobs)
    return splits.calibration, guard
