"""Gradient sessions of onnxruntime-training: loss and gradients of one batch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .lanes import Arrays, Gradients

LOSS = "heal.loss"
_OFF = 0.02  # of the gradient: rounding, and the units whose sign it turns (a few in a million)


def gradient_model(forward: bytes, names: list[str]) -> bytes:
    """The forward graph with the gradients of its loss towards `names` as further outputs."""
    from onnxruntime.capi import _pybind_state as native

    _pass_rounding(native)
    builder = native.GradientGraphBuilder(forward, {LOSS}, set(names), LOSS)
    builder.build()
    model: bytes = builder.get_model()
    return model


def _pass_rounding(native: Any) -> None:
    """Let gradients through Round as if it weren't there: straight-through, for fake quantization.

    Only a rounding that a quantization was rewritten to gets here; of all others the graph is cut before.
    """
    node = native.GradientNodeDefinition()
    node.op_type, node.domain, node.attributes = "Identity", "", []
    node.inputs, node.outputs = ["GO(0)"], ["GI(0)"]
    native.register_gradient_definition("::Round", [node])


class Engine:
    """Sessions over the same weights: one with gradients, one that only gives the loss.

    A batch is shared out: every thread runs a part of it through the whole graph by itself, and the gradients
    are averaged. Small convolutions gain little from several threads in one kernel; this way all of a step is
    parallel. A thread runs several parts one after another (gradient accumulation) where a batch has more:
    what a part computes should stay in the cache, and a model of fixed batch size can be trained with larger
    batches this way, too.

    Args:
        files: "model" is the forward graph (inputs, targets and weights in, the loss out), for one part.
            Where it has operators without a gradient: "behind" is what gets their results as inputs, and
            is differentiated in its place; "before" computes these results. "normalized", if there, is
            differentiated in its place, too.
        weights: name -> array; read at every call, so updates in place are seen.
        gradients: name -> array of the same shape; written at every `step`.
        threads: in all.
        part: samples the graph takes.
        batch: samples of a step, a multiple of it.
        improve: makes the gradient graph faster. What it gives is compared with the graph as it was on the
            first batch, and not used if it gives something else.
        tell: hears why it isn't used.
    """

    def __init__(
        self,
        files: dict[str, Path],
        weights: Arrays,
        gradients: Arrays,
        threads: int,
        part: int,
        batch: int,
        improve: Callable[[bytes], bytes] | None = None,
        tell: Callable[[str], None] = lambda why: None,
    ) -> None:
        import onnxruntime

        raw = files["model"].read_bytes()
        self._part, self._parts = part, max(1, batch // part)
        self._lanes = min(threads, self._parts)
        each = max(1, threads // self._lanes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = each
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if _cores() >= each else "0")
        providers = ["CPUExecutionProvider"]
        other = next((files[name] for name in ("behind", "normalized") if name in files), None)
        behind = raw if other is None else other.read_bytes()
        model = gradient_model(behind, list(weights))
        faster = model if improve is None else improve(model)
        self._tell = tell
        self._plain: bytes | None = None  # the graph as it was, until the faster one was compared with it
        if faster != model:
            self._plain, model = model, faster
        self._open = partial(onnxruntime.InferenceSession, sess_options=options, providers=providers)
        self._train = self._opened(model)
        self._evaluate = onnxruntime.InferenceSession(raw, options, providers=providers)
        self._given = self._evaluate.get_inputs()
        self._known = {i.name for i in self._given}
        self._before = None
        if "before" in files:
            first = files["before"].read_bytes()
            self._before = onnxruntime.InferenceSession(first, options, providers=providers)
        del model, faster, raw, behind
        self._weights = weights
        self._needed = {i.name for i in self._train.get_inputs()}
        self._bound = {n: w for n, w in weights.items() if n in self._needed}
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = 4
        self._pool = ThreadPoolExecutor(self._lanes)
        turns = -(-self._parts // self._lanes)
        self._found = Gradients(gradients, self._lanes, turns)
        self._into = self._found.into

    def _opened(self, model: bytes) -> Any:
        """A session for gradients; for the graph as it was if this one can't be opened."""
        try:
            return self._open(model)
        except Exception as error:
            if self._plain is None:
                raise
            self._tell(f"can't be opened ({' '.join(str(error).split())[-200:]})")
            plain, self._plain = self._plain, None
            return self._open(plain)

    def _compare(self, feeds: Arrays) -> None:
        """Does the faster graph give what the one it was made of gives? If not, that one is used."""
        assert self._plain is not None
        plain, self._plain = self._plain, None
        first = self._cut(feeds, 0)
        faster, self._train = self._train, self._open(plain)
        loss = self._gradients(first, 0)
        wanted = {name: array.copy() for name, array in self._into[0].items()}
        self._train = faster  # the other one's memory is given back before this one takes any
        try:
            change = abs(self._gradients(first, 0) - loss)
        except Exception as error:
            self._tell(f"can't be run ({' '.join(str(error).split())[-200:]})")
            self._train = self._open(plain)
            return
        off = sum(float(np.square(self._into[0][n] - w).sum()) for n, w in wanted.items())
        size = sum(float(np.square(w).sum()) for w in wanted.values())
        if not (off <= _OFF**2 * size and change <= _OFF * abs(loss)) and math.isfinite(size):
            self._tell(f"is off by {100 * (off / max(size, 1e-30)) ** 0.5:.2g}% of the gradient")
            self._train = self._open(plain)

    def step(self, feeds: Arrays) -> float:
        """Mean loss of a batch; the gradients of it are written to the gradient arrays."""
        if self._plain is not None:
            self._compare(feeds)
        lanes = range(self._lanes)
        losses = [loss for of_lane in self._pool.map(partial(self._lane, feeds), lanes) for loss in of_lane]
        self._found.average(self._parts, self._pool, self._lanes)
        return sum(losses) / len(losses)

    def takes(self, feeds: Arrays) -> bool:
        """Whether samples of these shapes are what the graph is for."""
        return all(list(feeds[i.name].shape[1:]) == i.shape[1:] for i in self._given if i.name in feeds)

    def _lane(self, feeds: Arrays, lane: int) -> list[float]:
        """Losses of the parts that one thread runs, one after another."""
        losses: list[float] = []
        for number in range(lane, self._parts, self._lanes):
            losses.append(self._gradients(self._cut(feeds, number), lane))
            self._found.add(lane, first=number == lane)
        return losses

    def _cut(self, feeds: Arrays, number: int) -> Arrays:
        part = slice(number * self._part, (number + 1) * self._part)
        return {name: array[part] for name, array in feeds.items()}

    def _gradients(self, feeds: Arrays, lane: int) -> float:
        binding = self._train.io_binding()
        if self._before is not None:
            feeds = {**feeds, **self._computed_before(feeds)}
        for name, array in {**feeds, **self._bound}.items():
            if name not in self._needed:
                continue
            binding.bind_cpu_input(name, array)
        binding.bind_output(LOSS, "cpu")
        for name, array in self._into[lane].items():
            binding.bind_output(f"{name}_grad", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._train.run_with_iobinding(binding, self._quiet)
        loss: np.ndarray = binding.get_outputs()[0].numpy()
        return float(loss)

    def _computed_before(self, feeds: Arrays) -> Arrays:
        """What operators without a gradient make of the weights as they are."""
        assert self._before is not None
        given = {**feeds, **self._weights}
        wanted = {i.name: given[i.name] for i in self._before.get_inputs()}
        names = [o.name for o in self._before.get_outputs()]
        return dict(zip(names, self._before.run(names, wanted, self._quiet), strict=True))

    def loss(self, feeds: Arrays, weights: Arrays) -> float:
        """Mean loss of a batch under other weights."""
        weights = {name: array for name, array in weights.items() if name in self._known}

        def one(number: int) -> float:
            return float(self._evaluate.run([LOSS], {**self._cut(feeds, number), **weights}, self._quiet)[0])

        return sum(self._pool.map(one, range(self._parts))) / self._parts


class Engines:
    """Several of them over the same weights; the feeds' shapes say which one they are for.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def step(self, feeds: Arrays) -> float:
        """See `Engine.step`."""
        return self._of(feeds).step(feeds)

    def loss(self, feeds: Arrays, weights: Arrays) -> float:
        """See `Engine.loss`."""
        return self._of(feeds).loss(feeds, weights)

    def _of(self, feeds: Arrays) -> Engine:
        return (
            self._engines[0] if len(self._engines) == 1 else next(e for e in self._engines if e.takes(feeds))
        )


def _cores() -> int:
    return os.cpu_count() or 1
