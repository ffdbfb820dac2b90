"""Times of any node from the times of some: a fit of what a kernel does, corrected by its nearest neighbours.

For each kind of node the time is fitted as a sum of non-negative terms: a call, multiply-accumulates
(plain, and with channels or positions padded to the kernel's tile), elements gathered, elements written,
weights read. Relative errors are minimised (Lawson and Hanson 1974, chapter 23, by dropping negative terms
one by one). What the fit leaves over is interpolated: the ratio of measured to fitted time, averaged over
the nearest known nodes with the inverse square of their distance in the logarithms of the sizes (Shepard
1968). So a known node is answered exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log

import numpy as np

from condensec.hardware.nodekey import NodeKey

_NEAREST = 6
_TILE = 16  # channels a kernel computes at once
# distance that a difference in kind counts for, in powers of e of a size
_UNLIKE = {"dtype": 6.0, "off": 4.0, "kernel": 1.5, "stride": 1.0, "summed": 0.3, "act": 0.3, "op": 8.0}
_SPREAD = 2.0
_MOVES = 0.5  # weight of sizes in nodes that only move data


def terms(key: NodeKey) -> tuple[float, ...]:
    """What a kernel does for a node, as the terms that its time is fitted with."""
    if not key.weighted:
        return 1.0, float(key.read), float(key.written)
    ins, outs = key.i / key.g, key.o / key.g
    if key.op == "depthwise":
        return 1.0, float(key.n * key.o * key.kernel), float(key.n * key.o), float(key.o)
    padded = ceil(outs / _TILE) * _TILE * key.g
    return (
        1.0,
        key.n * ins * key.o * key.kernel,
        key.n * ins * padded * key.kernel,
        ceil(key.n / _TILE) * _TILE * ins * key.o * key.kernel,
        key.n * key.i * key.kernel,
        float(key.n * key.o),
        ins * key.o * key.kernel,
    )


@dataclass(frozen=True)
class Points:
    """Known nodes.

    Attributes:
        known: time by node, in any unit.
    """

    known: Mapping[NodeKey, float]

    def time(self, key: NodeKey) -> float:
        """The time of a node, in the unit of the known ones; 0 where nothing like it is known."""
        if key in self.known:
            return self.known[key]
        family = self._families.get(_family(key))
        if family is None:
            guesses = [f.guess(key) for f in self._families.values() if len(f.factors) == len(terms(key))]
            return float(np.median(guesses)) if guesses else 0.0
        return family.guess(key)

    @cached_property
    def _families(self) -> dict[str, _Family]:
        found: dict[str, dict[NodeKey, float]] = {}
        for key, value in self.known.items():
            if value > 0:
                found.setdefault(_family(key), {})[key] = value
        return {name: _Family(known) for name, known in found.items()}


def _family(key: NodeKey) -> str:
    """Nodes that one fit serves."""
    name = f"{key.op} {key.dtype}" + (" off" if key.off and not key.weighted else "")
    return f"+{name}" if key.weighted else name


class _Family:
    """Known nodes of one kind, and the fit of their times."""

    def __init__(self, known: Mapping[NodeKey, float]) -> None:
        self.keys = list(known)
        self.values = np.array(list(known.values()))
        rows = np.array([terms(key) for key in self.keys])
        usual = [i for i, key in enumerate(self.keys) if not key.off] or list(range(len(self.keys)))
        self.factors = nonnegative(rows[usual] / self.values[usual, None], np.ones(len(usual)))
        self.ratios = np.log(self.values / np.maximum(rows @ self.factors, 1e-30))
        self.places = np.array([_place(key) for key in self.keys])

    def guess(self, key: NodeKey) -> float:
        """The fit, corrected by the nearest known nodes."""
        place = np.array(_place(key))
        if place.shape != self.places.shape[1:]:
            return float(np.array(terms(key))[: len(self.factors)] @ self.factors)
        distances = ((self.places - place) ** 2).sum(axis=1)
        distances += np.array([_unlike(key, other) for other in self.keys])
        nearest = np.argsort(distances, kind="stable")[:_NEAREST]
        weights = 1 / (distances[nearest] + 1e-6)
        ratio = float(np.exp((weights * self.ratios[nearest]).sum() / weights.sum()))
        return max(0.0, float(np.array(terms(key)) @ self.factors)) * ratio


def _place(key: NodeKey) -> tuple[float, ...]:
    """Where a node lies among others of its kind."""
    if not key.weighted:
        return _MOVES * log(max(1, key.read)), _MOVES * log(max(1, key.written))
    sizes = (key.n, key.i / key.g, key.o / key.g)  # 0: a product of two activations has no such axis
    return *(log(size or 1) for size in sizes), 0.5 * log(key.g)


def _unlike(a: NodeKey, b: NodeKey) -> float:
    """Squared distance for what differs in kind."""
    kind = sum(weight**2 for name, weight in _UNLIKE.items() if getattr(a, name) != getattr(b, name))
    # two operands of one shape take another loop than one that is spread over the other
    spread = not a.weighted and (a.read == 2 * a.written) != (b.read == 2 * b.written)
    return kind + _SPREAD**2 * spread


def nonnegative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares with factors of at least zero: negative ones are dropped, the worst first.

    A column that is a multiple of an earlier one gets 0: the data can't tell them apart.

    Args:
        rows: one a known node, one column a term.
        wanted: what they should come to.

    Returns:
        A factor for each column.
    """
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    alike = np.triu(unit.T @ unit, 1) > 1 - 1e-9
    used = [column for column in range(rows.shape[1]) if not alike[:, column].any()]
    factors = np.zeros(rows.shape[1])
    while used:
        found, *_ = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=1e-9)
        if found.min() >= 0:
            factors[used] = found / scale[used]
            break
        del used[int(found.argmin())]
    return factors
