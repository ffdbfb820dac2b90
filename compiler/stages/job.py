"""The job: everything that is known before the first cut, settled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec import io
from condensec.comparable import check_comparable, check_finite_outputs, check_repeats, unrunnable
from condensec.config import Config
from condensec.data import Samples, Signature, Splits, split, synthetic
from condensec.data import load as load_data
from condensec.decisions import with_scores, without_scores
from condensec.errors import ConfigError, DataError, PostconditionError, TargetUnavailable
from condensec.hardware import devicetable
from condensec.hardware.target import Target, get
from condensec.metrics import Metric, resolve
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis, analyze
from condensec.passes.layers import Layer
from condensec.passes.sampling import affordable
from condensec.probe import runnable_shapes
from condensec.runner import Session
from condensec.specs import LAYERS

T = TypeVar("T")
Outputs = Mapping[str, npt.NDArray[Any]]
SYNTHETIC_SAMPLES = 96
GUARD_SECONDS = 20.0  # the guard is judged several times a run: fewer samples where the model is large
LEAST_GUARD = 256
EVIDENCE_SECONDS = 20.0  # the activations that criteria look at: fewer samples where the model is large
MOST_EVIDENCE = 256
ROUNDING = 1e-6  # points: 96.5% - 96.0% isn't more than half a point because of binary fractions


@dataclass(frozen=True)
class Loaded:
    """The original file.

    Attributes:
        path: as given.
        model: lazily loaded, never changed.
        sha256: hash of the file.
        signature: inputs and outputs.
    """

    path: Path
    model: ir.Model
    sha256: str
    signature: Signature


@dataclass(frozen=True)
class Data:
    """Samples kept apart, and how they are judged."""

    splits: Splits
    metric: Metric
    notes: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        """Made-up inputs: accuracy can't be measured."""
        return self.splits.calibration.synthetic


@dataclass(frozen=True)
class Job:
    """Settled before the first cut.

    Attributes:
        baseline: the original's metric on validation samples.
        reference: the original's outputs on validation samples.
    """

    config: Config
    loaded: Loaded
    data: Data
    targets: tuple[Target, ...]
    analysis: Analysis
    baseline: float
    reference: Outputs
    _outputs: dict[int, Outputs] = field(default_factory=dict, repr=False)
    _found: dict[str, Any] = field(default_factory=dict, repr=False)

    def feeds(self, count: int) -> Outputs:
        """Real inputs for one call of ``count`` samples, or the model's own batch where it is fixed."""
        return self.loaded.signature.call(self.data.splits.calibration, count)

    def original_outputs(self, samples: Samples) -> Outputs:
        """The original's outputs on some samples; computed once for each split."""
        if id(samples) not in self._outputs:
            session = Session(self.loaded.path, threads=self.config.jobs)
            self._outputs[id(samples)] = session.run_samples(samples)
        return self._outputs[id(samples)]

    def plain(self, model: ir.Model) -> ir.Model:
        """A model as the user gets it: with the original's outputs alone, see `condensec.decisions`."""
        return without_scores(model, frozenset(v.name or "" for v in self.loaded.model.graph.outputs))

    def once(self, key: str, find: Callable[[], T]) -> T:
        """What ``find`` gives, computed at the first call for a key."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    @property
    def sha256(self) -> str:
        """Hash of the original file."""
        return self.loaded.sha256

    @property
    def one_shot(self) -> bool:
        """The whole cut in one cycle: ``--step 1``, or a uniform ``--keep``."""
        return self.config.step >= 1 or self.config.keep is not None

    def full_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Kept units of every group, whole ones included; 1 or 0 of every layer, where layers may go."""
        groups = {g.id: counts.get(g.id, g.size) for g in self.analysis.groups}
        return {**groups, **{layer.id: counts.get(layer.id, 1) for layer in self.layers}}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that may be taken out."""
        return self.analysis.layers if LAYERS in self.config.patterns else ()

    def judge(self, model: ir.Model) -> float:
        """The metric of a model on validation samples; NaN where its outputs can't be judged."""
        try:
            return self.evaluate(model, self.data.splits.validation, self.reference)
        except DataError:  # the original passed this metric: a model that doesn't is a bad one
            return float("nan")

    def evaluate(self, model: ir.Model | Path, samples: Samples, reference: Outputs) -> float:
        """The metric of a model on some samples."""
        outputs = Session(model, threads=self.config.jobs).run_samples(samples)
        return self.data.metric.value(outputs, samples, reference)

    def points_lost(self, value: float) -> float:
        """How many points of the metric were lost against the original (negative: gained)."""
        return self.data.metric.points_lost(self.baseline, value)

    def keeps_guard(self, value: float) -> bool:
        """Whether the guard allows this value. NaN never passes."""
        return bool(np.isfinite(value)) and self.points_lost(value) <= self.config.max_drop + ROUNDING

    def endangered(self, value: float) -> bool:
        """Whether the guard leaves little room: half of what may be lost is lost."""
        return not self.points_lost(value) <= self.config.max_drop / 2

    def better(self, a: float, b: float) -> bool:
        """Whether a is a strictly better value of the metric than b (anything beats NaN)."""
        if not np.isfinite(b):
            return bool(np.isfinite(a))
        return a > b if self.data.metric.higher_is_better else a < b


