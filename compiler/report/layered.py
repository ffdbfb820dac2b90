"""Places for the boxes of a layered drawing of a directed graph.

Sugiyama, Tagawa, Toda: Methods for visual understanding of hierarchical system structures (1981): every box
stands on the rank below its lowest input; an edge over several ranks gets a bend on each of them; ranks are
ordered so that edges cross little (barycentres, down and up in turn); then boxes move towards their
neighbours as far as the others of their rank let them. All edges that leave one box share their bends,
so an attention mask that every layer reads is one line, not one for each layer.

The layout libraries there are didn't fit: grandalf is no longer kept, fast-sugiyama needs Python 3.11 and
native code, graphviz a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SWEEPS = 8  # down and up; more change little
_SETTLE = 24
_BEND_WIDTH = 0.25  # of a box
_STRAIGHT = 8.0  # how much more an edge between two bends wants to be straight

Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where boxes and edges lie; one rank is one unit high, one box with its gap one unit wide.

    Attributes:
        x: centre of each box, then of each bend.
        rank: of each box, then of each bend.
        edges: from above to below, between boxes and bends on neighbouring ranks.
        boxes: how many of `x` are boxes.
    """

    x: tuple[float, ...]
    rank: tuple[int, ...]
    edges: tuple[Edge, ...]
    boxes: int

    @property
    def width(self) -> float:
        """Of the whole drawing."""
        return max(self.x, default=0.0) - min(self.x, default=0.0) + 1.0

    @property
    def height(self) -> int:
        """Number of ranks."""
        return max(self.rank, default=-1) + 1


def layered(inputs: Sequence[Sequence[int]]) -> Layout:
    """Lay out a graph.

    Args:
        inputs: for each box the boxes it takes from; all of them come before it.
    """
    rank = _ranks(inputs)
    edges: list[Edge] = []
    count = len(inputs)
    bends: dict[tuple[int, int], int] = {}  # (box it comes from, rank) -> bend
    for box, sources in enumerate(inputs):
        for source in sources:
            above = source
            for level in range(rank[source] + 1, rank[box]):
                if (source, level) not in bends:
                    bends[source, level] = len(rank)
                    rank.append(level)
                    edges.append((above, bends[source, level]))
                above = bends[source, level]
            edges.append((above, box))
    rows = _ordered(rank, edges)
    x = _placed(rank, edges, rows, count)
    return Layout(tuple(float(v) for v in x - x.min(initial=0.0)), tuple(rank), tuple(edges), count)


def _ranks(inputs: Sequence[Sequence[int]]) -> list[int]:
    """One below the lowest input; boxes without inputs stand right above the first box that takes them."""
    rank: list[int] = []
    for sources in inputs:
        rank.append(max((rank[s] for s in sources), default=-1) + 1)
    first: dict[int, int] = {}
    for box, sources in enumerate(inputs):
        for source in sources:
            first[source] = min(first.get(source, rank[box]), rank[box])
    for box, sources in enumerate(inputs):
        if not sources and box in first:
            rank[box] = first[box] - 1
    return rank


def _ordered(rank: Sequence[int], edges: Sequence[Edge]) -> list[list[int]]:
    """What stands on each rank, from left to right."""
    rows: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for item, level in enumerate(rank):
        rows[level].append(item)
    up: list[list[int]] = [[] for _ in rank]
    down: list[list[int]] = [[] for _ in rank]
    for above, below in edges:
        down[above].append(below)
        up[below].append(above)
    place = [0.0] * len(rank)
    for row in rows:
        for position, item in enumerate(row):
            place[item] = float(position)
    for sweep in range(_SWEEPS):
        near = up if sweep % 2 == 0 else down
        for row in rows if sweep % 2 == 0 else reversed(rows):
            want = {
                item: sum(place[n] for n in near[item]) / len(near[item]) if near[item] else place[item]
                for item in row
            }
            row.sort(key=lambda item: (want[item], place[item]))
            for position, item in enumerate(row):
                place[item] = position - (len(row) - 1) / 2
    return rows


def _placed(
    rank: Sequence[int], edges: Sequence[Edge], rows: Sequence[Sequence[int]], boxes: int
) -> npt.NDArray[np.float64]:
    """Horizontal centres: rank by rank, the least squares that keep the order and the gaps."""
    x = np.zeros(len(rank))
    width = np.where(np.arange(len(rank)) < boxes, 1.0, _BEND_WIDTH)
    offsets = []
    for row in rows:
        half = width[list(row)] / 2
        offset = np.concatenate([[0.0], np.cumsum(half[:-1] + half[1:])]) if len(row) else np.zeros(0)
        offsets.append(offset)
        x[list(row)] = offset - offset.mean() if len(row) else 0.0
    pull: list[list[tuple[int, float]]] = [[] for _ in rank]
    for above, below in edges:
        weight = 1.0 + (_STRAIGHT - 1.0) * ((above >= boxes) + (below >= boxes)) / 2
        pull[above].append((below, weight))
        pull[below].append((above, weight))
    for turn in range(_SETTLE):
        for level in range(len(rows)) if turn % 2 == 0 else range(len(rows) - 1, -1, -1):
            row = list(rows[level])
            want, force = np.empty(len(row)), np.empty(len(row))
            for place, item in enumerate(row):
                force[place] = sum(w for _, w in pull[item]) or 1e-3
                sums = sum(w * x[n] for n, w in pull[item])
                want[place] = sums / force[place] if pull[item] else x[item]
            x[row] = _monotone(want - offsets[level], force) + offsets[level]
    return x


def _monotone(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest ascending sequence in weighted least squares, by pooling adjacent violators (Ayer 1955)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, heavy, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            last, more, count = blocks.pop()
            mean = (mean * heavy + last * more) / (heavy + more)
            heavy, length = heavy + more, length + count
        blocks.append((mean, heavy, length))
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks]) if blocks else values
