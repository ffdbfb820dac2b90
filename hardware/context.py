"""What a node costs more inside its model than alone: its data has left the cache meanwhile.

Alone, a node that is timed again and again finds its weights and activations in the cache. Within a model
that is so only for what is small. How much the rest costs depends on the kernel: onnxruntime's blocked
convolutions wait for every weight, its matrix products fetch ahead and hardly notice. So the dense model is
run under onnxruntime's own profiler; what its nodes take there beyond their time alone is charged to the
bytes each moves beyond half the second-level cache, at one rate for each kind of kernel. Kernels that the
dense model doesn't run get none.
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

from condensec.hardware.protocol import pinned
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx

    from condensec.hardware.isolate import Isolated
    from condensec.runner import Arrays

_SECONDS = 0.5  # of profiling, at least _RUNS
_RUNS, _MOST = 20, 500
_SLOWEST = 5e-10  # seconds a byte (2 GB/s): more isn't a matter of memory
_L2 = 1 << 20  # bytes, where the system doesn't tell


@dataclass(frozen=True)
class Surcharge:
    """Seconds that a node's data costs inside the model.

    Attributes:
        rates: seconds a byte by kind of kernel (`kind_of`).
        free: bytes that stay in the cache.
        every: seconds a byte for kinds that have no rate.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    free: int = 0
    every: float = 0.0

    def of(self, node: Isolated) -> float:
        """Seconds on top of the node's own."""
        return self.at(kind_of(node), node.bytes)

    def at(self, kind: str, size: float) -> float:
        """Seconds on top for a kernel that moves so many bytes."""
        return self.rates.get(kind, self.every) * max(0.0, size - self.free)


def kind_of(node: Isolated) -> str:
    """The kind of kernel: operator and domain."""
    return f"{node.node.domain}:{node.node.op_type}"


def surcharge(nodes: Sequence[Isolated], alone: Sequence[float], inside: Sequence[float]) -> Surcharge:
    """Rates from the nodes of one model.

    Args:
        nodes: the nodes.
        alone: seconds of each, timed alone.
        inside: seconds of each within the model.

    The two were taken at different moments: the clock's change between them is the median ratio, weighted
    with time.
    """
    free = l2_bytes() // 2
    have, want = np.array(alone), np.array(inside)
    drift = _median(want[have > 0] / have[have > 0], have[have > 0])
    spent: dict[str, list[float]] = {}
    for node, excess in zip(nodes, want / drift - have, strict=True):
        over = max(0, node.bytes - free)
        if over:
            total = spent.setdefault(kind_of(node), [0.0, 0.0])
            total[0] += excess
            total[1] += over
    rates = {
        kind: min(_SLOWEST, float(excess) / over) for kind, (excess, over) in spent.items() if excess > 0
    }
    return Surcharge(rates, free)


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


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted median; 1 where there is nothing."""
    if not len(values) or weights.sum() <= 0:
        return 1.0
    order = np.argsort(values)
    middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return max(1e-9, float(values[order][min(middle, len(values) - 1)]))