def load_model(config: Config) -> Loaded:
    """Read the model file.

    Raises:
        ModelError: it can't be read or isn't supported.
    """
    return load_at(Path(config.model))


def load_at(path: Path) -> Loaded:
    """Read one model file; see `load_model`."""
    model = io.load(path)
    return Loaded(path, model, io.sha256(path), io.signature(model))


def read_data(config: Config, loaded: Loaded) -> Data:
    """Read the samples, or make some up.

    Raises:
        DataError: they don't fit the model.
        ConfigError: the metric can't be used with them.
    """
    signature = loaded.signature
    if config.data is None:
        given = config.input_values
        shapes = runnable_shapes(loaded.path, signature, config.input_shapes, given)
        samples = synthetic(signature, seed=config.seed, count=SYNTHETIC_SAMPLES, shapes=shapes, values=given)
        held_out = None
    else:
        given = config.input_values
        samples = load_data(config.data, signature, seed=config.seed, values=given)
        held_out = (
            None if config.val is None else load_data(config.val, signature, seed=config.seed, values=given)
        )
    splits = split(samples, held_out, seed=config.seed)
    metric = resolve(config.metric, splits.validation, signature)
    notes = tuple(n for n in (*samples.notes, splits.note) if n)
    return Data(splits, metric, notes)


def find_targets(config: Config) -> tuple[Target, ...]:
    """The targets asked for.

    Raises:
        ConfigError: one isn't known.
        TargetUnavailable: one can't be served here.
    """
    return targets_of(config.targets, config.tables)


def targets_of(names: Sequence[str], tables: Sequence[str]) -> tuple[Target, ...]:
    """Targets by name, with the latency tables that were made on their devices.

    Raises:
        ConfigError: one isn't known; a table can't be read, or is for another target.
        TargetUnavailable: one can't be served here.
    """
    targets = tuple(get(name) for name in names)
    for target in targets:
        reason = target.available()
        if reason is not None:
            raise TargetUnavailable(f"target '{target.name}' can't be served on this machine: {reason}")
    found = {devicetable.read(Path(table)).target: table for table in tables}
    known = [target.name for target in targets]
    for name, table in found.items():
        if name not in known:
            hint = f"--target {name}, or another table"
            raise ConfigError(f"{table} is for target '{name}', not for {', '.join(known)}", hint=hint)
    return tuple(devicetable.attach(t, Path(found[t.name])) if t.name in found else t for t in targets)


def find_groups(config: Config, loaded: Loaded, data: Data) -> Analysis:
    """Read the graph: what may be cut, and what goes with it."""
    shapes = loaded.signature.sample_shapes(data.splits.calibration)
    return analyze(with_scores(loaded.model), shapes, freeze=config.freeze)


def measure_baseline(
    config: Config, loaded: Loaded, data: Data, targets: tuple[Target, ...], analysis: Analysis
) -> Job:
    """Run the original on validation samples; on fewer of them, where it is large.

    Raises:
        ModelError: it doesn't run, or what it gives can't be compared.
        ConfigError: the metric is no number for the original.
    """
    session = Session(loaded.path, threads=config.jobs)
    most = affordable(analysis.macs(), 1, GUARD_SECONDS, LEAST_GUARD)
    validation = data.splits.validation.first(most)
    notes = data.notes
    if len(validation) < len(data.splits.validation):
        whole = len(data.splits.validation)
        notes = (*notes, f"the guard uses {len(validation)} of {whole} validation samples")
    data = Data(replace(data.splits, validation=validation), data.metric, notes)
    reference = _first_run(session, validation)
    check_comparable(session, loaded.model, validation)
    check_finite_outputs(reference, validation)
    check_repeats(loaded.model, loaded.signature.call(validation, 2), threads=config.jobs)
    baseline = data.metric.value(reference, validation, reference)
    if not np.isfinite(baseline):
        raise ConfigError(
            f"the metric '{data.metric.name}' of the original model is {baseline}",
            hint="choose another with --metric",
        )
    return Job(config, loaded, data, targets, analysis, float(baseline), reference)


def _first_run(session: Session, samples: Samples) -> Outputs:
    """The original's outputs.

    Raises:
        ModelError: it doesn't run, or not as its own shapes say.
    """
    try:
        return session.run_samples(samples)
    except PostconditionError as error:
        raise unrunnable(error) from error


def evidence(job: Job) -> Evidence:
    """What criteria may look at: calibration samples of the original."""
    return gathered(job.analysis, job.data.splits.calibration, job.config)


def gathered(analysis: Analysis, samples: Samples, config: Config) -> Evidence:
    """Evidence from samples, as many as a model of this size can see in time."""
    most = min(MOST_EVIDENCE, affordable(analysis.macs(), 1, EVIDENCE_SECONDS))
    return Evidence(analysis, samples.first(most), threads=config.jobs, seed=config.seed)
