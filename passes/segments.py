"""Segments: what lies in front of a mask is computed once.

Masking one group changes nothing in front of its first masked node. The graph is cut where few bytes cross,
in front of the groups; the values that cross are kept, batch by batch, and only the rest of the graph runs
for every mask. Each rest has masks for the groups of its segment alone, so that onnxruntime fuses the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.passes.bodies import owners
from condensec.passes.groups import Analysis
from condensec.runner import Session

Array = npt.NDArray[Any]
Batch = dict[str, Array]
MACS_A_BYTE = 20  # reading a kept value costs about as much time as so many multiply-accumulates
MACS_A_SEGMENT = 5e9  # opening another session costs about as much as these
SPILL_BYTES = 1 << 28  # kept values above this go to a file


@dataclass(frozen=True)
class Segment:
    """A place to start from.

    Attributes:
        start: position of the first node that runs again; 0 = the whole graph.
        members: what is measured from here, by index into the positions asked for.
    """

    start: int
    members: tuple[int, ...]


class Line:
    """A model's nodes in order, what crosses between them, and how much work lies behind.

    Attributes:
        model: the model, bodies closed.
        names: of its nodes.
        position: of every node, those inside bodies included.
        made: value name -> the position it is there from.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.model = analysis.runnable
        graph = self.model.graph
        self.names = [node.name or "" for node in graph]
        owner = owners(analysis.model.graph)  # what is in a body stands where its If, Loop or Scan does
        places = {name: i for i, name in enumerate(self.names)}
        self.position = {name: places[owner[name]] for name in owner}
        weights = set(graph.initializers)
        self.made = {v.name or "": 0 for v in graph.inputs if v.name not in weights}
        self._last: dict[str, int] = {}
        for i, node in enumerate(graph):
            for name in reads(node):
                self._last[name] = i
            for value in node.outputs:
                self.made[value.name or ""] = i + 1
        for value in graph.outputs:
            self._last[value.name or ""] = len(self.names)  # an output is asked for at the end
        macs = [0] * len(self.names)
        for name, count in analysis.node_macs({}).items():
            macs[self.position[name]] += count
        self._before = [0, *accumulate(macs)]
        batch = max(1, min((s[0] for s in analysis.world.inputs.values() if s), default=1))
        self._bytes = {name: 4 * prod(analysis.world.shapes.get(name, (0,))) // batch for name in self.made}

    def crossing(self, position: int) -> list[str]:
        """Values made before a position and read at or after it, outputs included."""
        return [n for n, at in self.made.items() if at <= position <= self._last.get(n, -1)]

    def work(self, start: int, stop: int | None = None) -> int:
        """Multiply-accumulates of one sample between two positions."""
        return self._before[len(self.names) if stop is None else stop] - self._before[start]

    def starts(self) -> list[tuple[int, int]]:
        """(position, bytes of one sample that cross there) for every position."""
        count = len(self.names)
        change = [0] * (count + 2)
        for name, at in self.made.items():
            last = self._last.get(name, -1)
            if last >= at:
                change[at] += self._bytes[name]
                change[last + 1] -= self._bytes[name]
        return list(enumerate(accumulate(change[: count + 1])))

    def segments(self, positions: Sequence[int], runs: int) -> list[Segment]:
        """Where to start from for things that begin at some positions, in graph order.

        Args:
            positions: of the first node that each of them changes.
            runs: samples times settings that each is run for: what a segment has to pay for itself with.
        """
        places = self.starts()
        found: list[tuple[int, list[int]]] = []
        for index in sorted(range(len(positions)), key=lambda i: positions[i]):
            best = self._best(places, positions[index])
            current = found[-1][0] if found else 0
            if not found or self.work(current, max(best, current)) * runs > MACS_A_SEGMENT:
                paid = self.work(0, best) * runs > MACS_A_SEGMENT
                found.append((max(best, current) if found or paid else 0, []))
            found[-1][1].append(index)
        return [Segment(start, tuple(members)) for start, members in found]

    def _best(self, places: Sequence[tuple[int, int]], position: int) -> int:
        """The place at or before a position from which running again costs least."""
        costs = [(MACS_A_BYTE * size + self.work(at, position), -at) for at, size in places[1 : position + 1]]
        return -min(costs)[1] if costs else 0


def reads(node: ir.Node) -> Iterator[str]:
    """Names a node reads, those its subgraphs capture included."""
    yield from (v.name or "" for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        graphs = (
            attribute.as_graphs()
            if attribute.type == ir.AttributeType.GRAPHS
            else ([attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else [])
        )
        for graph in graphs:
            yield from (v.name or "" for v in graph.outputs)
            for inner in graph:
                yield from reads(inner)


class Frontier:
    """The values that cross at one position, batch by batch; it moves forward only.

    Args:
        line: of the model.
        model: unmasked.
        batches: inputs, batch by batch.
        threads: of the sessions.
    """

    def __init__(self, line: Line, model: ir.Model, batches: list[Batch], threads: int) -> None:
        self._line, self._model, self._threads = line, model, threads
        self.position = 0
        self.batches: list[Batch] = batches
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def advance(self, position: int) -> None:
        """Run up to a position, and keep what crosses there."""
        if position <= self.position:
            return
        wanted = self._line.crossing(position)
        held = set(self.batches[0])
        made = [n for n in wanted if n not in held]
        piece = behind(self._model, self._line.names[: self.position], self.batches[0], made)
        session = Session(piece, threads=self._threads)
        folder = tempfile.TemporaryDirectory(prefix="condensec-front-")
        kept: list[Batch] = []
        for number, batch in enumerate(self.batches):
            values = {**{n: batch[n] for n in wanted if n in held}, **session.run(batch, made)}
            kept.append(self._spilled(values, Path(folder.name), number, len(self.batches)))
        self.batches = kept
        self.position = position
        self.close()
        self._folder = folder

    def _spilled(self, values: Batch, folder: Path, number: int, count: int) -> Batch:
        if count * sum(v.nbytes for v in values.values()) < SPILL_BYTES:
            return values
        result: Batch = {}
        for i, (name, array) in enumerate(values.items()):
            path = folder / f"{number}-{i}.npy"
            np.save(path, array, allow_pickle=False)
            result[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return result

    def close(self) -> None:
        """Delete what was spilled to disk."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def behind(
    model: ir.Model, before: Sequence[str], held: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> ir.Model:
    """The part of a model behind some nodes.

    Args:
        model: not changed.
        before: names of the nodes that are left out.
        held: values at hand, which become inputs; their dtype and rank are taken from here.
        outputs: what to compute; None = the model's outputs that aren't at hand.
    """
    part = model.clone()
    graph = part.graph
    gone = set(before)
    values = {v.name: v for v in graph.inputs} | {o.name: o for node in graph for o in node.outputs}
    asked = [v.name for v in graph.outputs] if outputs is None else list(outputs)
    asked = [name for name in asked if name not in held]
    graph.outputs.clear()
    if gone:
        for name, array in held.items():
            old = values[name]
            if not old.uses() or old.producer() is None:
                continue
            new = ir.Value(
                name=name,
                shape=ir.Shape([None] * array.ndim),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            old.name = f"{name}.before"
            old.replace_all_uses_with(new)
            graph.inputs.append(new)
    graph.outputs.extend(values[name] for name in asked)
    needed: set[ir.Value] = set(graph.outputs)
    for node in reversed(list(graph)):
        if node.name in gone or not needed.intersection(node.outputs):
            graph.remove(node)
            continue
        needed.update(_inputs(node))
    for name in [n for n, v in graph.initializers.items() if v not in needed]:
        graph.initializers.pop(name)
    for value in [v for v in graph.inputs if v not in needed]:
        graph.inputs.remove(value)
    return part


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        graphs = (
            attribute.as_graphs()
            if attribute.type == ir.AttributeType.GRAPHS
            else ([attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else [])
        )
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from _inputs(inner)
