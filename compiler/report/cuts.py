"""Sections of the report that tell what was cut: layers, groups, zeros, and what each was worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from condensec.plan import Plan
from condensec.report.figures import Interval


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
