"""Report: everything one compile found out, as one immutable value.

`Report.to_json` is the document of report.json (schema 1). Programs outside this project read it: fields
may be added, none is renamed or removed without a new schema number.

How a figure was got is said beside it, in one of these words:

    measured    timed or evaluated here, on this machine, by running the graph
    emulated    run under an emulator of the target's instruction set
    parsed      read out of the file, or accepted by the target's own parser, without running it
    modelled    calculated from a model of the hardware; good for ordering, not for promises
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condensec import documents
from condensec.errors import ConfigError
from condensec.plan import FrozenAxis, Plan
from condensec.report.codec import decode, encode
from condensec.report.values import GraphNode, NodeTime, ParetoPoint

SCHEMA = 1
MEASURED, EMULATED, PARSED, MODELLED = "measured", "emulated", "parsed", "modelled"
STATUSES = {
    "ok": "budget met, guard kept",
    "budget_not_met": "budget not reachable within the guard; this is the best safe model",
    "dry_run": "planned only; nothing was cut",
    "analyzed": "measured only; nothing was planned or cut",
    "interrupted": "stopped at a safe point; run again with --resume",
}

Interval = tuple[float, float]


@dataclass(frozen=True)
class ModelInfo:
    """The original file.

    Attributes:
        file: the path as the user gave it.
        sha256: hash of the file's bytes.
        opset: default-domain opset.
        nodes: number of nodes in the main graph.
        inputs, outputs: name -> ``float32[N,3,48,192]``-like text.
    """

    file: str
    sha256: str = ""
    opset: int = 0
    nodes: int = 0
    producer: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricValue:
    """A metric's value on one split.

    Attributes:
        value: None when it could not be evaluated.
        samples: how many samples it was evaluated on.
        ci95: 95% interval of `value`.
        change_ci95: 95% interval of its change against the original's, on the same samples; None for the
            original itself.
        split: ``test``, ``validation`` or ``calibration``.
        how: one of the four words of this module.
        unit_points: factor from the metric's own unit to "points" (100 for top1), as in ``--max-drop``.
        label: the metric in a reader's words, e.g. ``top-1 accuracy``.
    """

    name: str
    value: float | None
    samples: int = 0
    ci95: Interval | None = None
    split: str = "test"
    how: str = MEASURED
    higher_is_better: bool = True
    unit_points: float = 1.0
    label: str = ""
    change_ci95: Interval | None = None


@dataclass(frozen=True)
class Figures:
    """The size of a graph and how good it is.

    Attributes:
        params: number of weight elements.
        macs: multiply-accumulates of one sample.
        bytes: size of the file, external data included.
        how: for each figure, one of the four words of this module.
    """

    params: int
    macs: int
    bytes: int
    metric: MetricValue | None = None
    nodes: int = 0
    how: Mapping[str, str] = field(
        default_factory=lambda: {"params": PARSED, "macs": PARSED, "bytes": MEASURED}
    )


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call, before and after; None where it is unknown."""

    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class TargetResult:
    """One target's graph and what it does.

    Attributes:
        verified: how far the target could be checked here; one of the four words of this module.
        latency_ms: of the original and of the emitted graph.
        ratio: after / before; the median of paired runs where it was measured.
        ci95: 95% interval of `ratio`.
        precision: ``fp32``, ``int8``, ``fp16``.
        file: the emitted graph, relative to the output folder; empty when nothing was emitted.
        bytes: size of that file.
        metric: the metric's value with the emitted graph, on the same split as `Report.after`.
        latency_how: how the latency was got, when that differs from `verified`; empty = the same.
        unavailable: why the target could not be served; empty = it was.
        nodes: what single nodes take, slowest first; from one profile of each graph, so
            for comparing nodes with each other: profiling makes all of them slower.
    """

    verified: str = MEASURED
    latency_ms: Latency = field(default_factory=Latency)
    ratio: float | None = None
    ci95: Interval | None = None
    precision: str = "fp32"
    file: str = ""
    bytes: int = 0
    metric: float | None = None
    latency_how: str = ""
    runtime: str = ""
    description: str = ""
    unavailable: str = ""
    notes: tuple[str, ...] = ()
    nodes: tuple[NodeTime, ...] = ()


@dataclass(frozen=True)
class Budget:
    """One budget and what became of it.

    Attributes:
        expr: as the user wrote it, ``latency<=0.5x``.
        target: the target it was judged on; empty for macs, params and the like.
        value: what was reached, in the unit of `expr`.
        asked: False for a goal condensec set itself; to miss it is no failure.
    """

    expr: str
    met: bool
    value: float | None = None
    target: str = ""
    asked: bool = True


