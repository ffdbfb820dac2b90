"""What a node costs more inside its model than alone: its data has left the cache meanwhile.

Alone, a node that is timed again and again finds its weights and activations in the cache. Within a model
other nodes' have taken their place: weights come from the third-level cache or from memory in every run,
activations where they are larger than what stays in the second level. How much that costs depends on the
kernel: onnxruntime's blocked convolutions wait for every weight, its matrix products fetch ahead and hardly
notice. So the dense model is run under onnxruntime's own profiler; what its nodes take there beyond their
time alone is laid on a constant a node and on the bytes of weights and of large activations, at one rate for
each kind of kernel, by least squares. Kernels that the dense model doesn't run get half of the others' mean:
with none and with all of it, cuts that fall off the blocked layout came out as much too fast as too slow.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.hardware.points import nonnegative
from condensec.hardware.protocol import pinned
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx

    from condensec.hardware.isolate import Isolated
    from condensec.runner import Arrays

_SECONDS = 0.5  # of profiling, at least _RUNS
_RUNS, _MOST = 20, 500
_SLOWEST = 5e-10  # seconds a byte (2 GB/s): more isn't a matter of memory
_LONGEST = 3e-6  # seconds a node: more isn't a matter of calling a kernel
_EVEN = 2e-6  # seconds: below that a node's time is known no better for being short
_NODES_PER_TERM = 2
_UNSEEN = 0.5
_L2 = 1 << 20  # bytes, where the system doesn't tell


@dataclass(frozen=True)
class Surcharge:
    """Seconds that a node costs on top of its own inside the model.

    Attributes:
        weights: seconds a byte of weights by kind of kernel (`kind_of`); "" = any other.
        moved: seconds a byte of activations beyond ``free`` by kind of kernel, likewise.
        free: bytes that stay in the cache.
        fixed: seconds of every node.
        every: seconds a byte of all data, where nothing was profiled.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    free: int = 0
    fixed: float = 0.0
    every: float = 0.0

    def of(self, node: Isolated) -> float:
        """Seconds on top of the node's own."""
        return self.at(kind_of(node), node.weight_bytes, node.bytes - node.weight_bytes)

    def at(self, kind: str, weights: float, moved: float) -> float:
        """Seconds on top for a kernel with so many bytes of weights and of activations, in and out."""
        per_weight, per_moved = (rates.get(kind, rates.get("", 0.0)) for rates in (self.weights, self.moved))
        own = per_weight * weights + per_moved * max(0.0, moved - self.free)
        return self.fixed + self.every * (weights + moved) + own

    def within(self, nodes: Sequence[Isolated], seconds: float) -> Surcharge:
        """The same, or less of it: no more than so many seconds for all of these nodes."""
        share = min(1.0, max(0.0, seconds) / max(sum(map(self.of, nodes)), 1e-12))
        weights, moved = (
            {kind: share * rate for kind, rate in rates.items()} for rates in (self.weights, self.moved)
        )
        return Surcharge(weights, moved, self.free, share * self.fixed, share * self.every)


def kind_of(node: Isolated) -> str:
    """The kind of kernel: operator and domain."""
    return f"{node.node.domain}:{node.node.op_type}"


def surcharge(nodes: Sequence[Isolated], alone: Sequence[float], inside: Sequence[float]) -> Surcharge:
    """Rates from the nodes of one model.

    Args:
        nodes: the nodes.
        alone: seconds of each, timed alone; 0 where that wasn't possible.
        inside: seconds of each within the model.

    The two were taken at different moments: a change of the clock between them is a factor of its own.
    """
    free = l2_bytes() // 2
    have, want = np.array(alone), np.array(inside)
    weights = np.array([node.weight_bytes for node in nodes], np.float64)
    moved = np.array([max(0, node.bytes - node.weight_bytes - free) for node in nodes], np.float64)
    names = [kind_of(node) for node in nodes]
    kinds = sorted(set(names))
    member = np.array([[name == kind for kind in kinds] for name in names], np.float64)
    if len(nodes) < _NODES_PER_TERM * (2 + 2 * len(kinds)):  # too few to tell kinds apart
        member = np.ones((len(nodes), 1))
    terms = np.concatenate(
        [have[:, None], np.ones((len(nodes), 1)), weights[:, None] * member, moved[:, None] * member], axis=1
    )
    even = (have > 0) / np.sqrt(have + _EVEN)
    clock, fixed, *rates = nonnegative(terms * even[:, None], want * even)
    if clock <= 0:
        return Surcharge(free=free)
    found = []
    for rate, size in zip(np.array(rates).reshape(2, -1) / clock, (weights, moved), strict=True):
        capped = np.minimum(_SLOWEST, rate)
        each = np.broadcast_to(capped, len(kinds))
        mean = float((member @ capped) @ size / max(1.0, size.sum()))
        found.append({**dict(zip(kinds, each.tolist(), strict=True)), "": _UNSEEN * mean})
    return Surcharge(found[0], found[1], free, min(_LONGEST, float(fixed / clock)))


def inside_seconds(graph: onnx.ModelProto, feeds: Arrays, threads: int, whole: float) -> list[float]:
    """Seconds of each node of an optimised graph within a run of it: medians of the runtime's own profile.

    Args:
        graph: the graph.
        feeds: inputs of one call.
        threads: intra-op threads.
        whole: seconds of a run without the profiler, whose own cost a node is taken off.
    """
    named = type(graph)()
    named.CopyFrom(graph)
    for i, node in enumerate(named.graph.node):
        node.name = f"n{i}"
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder, pinned(threads):
        session = Session(named, threads=threads, optimize=False, profile=Path(folder) / "profile")
        call = session.prepared(feeds)
        start, done = time.perf_counter(), 0
        while done < _RUNS or (time.perf_counter() - start < _SECONDS and done < _MOST):
            call()
            done += 1
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    spent: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            # whole microseconds: half of one is lost on average
            spent.setdefault(event["name"].removesuffix("_kernel_time"), []).append(
                (event["dur"] + 0.5) * 1e-6
            )
    found = [float(np.median(spent.get(node.name, [0.0]))) for node in named.graph.node]
    profiler = max(0.0, sum(found) - whole) / max(1, len(found))
    return [max(0.0, seconds - profiler) for seconds in found]


@functools.cache
def l2_bytes() -> int:
    """Size of a core's second-level cache."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii")
    except OSError:
        return _L2
    found = re.fullmatch(r"(\d+)([KM]?)", text.strip())
    return int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2]] if found else _L2
