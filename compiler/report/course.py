"""Sections of the report that tell how it went: budgets, the guard, the cycles, healing, the proof."""

from __future__ import annotations

from dataclasses import dataclass


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