@dataclass(frozen=True)
class Guard:
    """The accuracy guard: at most `max_drop` points of the metric may be lost.

    Attributes:
        max_drop: points; None = no guard.
        drop: points lost on `split`; negative = gained.
        baseline: the original's metric on `split`, in the metric's own unit.
    """

    max_drop: float | None
    drop: float | None = None
    kept: bool = True
    split: str = "validation"
    baseline: float | None = None


@dataclass(frozen=True)
class Cycle:
    """One round of cut, heal, judge.

    Attributes:
        macs: share of the original's MACs that is left.
        latency: predicted or measured share of the original's latency that is left, if known.
        metric_pruned, metric_healed: on the validation split.
        healed_how: ``closed-form``, ``epochs=3``, ``off``...
        note: why it was rolled back, or what else is worth saying.
    """

    n: int
    macs: float
    metric_pruned: float | None = None
    metric_healed: float | None = None
    accepted: bool = True
    seconds: float = 0.0
    latency: float | None = None
    healed_how: str = ""
    note: str = ""


@dataclass(frozen=True)
class Check:
    """Masked equivalence for one kind of group.

    Attributes:
        groups: number of cut groups that this check covers.
        layers: number of layers taken out whole that it covers.
        max_abs_error: largest difference between the pruned graph and the masked original.
        tolerance: what was allowed, in the same unit.
    """

    groups: int
    max_abs_error: float | None = None
    tolerance: float | None = None
    passed: bool = True
    note: str = ""
    layers: int = 0


