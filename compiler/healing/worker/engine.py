"""Gradient sessions of onnxruntime-training: loss and gradients of one batch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

LOSS = "heal.loss"
Arrays = dict[str, np.ndarray]


def _definition(op: str, inputs: list[str], outputs: list[str]) -> object:
    from onnxruntime.capi import _pybind_state as native

    node = native.GradientNodeDefinition()
    node.op_type, node.domain = op, ""
    node.inputs, node.outputs, node.attributes = inputs, outputs, []
    return node


def register_stop() -> None:
    """Sum, which has no gradient of its own here and is left only as a mark, passes none: zeros."""
    from onnxruntime.capi import _pybind_state as native

    zeros = [_definition("Shape", ["I(0)"], ["shape"]), _definition("ConstantOfShape", ["shape"], ["GI(0)"])]
    native.register_gradient_definition("::Sum", zeros)


def gradient_model(forward: bytes, names: list[str]) -> bytes:
    """The forward graph with the gradients of its loss towards `names` as further outputs."""
    from onnxruntime.capi import _pybind_state as native

    register_stop()
    builder = native.GradientGraphBuilder(forward, {LOSS}, set(names), LOSS)
    builder.build()
    model: bytes = builder.get_model()
    return model


class Engine:
    """Two sessions over the same weights: one with gradients, one that only gives the loss.

    A batch is shared out: every thread runs a part of it through the whole graph by itself, and the gradients
    are averaged. Small convolutions gain little from several threads in one kernel; this way all of a step is
    parallel. Parts beyond the number of threads follow one after another (gradient accumulation), so a model
    of fixed batch size can be trained with larger batches, too.

    Args:
        forward: file of the forward graph (inputs, targets and weights in, the loss out), for one part.
        weights: name -> array; read at every call, so updates in place are seen.
        gradients: name -> array of the same shape; written at every `step`.
        threads: in all.
        part: samples the graph takes.
        batch: samples of a step, a multiple of it.
    """

    def __init__(
        self,
        forward: Path,
        weights: Arrays,
        gradients: Arrays,
        threads: int,
        part: int,
        batch: int,
    ) -> None:
        import onnxruntime

        raw = forward.read_bytes()
        self._part, self._parts = part, max(1, batch // part)
        self._lanes = min(threads, self._parts)
        each = max(1, threads // self._lanes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = each
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if _cores() >= each else "0")
        providers = ["CPUExecutionProvider"]
        model = gradient_model(raw, list(weights))
        self._train = onnxruntime.InferenceSession(model, options, providers=providers)
        self._evaluate = onnxruntime.InferenceSession(raw, options, providers=providers)
        del model, raw
        self._weights = weights
        needed = {i.name for i in self._train.get_inputs()}
        self._bound = {n: w for n, w in weights.items() if n in needed}
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = 4
        self._pool = ThreadPoolExecutor(self._lanes)
        # The first lane writes where the gradients are wanted, the others beside it.
        copies = [{n: np.zeros_like(g) for n, g in gradients.items()} for _ in range(self._lanes - 1)]
        self._into: list[Arrays] = [gradients, *copies]

    def step(self, feeds: Arrays) -> float:
        """Mean loss of a batch; the gradients of it are written to the gradient arrays."""
        losses: list[float] = []
        total: list[np.ndarray] | None = None
        for start in range(0, self._parts, self._lanes):
            lanes = range(min(self._lanes, self._parts - start))
            losses += self._pool.map(self._gradients, [self._cut(feeds, start + i) for i in lanes], lanes)
            if self._parts == 1:
                return losses[0]
            # in order, so that rounding is the same every time
            for i in lanes:
                found = list(self._into[i].values())
                total = [g.copy() for g in found] if total is None else list(map(np.add, total, found))
        assert total is not None
        for gradient, value in zip(self._into[0].values(), total, strict=True):
            np.multiply(value, np.float32(1 / self._parts), out=gradient)
        return sum(losses) / len(losses)

    def _cut(self, feeds: Arrays, number: int) -> Arrays:
        part = slice(number * self._part, (number + 1) * self._part)
        return {name: array[part] for name, array in feeds.items()}

    def _gradients(self, feeds: Arrays, lane: int) -> float:
        binding = self._train.io_binding()
        for name, array in {**feeds, **self._bound}.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(LOSS, "cpu")
        for name, array in self._into[lane].items():
            binding.bind_output(f"{name}_grad", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._train.run_with_iobinding(binding, self._quiet)
        loss: np.ndarray = binding.get_outputs()[0].numpy()
        return float(loss)

    def loss(self, feeds: Arrays, weights: Arrays) -> float:
        """Mean loss of a batch under other weights."""

        def one(number: int) -> float:
            return float(self._evaluate.run([LOSS], {**self._cut(feeds, number), **weights}, self._quiet)[0])

        return sum(self._pool.map(one, range(self._parts))) / self._parts


def _cores() -> int:
    return os.cpu_count() or 1
