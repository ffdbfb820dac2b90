"""Times of single nodes, measured once and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.errors import CondensecError
from condensec.hardware import isa
from condensec.hardware.protocol import Protocol, interleave, pinned
from condensec.runner import Session, runtime_version

if TYPE_CHECKING:
    from condensec.hardware.isolate import Isolated

SCHEMA = 2
FOLDER_VARIABLE = "CONDENSEC_CACHE_DIR"
# about 0.02 s a node: enough for a median within 2%, little enough for hundreds of nodes
_SHORT = 3e-4  # seconds; below it a call's own cost would show
_COPIES = 16
_PRODUCT = 192  # rows and columns of the product that tells the clock rate
_QUICK = Protocol(discard=2, pairs=12, min_seconds=0.015, max_seconds=0.3, sample_seconds=3e-4)


def cache_folder() -> Path:
    """Where tables are kept: ``$CONDENSEC_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_dir("condensec")) / "latency"


@functools.cache
def machine() -> str:
    """Names this kind of machine, so that tables of different CPUs in one home folder don't mix."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = re.findall(r"(?m)^(?:model name|model|stepping|CPU part|CPU implementer)\s*:.*$", text)
        model = "\n".join(sorted(set(lines)))
    except OSError:
        model = platform.processor()
    return hashlib.sha256(f"{platform.machine()}{model}".encode()).hexdigest()[:8]


@dataclass
class LatencyTable:
    """Seconds of isolated nodes by signature.

    A table belongs to one runtime version, ISA, thread count and CPU model; its file says so in its name.
    A file that can't be read is measured anew.

    Clock rates change from minute to minute, and a table grows over days: so each node is timed in turns with
    a fixed matrix product, and its seconds are that ratio times what the product took when the table began.

    Attributes:
        threads: intra-op threads.
        folder: where the file is; None = `cache_folder`.
        seconds: what is known so far.
        reference: seconds of the fixed product in this table; 0 = not measured yet.
    """

    threads: int = 1
    folder: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reference: float = 0.0

    def __post_init__(self) -> None:
        known, self.reference = self._read()
        self.seconds = {**known, **self.seconds}
        self._saved = len(self.seconds)

    @property
    def path(self) -> Path:
        """The table's file."""
        version = re.sub(r"[^\w.]", "_", runtime_version())
        name = f"onnxruntime-{version}_{isa.detect()}_{machine()}_{self.threads}-threads.json"
        return (self.folder or cache_folder()) / name

    def times(self, nodes: Iterable[Isolated]) -> list[float]:
        """Seconds of each node; unknown ones are measured, each signature once."""
        found = [(node.signature, node) for node in nodes]
        unknown = {key: node for key, node in found if key not in self.seconds}
        if unknown:
            with pinned(self.threads):
                self.reference = self.reference or _quickest(_product(self.threads), self.threads)
                for key, node in (*unknown.items(), *unknown.items()):
                    # two rounds: a neighbour that is busy now may not be so a second later
                    once = self.seconds.get(key, math.inf)
                    self.seconds[key] = min(once, _time(node, self.threads, self.reference))
        return [self.seconds[key] for key, _ in found]

    def save(self) -> None:
        """Write what is new, together with what others have written meanwhile."""
        if len(self.seconds) == self._saved:
            return
        known, reference = self._read()
        if reference and self.reference:  # another process began the table meanwhile: in its clock
            factor = reference / self.reference
            self.seconds = {**{k: v * factor for k, v in self.seconds.items()}, **known}
            self.reference = reference
        merged = {**known, **self.seconds}
        doc = {"schema": SCHEMA, "threads": self.threads, "reference": self.reference, "seconds": merged}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=self.path.parent, suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(doc, file)
            os.replace(draft, self.path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        self._saved = len(self.seconds)

    def _read(self) -> tuple[dict[str, float], float]:
        """What the file holds, and its reference."""
        try:
            doc = json.loads(self.path.read_text(encoding="utf-8"))
            reference = float(doc["reference"])
            if doc["schema"] != SCHEMA or not 0 < reference < math.inf:
                return {}, 0.0
            known = {str(k): float(v) for k, v in doc["seconds"].items() if math.isfinite(v) and v >= 0}
            return known, reference
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, 0.0


def _time(node: Isolated, threads: int, reference: float) -> float:
    """Seconds of one node where the fixed product takes ``reference``."""
    try:
        call = Session(node.model(inside=True), threads=threads, optimize=False).prepared(node.feeds())
    except CondensecError:
        return 0.0  # e.g. a node that only works inside its graph; calibration covers for it
    if _shortest(call) > _SHORT:
        return max(0.0, _compared(call, threads, reference) - _overhead(threads))
    # copies make what a call costs beside the node vanish
    many = node.model(_COPIES, inside=True)
    call = Session(many, threads=threads, optimize=False).prepared(node.feeds())
    return max(0.0, (_compared(call, threads, reference) - _overhead(threads)) / _COPIES)


def _shortest(call: Callable[[], None]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _compared(call: Callable[[], None], threads: int, reference: float) -> float:
    """Best of a dozen samples over the best of the fixed product's between them, in the table's clock."""
    clocked = interleave([call, _product(threads)], _QUICK)
    spent = (clocked.cpu if threads == 1 else clocked.wall).min(axis=0)
    return float(spent[0] / max(spent[1], 1e-9) * reference)


def _quickest(call: Callable[[], None], threads: int) -> float:
    """Best of a dozen samples: on a shared machine whatever else runs can only add to it."""
    clocked = interleave([call], _QUICK)
    return float((clocked.cpu if threads == 1 else clocked.wall).min())


@functools.cache
def _product(threads: int) -> Callable[[], None]:
    """A matrix product that stays in the cache: its time tells the clock rate of the moment."""
    from onnx import TensorProto, helper, numpy_helper

    size = _PRODUCT
    weight = numpy_helper.from_array(
        (np.arange(size * size) % 17 * 0.01).astype(np.float32).reshape(size, size), "w"
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])
    s = helper.make_tensor_value_info("s", TensorProto.INT64, [2])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Shape", ["y"], ["s"])]
    graph = helper.make_graph(nodes, "product", [x], [s], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.full((size, size), 0.1, np.float32)}
    return Session(model, threads=threads, optimize=False).prepared(feeds)


@functools.cache
def _overhead(threads: int) -> float:
    """Seconds a call costs beside the node itself: that of a Relu on one number."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    call = Session(model, threads=threads, optimize=False).prepared({"x": np.zeros(1, np.float32)})
    return _quickest(call, threads)