@dataclass(frozen=True)
class GraphRun:
    """An emitted graph run once in the current runtime.

    Attributes:
        file: relative to the output folder.
        inputs: the shapes it was run at, ``x: 2x3x48x192``.
    """

    file: str
    inputs: str
    passed: bool = True
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """The proof that what was cut is what the plan says, and that the result runs."""

    exact: Check | None = None
    approximate: Check | None = None
    runs: tuple[GraphRun, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Untrained:
    """A part that healing left alone, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Healing:
    """How the cut graph learned again, all cycles together.

    Attributes:
        how: ``off``, ``closed-form``, ``closed-form, then epochs=3``...
        seconds: wall time.
        before, after: the healing metric on its validation samples, first and last.
        loss_curve: training loss, evenly sampled, in order.
    """

    how: str
    seconds: float = 0.0
    steps: int = 0
    samples_per_second: float | None = None
    before: float | None = None
    after: float | None = None
    peak_rss_mb: float | None = None
    loss_curve: tuple[float | None, ...] = ()
    frozen: tuple[Untrained, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class DataSummary:
    """What the model was measured and healed with.

    Attributes:
        source: the ``--data`` as given, or ``synthetic``.
        splits: samples per split.
        note: what a reader has to know, e.g. that accuracy was not measured.
    """

    source: str
    splits: Mapping[str, int] = field(default_factory=dict)
    synthetic: bool = False
    labelled: bool = False
    note: str = ""


@dataclass(frozen=True)
class LayerCut:
    """What was cut in one layer.

    Attributes:
        name: of the node.
        before, after: number of output units (channels, neurons, heads).
        macs_before, macs_after: of one sample.
        group: the group that its output axis belongs to; empty = frozen or none.
        kept: runs of kept output indices, (first, last) inclusive; empty = unknown. See `runs`.
        removed: the layer was taken out whole.
        reason: why its output axis is frozen, if it is.
    """

    name: str
    op: str
    before: int
    after: int
    macs_before: int = 0
    macs_after: int = 0
    group: str = ""
    kept: tuple[tuple[int, int], ...] = ()
    removed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class LossDetail:
    """What was measured with a part of the model gone.

    Attributes:
        loss: output error, in the report's ``sensitivity_unit``.
        ci95: its 95% interval over the samples; None where outputs have no sample axis.
        metric: the metric, or None without labels.
        similarity: of a layer: cosine between what goes into it and what comes out.
    """

    loss: float
    ci95: Interval | None = None
    metric: float | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class GroupSummary:
    """One group of axes that live and die together: how many of its `size` units are `kept`."""

    id: str
    kind: str
    size: int
    kept: int
    exact: bool = True
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatternResult:
    """Zeros in the file written.

    Attributes:
        name: the pattern, as asked for.
        share_asked, share_reached: zeros over the weights that hold the pattern.
        reached: all of it is there; otherwise the guard took some back.
        weights, zeros: elements of the weights that hold it.
        violations: groups of N:M with more than n weights.
        layers: weights that hold it.
        bytes, compressed_bytes, sparse_bytes: of those weights: as written, by zlib, as sparse ONNX tensors
            (value and int64 place; an estimate).
        metric: on validation samples.
        left_out: weight -> why it doesn't hold the pattern.
    """

    name: str
    share_asked: float
    share_reached: float
    reached: bool
    weights: int
    zeros: int
    violations: int
    layers: int
    bytes: int
    compressed_bytes: int
    sparse_bytes: int
    metric: float | None = None
    healed_how: str = "off"
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything one compile found out. See the module for the words that say how a figure was got.

    Attributes:
        status: a key of `STATUSES`.
        before, after: the original and the healed fp32 graph.
        targets: name -> what was emitted for it, in the order in which the user named them.
        sensitivity: group -> kept share ("0.5") -> loss when only that share of the group is kept.
        sensitivity_unit: what that loss is.
        sensitivity_detail: the same with intervals and metric, where it was measured.
        layer_sensitivity: residual block, by its last node -> loss when it is taken out whole.
        sensitivity_samples: samples that the map was measured on.
        graph: the original's graph as boxes in topological order; empty where it would be too large to draw.
        timings: stage -> seconds, in the order of the line, ending with ``total``.
        stage_rss_mb: stage -> peak resident memory in MiB when the stage ended.
        pareto: models on the way to this one, the largest first (``--pareto``).
        plan_sha256: `Plan.digest` of the plan that was carried out.
        command: the exact command line.
        created: when the run ended, ISO 8601 with zone.
    """

    model: ModelInfo
    seed: int
    status: str
    before: Figures
    after: Figures
    targets: Mapping[str, TargetResult] = field(default_factory=dict)
    cycles: tuple[Cycle, ...] = ()
    sensitivity: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    sensitivity_unit: str = "loss"
    sensitivity_detail: Mapping[str, Mapping[str, LossDetail]] = field(default_factory=dict)
    layer_sensitivity: Mapping[str, LossDetail] = field(default_factory=dict)
    sensitivity_samples: int = 0
    verification: Verification = field(default_factory=Verification)
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    environment: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    stage_rss_mb: Mapping[str, float] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    guard: Guard | None = None
    healing: Healing | None = None
    data: DataSummary | None = None
    groups: tuple[GroupSummary, ...] = ()
    frozen: tuple[FrozenAxis, ...] = ()
    layers: tuple[LayerCut, ...] = ()
    patterns: tuple[PatternResult, ...] = ()
    pareto: tuple[ParetoPoint, ...] = ()
    graph: tuple[GraphNode, ...] = ()
    plan_sha256: str = ""
    command: str = ""
    version: str = ""
    created: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of report.json: only JSON values, every number finite, keys in a fixed order."""
        return {"schema": SCHEMA, **encode(self)}

    @classmethod
    def from_json(cls, doc: Any) -> Report:
        """Read a document of `to_json`; unknown keys are passed over.

        Raises:
            ConfigError: not a report of a schema we know, or a malformed one; names the place.
        """
        if not isinstance(doc, Mapping) or doc.get("schema") != SCHEMA:
            found = doc.get("schema") if isinstance(doc, Mapping) else type(doc).__name__
            raise ConfigError(f"not a report of schema {SCHEMA} (found {found!r})")
        return decode(cls, doc)

    def dumps(self) -> str:
        """JSON text: the same report gives the same bytes."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def group_summaries(plan: Plan) -> tuple[GroupSummary, ...]:
    """The groups of a plan, each with the weights it touches."""
    return tuple(
        GroupSummary(
            id=g.id,
            kind=g.kind,
            size=g.size,
            kept=len(g.kept),
            exact=g.exact,
            layers=tuple(dict.fromkeys(axis.tensor for axis in g.axes)),
        )
        for g in plan.groups
    )


def runs(kept: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indices as runs: 0, 1, 2, 7 gives ((0, 2), (7, 7))."""
    found: list[tuple[int, int]] = []
    for index in kept:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return tuple(found)


def read_report(path: Path) -> Report:
    """Read report.json.

    Raises:
        ConfigError: the file is missing, isn't JSON, or isn't a report.
    """
    return documents.read(
        path, "report", "give a folder that condensec wrote, or its report.json", Report.from_json
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Undecodable bytes of file names are written as escapes.

    Raises:
        ConfigError: there is no such folder, or nobody may write there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="name another file") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
