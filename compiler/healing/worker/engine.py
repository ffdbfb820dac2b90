"""Gradient sessions of onnxruntime-training: loss and gradients of one batch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

LOSS = "heal.loss"


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

    Args:
        forward: file of the forward graph (inputs, targets and weights in, the loss out).
        weights: name -> array; read at every call, so updates in place are seen.
        gradients: name -> array of the same shape; written at every `step`.
        threads: intra-op threads.
    """

    def __init__(
        self, forward: Path, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], threads: int
    ) -> None:
        import onnxruntime

        raw = forward.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if _cores() >= threads else "0"
        )
        providers = ["CPUExecutionProvider"]
        model = gradient_model(raw, list(weights))
        self._train = onnxruntime.InferenceSession(model, options, providers=providers)
        self._evaluate = onnxruntime.InferenceSession(raw, options, providers=providers)
        del model, raw
        self._weights, self._gradients = weights, gradients
        needed = {i.name for i in self._train.get_inputs()}
        self._bound = {n: w for n, w in weights.items() if n in needed}
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = 4

    def step(self, feeds: dict[str, np.ndarray]) -> float:
        """Loss of a batch; its gradients are written to the gradient arrays."""
        binding = self._train.io_binding()
        for name, array in {**feeds, **self._bound}.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(LOSS, "cpu")
        for name, array in self._gradients.items():
            binding.bind_output(f"{name}_grad", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._train.run_with_iobinding(binding, self._quiet)
        loss: np.ndarray = binding.get_outputs()[0].numpy()
        return float(loss)

    def loss(self, feeds: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> float:
        """Loss of a batch under other weights."""
        answer = self._evaluate.run([LOSS], {**feeds, **weights}, self._quiet)
        return float(answer[0])


def _cores() -> int:
    return os.cpu_count() or 1
