"""Where the time goes: onnxruntime's own profiler, per operator and per node, of one graph or of two.

A node's time is the median over counted runs, alternating between the two graphs so that drift hits both. The
profiler itself costs some microseconds a node: sums come out above the latency, shares don't mind.

Nodes of two graphs are matched by layer. A fused node goes by the value that comes out of it, a quantized one
by the name of the convolution it was: both lead to the same weighted node of the graph as it was given, or,
where there's none, to the same name.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import PostconditionError
from condensec.hardware.protocol import Protocol, pinned
from condensec.runner import Session

if TYPE_CHECKING:
    from condensec.runner import Arrays
    from condensec.serialized import ModelSource

_RUNS, _DISCARD = 30, 5
_KERNEL = "_kernel_time"
# what onnxruntime appends to the names of nodes and values when it rewrites them
_MADE_UP = re.compile(r"(_nchwc|_token_\d+|/MatMulAddFusion|_quant|\.folded|_(Dequantize|Quantize)Linear)+$")
_NUMBER = re.compile(r"(?<=subgraph)_\d+$")  # a provider's own subgraphs are counted
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_FUSABLE = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Add", "BatchNormalization", "Mul")


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that onnxruntime really runs.

    Attributes:
        name: its name there.
        op: operator.
        provider: execution provider that ran it.
        seconds: mean time of a run.
    """

    name: str
    op: str
    provider: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        return {"name": self.name, "op": self.op, "provider": self.provider, "ms": self.seconds * 1e3}


