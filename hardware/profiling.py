"""Where the time goes: onnxruntime's own profiler, per operator and per node, of one graph or of two.

A node's time is the mean over counted runs, alternating between the two graphs so that drift hits both. The
profiler itself costs some microseconds a node: sums come out above the latency, shares don't mind.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
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
_MADE_UP = re.compile(
    r"(_nchwc|_token_\d+|_kernel_time|/MatMulAddFusion|_quant|\.folded|_(De)?[Qq]uantizeLinear)+"
)
REORDERING = {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose", "Cast"}


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
    """What became of one operator, or of one node, from the first graph to the second.

    Attributes:
        what: operator or name of the node.
        before, after: seconds a run; None where the graph has no such thing.
        counts: nodes, before and after.
    """

    what: str
    before: float | None
    after: float | None
    counts: tuple[int, int]

    @property
    def gained(self) -> float:
        """Seconds less than before."""
        return (self.before or 0.0) - (self.after or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        before, after = (None if t is None else t * 1e3 for t in (self.before, self.after))
        return {"what": self.what, "before_ms": before, "after_ms": after, "nodes": list(self.counts)}


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
            str(given.get("op_name", "?")),
            str(given.get("provider", "")),
        )
        durations.setdefault(key, []).append(float(event["dur"]) * 1e-6)
    return tuple(
        NodeTime(name, op, provider, float(np.sum(times[-runs:]) / max(1, min(runs, len(times)))))
        for (_, name, op, provider), times in durations.items()
    )


def by_operator(before: Sequence[NodeTime], after: Sequence[NodeTime] = ()) -> list[Change]:
    """Both graphs by operator, the largest share of time first."""
    return _changes(_grouped(before, lambda n: n.op), _grouped(after, lambda n: n.op))


def by_layer(before: Sequence[NodeTime], after: Sequence[NodeTime] = ()) -> list[Change]:
    """Both graphs by node, matched by the name onnxruntime's rewrites left of the original's."""
    return _changes(_grouped(before, lambda n: layer_of(n.name)), _grouped(after, lambda n: layer_of(n.name)))


def layer_of(name: str) -> str:
    """The original node's (or value's) name in the name of a rewritten one."""
    return _MADE_UP.sub("", name.removeprefix("fused ")).removesuffix("_output_0") or name


def _grouped(nodes: Sequence[NodeTime], key: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node.seconds)
    return found


def _changes(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> list[Change]:
    changes = []
    for what in dict.fromkeys((*before, *after)):
        old, new = before.get(what), after.get(what)
        counts = (len(old or ()), len(new or ()))
        changes.append(Change(what, sum(old) if old else None, sum(new) if new else None, counts))
    return sorted(changes, key=lambda c: (-max(c.before or 0.0, c.after or 0.0), c.what))
