"""Collapse: what a metric may not see yet, and no further cut can mend.

A cut and healed model is watched where its units are contracted, beside the original, on a few calibration
samples: units that are zero or constant whatever comes in, layers in which that holds for most units,
values that explode or aren't numbers, outputs that no longer depend on the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.data import Samples
from condensec.runner import Session

Array = npt.NDArray[Any]
BATCH = 8  # samples whose activations are held at a time
STILL = 1e-6  # of a value's largest size: less than that is no change
MOST_DEAD = 0.5  # of the units that are left: more, and the layer counts as dead
EXPLODED = 1e3  # times as large as in the original


@dataclass(frozen=True)
class Place:
    """Where to look.

    Attributes:
        group: id of the group whose units lie there.
        value: name of the value.
        axis: along which the units lie.
    """

    group: str
    value: str
    axis: int


@dataclass(frozen=True)
class Collapse:
    """Something that went wrong.

    Attributes:
        kind: ``dead units``, ``dead layer``, ``exploded``, ``not finite`` or ``constant output``.
        value: where: a value's name.
        group: id of the group, or empty for an output.
        units: indices of the units it is about, in the original's numbering where that is known.
        detail: one sentence.
    """

    kind: str
    value: str
    group: str
    units: tuple[int, ...]
    detail: str

    @property
    def fatal(self) -> bool:
        """Whether the model is no base to go on from; a few dead units are only waste."""
        return self.kind != "dead units"


@dataclass
class _Seen:
    """Running extremes of a value, by unit; of an output, by element."""

    low: Array
    high: Array
    finite: bool = True

    def add(self, low: Array, high: Array) -> None:
        self.finite &= bool(np.isfinite(low).all() and np.isfinite(high).all())
        self.low, self.high = np.fmin(self.low, low), np.fmax(self.high, high)

    @property
    def size(self) -> float:
        """Largest absolute value."""
        return float(np.nanmax(np.maximum(np.abs(self.low), np.abs(self.high)), initial=0.0))

    def still(self) -> npt.NDArray[np.bool_]:
        """What never changes."""
        return np.asarray(self.high - self.low <= STILL * max(self.size, 1e-30))


class Watch:
    """The original's activations, to hold cut models against.

    Args:
        original: the uncut model.
        places: where to look.
        samples: a few dozen; a unit that none of them wakes is no loss to them either.
        threads: of the sessions.
    """

    def __init__(
        self, original: ir.Model, places: Sequence[Place], samples: Samples, threads: int = 1
    ) -> None:
        self._places, self._samples, self._threads = tuple(places), samples, threads
        self._outputs = [v.name or "" for v in original.graph.outputs]
        self._before = self._look(original)

    def check(self, cut: ir.Model, kept: Mapping[str, Sequence[int]] | None = None) -> tuple[Collapse, ...]:
        """What has collapsed in a cut model, the worst first.

        Args:
            cut: has the original's names where it has its values.
            kept: value name -> the original's indices that are left on its place's axis, for naming units.
        """
        after = self._look(cut)
        found: list[Collapse] = []
        for name in self._outputs:
            if name in after:  # whole numbers aren't looked at: a class is none the worse for never changing
                found += self._output(name, after[name])
        for place in self._places:
            if place.value in after:
                indices = (kept or {}).get(place.value)
                found += self._inside(place, after[place.value], indices)
        return tuple(sorted(found, key=lambda c: not c.fatal))

    def _look(self, model: ir.Model) -> dict[str, _Seen]:
        there = {o.name for node in model.graph for o in node.outputs}
        axes = {p.value: p.axis for p in self._places if p.value in there}
        session = Session(
            model, threads=self._threads, extra_outputs=[n for n in axes if n not in self._outputs]
        )
        size, count = session.batch_size or BATCH, len(self._samples)
        seen: dict[str, _Seen] = {}
        for start in range(0, count, size):
            stop = start + size if session.batch_size else min(start + size, count)
            index = np.minimum(np.arange(start, stop), count - 1)
            feeds = {n: np.ascontiguousarray(a[index]) for n, a in self._samples.inputs.items()}
            for name, value in session.run(feeds).items():
                if value.dtype.kind != "f":
                    continue
                rows = (
                    _by_sample(session.by_sample(name, value))
                    if name in self._outputs
                    else _by_unit(value, axes[name])
                )
                low, high = rows.min(axis=0), rows.max(axis=0)
                if name not in seen:
                    seen[name] = _Seen(low, high)
                if seen[name].low.shape == low.shape:
                    seen[name].add(low, high)
        return seen

    def _output(self, name: str, after: _Seen) -> list[Collapse]:
        before = self._before.get(name)
        if before is None:
            return []
        if before.finite and not after.finite:
            return [Collapse("not finite", name, "", (), f"output '{name}' isn't finite")]
        if after.still().all() and not before.still().all():
            detail = f"output '{name}' is the same for all {len(self._samples)} samples"
            return [Collapse("constant output", name, "", (), detail)]
        return []

    def _inside(self, place: Place, after: _Seen, indices: Sequence[int] | None) -> list[Collapse]:
        before, name = self._before[place.value], place.value

        def found(kind: str, units: tuple[int, ...], detail: str) -> list[Collapse]:
            return [Collapse(kind, name, place.group, units, f"group {place.group} at '{name}': {detail}")]

        if before.finite and not after.finite:
            return found("not finite", (), "values aren't finite")
        if after.size > EXPLODED * max(before.size, 1e-30):
            return found("exploded", (), f"values up to {after.size:.3g}, {before.size:.3g} in the original")
        still, was = after.still(), before.still()
        known = indices is not None and len(indices) == len(still)
        names = np.asarray(indices if known else np.arange(len(still)))
        new = still & ~was[names] if known or len(still) == len(was) else still
        if not new.any():
            return []
        zero = bool((after.high[new] == 0).all() and (after.low[new] == 0).all())
        how = f"{int(new.sum())} of {len(still)} units are {'zero' if zero else 'constant'} on all samples"
        dead = new.sum() > MOST_DEAD * len(still)
        return found("dead layer" if dead else "dead units", tuple(int(i) for i in names[new]), how)


def _by_unit(value: Array, axis: int) -> Array:
    moved = np.moveaxis(value, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _by_sample(value: Array) -> Array:
    return value.reshape(len(value), -1) if value.ndim else value.reshape(1, 1)
