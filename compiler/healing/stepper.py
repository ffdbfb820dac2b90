"""Run a graph piece by piece, keeping only the values that are still needed.

Closed-form repair goes through a network layer by layer and changes weights on the way. Running the whole
student again after each layer would cost its depth times over; so the values on the frontier are kept and
each piece runs once, with the weights as they are by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from condensec.healing.graph import reads

_SPILL = 1 << 28  # bytes of one value's batches above which they go to a file
_CONSTANT = "Constant"


class Stepper:
    """A model being run front to back.

    Args:
        model: any model; its weights are read from and changed in `weights`.
        batches: inputs, batch by batch.
        threads: for onnxruntime.

    Attributes:
        weights: initializers and Constant nodes by name; replace an entry to change a weight.
        nodes: the model's nodes without Constant, in topological order.
    """

    def __init__(self, model: onnx.ModelProto, batches: list[dict[str, np.ndarray]], threads: int) -> None:
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            value = constant_value(node)
            if value is None:
                self.nodes.append(node)
            else:
                self.weights[node.output[0]] = value
        self._model, self._threads, self._count = model, threads, len(batches)
        self._producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._readers: dict[str, set[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in reads(node):
                self._readers.setdefault(name, set()).add(i)
        names = [i.name for i in model.graph.input if i.name not in self.weights]
        self._held = {name: [batch[name] for batch in batches] for name in names}
        self._done: set[int] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Delete what was spilled to disk."""
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def get(self, names: Iterable[str]) -> dict[str, list[np.ndarray]]:
        """Values batch by batch; what leads to them is run, and values nobody needs any more are dropped."""
        wanted = list(dict.fromkeys(names))
        missing = [n for n in wanted if n not in self._held]
        if missing:
            self._run(self._needed(missing), missing)
        return {name: self._held[name] for name in wanted}

    def ancestors(self, name: str) -> set[int]:
        """Indices of all nodes a value depends on."""
        found: set[int] = set()
        stack = [name]
        while stack:
            index = self._producer.get(stack.pop())
            if index is not None and index not in found:
                found.add(index)
                stack.extend(reads(self.nodes[index]))
        return found

    def release(self, keep: Iterable[str]) -> None:
        """Drop held values whose readers have all run, but those in `keep`."""
        kept = set(keep)
        for name in list(self._held):
            if name not in kept and self._readers.get(name, set()) <= self._done:
                del self._held[name]

    def _needed(self, names: list[str]) -> list[int]:
        """Nodes between the frontier and some values, in order."""
        found: set[int] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in self._held or name in self.weights:
                continue
            index = self._producer[name]
            if index not in found:
                found.add(index)
                stack.extend(reads(self.nodes[index]))
        return sorted(found)

    def _run(self, indices: list[int], wanted: list[str]) -> None:
        """Run some nodes on every batch; hold what is wanted and what other nodes will read."""
        part = set(indices)
        made = {name for i in indices for name in self.nodes[i].output if name}
        # A value is on the new frontier if a node outside this piece that hasn't run yet reads it.
        outside = {n for n in made if self._readers.get(n, set()) - part - self._done}
        outputs = sorted(outside.union(wanted))
        session, inputs = self._session(indices, outputs)
        results: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
        for i in range(self._count):
            answers = session.run({name: self._held[name][i] for name in inputs}, outputs)
            for name in outputs:
                results[name].append(answers[name])
        self._done |= part
        for name, arrays in results.items():
            self._held[name] = self._spilled(arrays)

    def _session(self, indices: list[int], outputs: list[str]):  # type: ignore[no-untyped-def]
        from condensec.runner import Session

        nodes = [self.nodes[i] for i in indices]
        used = {name for node in nodes for name in reads(node)}
        initializers = [
            numpy_helper.from_array(self.weights[n], n) for n in sorted(used) if n in self.weights
        ]
        inputs = sorted(n for n in used if n in self._held)
        infos = []
        for name in inputs:
            array = self._held[name][0]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            infos.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
        outs = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(nodes, "piece", infos, outs, initializers)
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        model.functions.extend(self._model.functions)
        return Session(model, threads=self._threads), inputs

    def _spilled(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if sum(a.nbytes for a in arrays) < _SPILL:
            return arrays
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="condensec-repair-")
        spilled = []
        for array in arrays:
            path = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.npy"
            np.save(path, array, allow_pickle=False)
            spilled.append(np.load(path, mmap_mode="r", allow_pickle=False))
        return spilled


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """The array of a Constant node; None for other nodes and for values that aren't tensors."""
    if node.op_type != _CONSTANT or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    kind = kinds.get(attribute.name)
    return None if kind is None else np.asarray(helper.get_attribute_value(attribute), kind)