@dataclass(frozen=True)
class Change:
    """What became of one operator, or of one layer, from the first graph to the second.

    Attributes:
        what: operator or name of the layer.
        op: operator of the node in it that takes longest, in the second graph only if the first has none.
        before, after: seconds a run; None where the graph has no such thing.
        counts: nodes, before and after.
    """

    what: str
    op: str
    before: float | None
    after: float | None
    counts: tuple[int, int]

    @property
    def milliseconds(self) -> tuple[float | None, float | None]:
        """Before and after."""
        return (
            None if self.before is None else self.before * 1e3,
            None if self.after is None else self.after * 1e3,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        before, after = self.milliseconds
        times = {"before_ms": before, "after_ms": after}
        return {"what": self.what, "op": self.op, **times, "nodes": list(self.counts)}


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one or two graphs goes.

    Attributes:
        nodes: of each graph, in the order they run.
        operators, layers: both graphs matched, the largest time first.
    """

    nodes: tuple[tuple[NodeTime, ...], ...]
    operators: tuple[Change, ...]
    layers: tuple[Change, ...]

    @property
    def two(self) -> bool:
        """Whether two graphs are compared."""
        return len(self.nodes) > 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        return {
            "operators": [change.to_json() for change in self.operators],
            "layers": [change.to_json() for change in self.layers],
            "nodes": {
                name: [node.to_json() for node in nodes]
                for name, nodes in zip(("a", "b"), self.nodes, strict=False)
            },
        }


def take(
    models: Sequence[ModelSource], feeds: Arrays, *, protocol: Protocol | None = None, runs: int = _RUNS
) -> Breakdown:
    """Profile one graph, or two against each other; the first is the one before.

    Raises:
        ModelError, DataError, PostconditionError: as `condensec.hardware.bench.measure`.
    """
    found = profile(models, feeds, protocol=protocol, runs=runs)
    before, after = found[0], found[1] if len(found) > 1 else ()
    layers = by_layer(before, after, layers_of(models[0]))
    return Breakdown(tuple(found), tuple(by_operator(before, after)), tuple(layers))


def profile(
    models: Sequence[ModelSource], feeds: Arrays, *, protocol: Protocol | None = None, runs: int = _RUNS
) -> list[tuple[NodeTime, ...]]:
    """Time every node of some graphs, in turns.

    Args:
        models: in any form; all take the same feeds.
        feeds: inputs of one call.
        protocol: threads, pinning and execution providers.
        runs: counted runs of each.

    Returns:
        For each model its nodes, in the order they run.

    Raises:
        ModelError, DataError, PostconditionError: as `condensec.hardware.bench.measure`.
    """
    protocol = protocol or Protocol()
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder, pinned(protocol.threads, protocol.pin):
        sessions = [
            Session(
                model,
                threads=protocol.threads,
                providers=protocol.providers,
                profile=Path(folder) / str(number),
            )
            for number, model in enumerate(models)
        ]
        calls = [session.prepared(feeds) for session in sessions]
        for turn in range(runs + _DISCARD):
            for call in calls if turn % 2 == 0 else reversed(calls):
                call()
        return [_nodes(session.end_profile(), runs) for session in sessions]


def _nodes(trace: Path, runs: int) -> tuple[NodeTime, ...]:
    """Kernel times out of a Chrome trace: the last ``runs`` events of every node."""
    try:
        events = json.loads(trace.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PostconditionError(f"onnxruntime's profile can't be read: {error}") from error
    durations: dict[tuple[str, str, str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        given: Mapping[str, Any] = event.get("args", {})
        key = (
            str(given.get("node_index", "")),
            name.removesuffix(_KERNEL),
            _NUMBER.sub("", str(given.get("op_name", "?"))),
            str(given.get("provider", "")),
        )
        durations.setdefault(key, []).append(float(event["dur"]) * 1e-6)
    return tuple(
        NodeTime(name, op, provider, float(np.median(times[-runs:])))
        for (_, name, op, provider), times in durations.items()
    )


def by_operator(before: Sequence[NodeTime], after: Sequence[NodeTime] = ()) -> list[Change]:
    """Both graphs by operator, the largest share of time first."""
    return _changes(_grouped(before, lambda n: n.op), _grouped(after, lambda n: n.op))


def by_layer(
    before: Sequence[NodeTime], after: Sequence[NodeTime] = (), origins: Mapping[str, str] | None = None
) -> list[Change]:
    """Both graphs by layer, the largest time first; ``origins`` as `layers_of` gives them."""
    known = origins or {}

    def key(node: NodeTime) -> str:
        name = plain_name(node.name)
        return known.get(name, name)

    return _changes(_grouped(before, key), _grouped(after, key))


def layers_of(model: ModelSource) -> dict[str, str]:
    """Node or value name -> the weighted node that onnxruntime may fuse it into."""
    from condensec.serialized import to_ir

    found: dict[str, str] = {}
    for node in to_ir(model).graph:
        name = plain_name(node.name or f"{node.op_type}_{node.outputs[0].name}")
        owner = name if node.op_type in _WEIGHTED else None
        if node.op_type in _FUSABLE:
            producers = [v.producer() for v in node.inputs if v is not None and len(v.uses()) == 1]
            names = [plain_name(p.outputs[0].name or "") for p in producers if p is not None]
            owner = next((found[n] for n in names if n in found), None)
        if owner is not None:
            found.setdefault(name, owner)
            found.update((plain_name(v.name or ""), owner) for v in node.outputs)
    return found


def plain_name(name: str) -> str:
    """A name without what onnxruntime's rewrites append."""
    return _MADE_UP.sub("", name.removeprefix("fused ")) or name


def _grouped(nodes: Sequence[NodeTime], key: Callable[[NodeTime], str]) -> dict[str, list[NodeTime]]:
    found: dict[str, list[NodeTime]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node)
    return found


def _changes(
    before: Mapping[str, Sequence[NodeTime]], after: Mapping[str, Sequence[NodeTime]]
) -> list[Change]:
    changes = []
    for what in dict.fromkeys((*before, *after)):
        old, new = before.get(what, ()), after.get(what, ())
        op = max(old or new, key=lambda node: node.seconds).op
        times = [sum(node.seconds for node in nodes) if nodes else None for nodes in (old, new)]
        changes.append(Change(what, op, times[0], times[1], (len(old), len(new))))
    return sorted(changes, key=lambda c: (-max(c.before or 0.0, c.after or 0.0), c.what))
