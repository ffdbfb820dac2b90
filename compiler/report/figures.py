"""Sections of the report that hold figures: of the original, of what came of it, of each target.

How a figure was got is said beside it, in one of these words:

    measured    timed or evaluated here, on this machine, by running the graph
    emulated    run under an emulator of the target's instruction set
    parsed      read out of the file, or accepted by the target's own parser, without running it
    modelled    calculated from a model of the hardware; good for ordering, not for promises
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from condensec.report.values import NodeTime

MEASURED, EMULATED, PARSED, MODELLED = "measured", "emulated", "parsed", "modelled"

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
