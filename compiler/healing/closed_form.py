"""Closed-form repair: after a cut, weights are re-solved by least squares, layer by layer, without labels.

Each layer gets the student's own input as it is by then (with all earlier layers repaired) and is asked
for what the original gave at the same place, at the channels that are left. Where a residual sum follows,
the sum is what has to come out right, so that a layer also makes up for what the trunk lost before it.
Every change must lower the error on held-out samples, or it isn't made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from condensec.errors import HealError
from condensec.healing import rows, solve, systems
from condensec.healing.batches import batches
from condensec.healing.layers import Layer, find_layers, graph_outputs, ordered
from condensec.healing.stepper import Stepper

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.data import Samples
    from condensec.plan import Plan

_HELD_OUT = 0.2
_MOST_FEATURES = 5000  # of one system; above, the solve takes longer than it is worth
_GAIN = 0.999  # a solution must be at least this much better on held-out samples
_ROUNDING = 1e-11  # a relative squared error that is float32's own: nothing is left to repair


@dataclass(frozen=True)
class LayerRepair:
    """What happened to one layer.

    Attributes:
        node: name of the node (or its output where it has none).
        weight: name of its weight.
        before: hold-out error before, relative to the variance of the target.
        after: the same after.
        ridge: strength chosen; inf if the layer stays as it is.
        accepted: the weights were changed.
    """

    node: str
    weight: str
    before: float
    after: float
    ridge: float
    accepted: bool


@dataclass(frozen=True)
class RepairResult:
    """What repair gives back.

    Attributes:
        weights: name -> new value, changed ones only.
        layers: what happened to each layer that was looked at.
        seconds: wall time.
        skipped: (weight, reason) of layers that weren't looked at.
    """

    weights: Mapping[str, np.ndarray]
    layers: tuple[LayerRepair, ...]
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()


def repair(
    teacher: ir.Model,
    student: ir.Model,
    samples: Samples,
    plan: Plan,
    *,
    threads: int = 0,
    seed: int = 0,
    freeze: str | None = None,
    most_rows: int = rows.MOST_ROWS,
) -> RepairResult:
    """Re-solve a cut student's weights against its original.

    Args:
        teacher: the original; nodes, values and weights have the names they have in the student.
        student: the cut model; not changed.
        samples: a few hundred, unlabelled.
        plan: its `slices` say which channels are left.
        threads: for running the models; 0 = all cores.
        seed: of the choice of positions.
        freeze: regular expression; layers in whose name, or in that of their weight, it's found are left.
        most_rows: positions that one layer is fitted to, at most; fewer are quicker and less exact.

    Raises:
        HealError: the models don't fit the samples.
    """
    begun = time.monotonic()
    originals, cut = _proto(teacher), _proto(student)
    if not len(samples):
        raise HealError("closed-form repair needs samples")
    given = batches(cut, originals, sorted(graph_outputs(cut)), samples)
    run = _Run(originals, cut, given, plan, threads or _cores(), seed)
    run.freeze = re.compile(freeze) if freeze else None
    run.most_rows = most_rows
    try:
        run.go()
    finally:
        run.close()
    return RepairResult(run.changed, tuple(run.log), time.monotonic() - begun, tuple(run.skipped))


class _Run:
    """One pass through the network."""

    def __init__(
        self,
        teacher: onnx.ModelProto,
        student: onnx.ModelProto,
        batches: list[dict[str, np.ndarray]],
        plan: Plan,
        threads: int,
        seed: int,
    ) -> None:
        self._teacher, self._student = Stepper(teacher, batches, threads), Stepper(student, batches, threads)
        self._layers, skipped = find_layers(self._student, graph_outputs(student), plan.slices)
        self._seed = seed
        self.freeze: re.Pattern[str] | None = None
        self.most_rows = rows.MOST_ROWS
        held = max(1, round(_HELD_OUT * len(batches)))
        self._held = [i >= len(batches) - held for i in range(len(batches))]
        self.changed: dict[str, np.ndarray] = {}
        self.log: list[LayerRepair] = []
        self.skipped: list[tuple[str, str]] = skipped

    def close(self) -> None:
        """Free what was kept on the way."""
        self._teacher.close()
        self._student.close()

    def go(self) -> None:
        """All layers in graph order; those that share a weight together, once the last of them can be."""
        uses: dict[str, list[Layer]] = {}
        for layer in self._layers:
            uses.setdefault(layer.weight, []).append(layer)
        for number, (weight, layers, entangled) in enumerate(ordered(uses, self._student)):
            reason = entangled or next(filter(None, map(self._unfit, layers)), "")
            if reason:
                self.skipped.append((weight, reason))
            else:
                self._repair(layers, number)

    def _unfit(self, layer: Layer) -> str:
        if self.freeze and any(map(self.freeze.search, (layer.weight, layer.node.proto.name))):
            return "frozen by the user"
        weight = self._used(layer)
        features = rows.shape_of(layer, weight).features
        if features > _MOST_FEATURES:
            return f"{features} inputs, more than {_MOST_FEATURES}"
        width = self._width(layer)
        name = "" if layer.node.op == "MatMul" else layer.node.input(2)
        fixed = self._student.weights.get(name)
        if name and (fixed is None or fixed.size not in (1, width)):
            return "its bias is computed, or another one for each sample"
        made = {name for node in self._teacher.nodes for name in node.output}
        return "" if layer.target in made else "the original has no value of its output's name"

    def _used(self, layer: Layer) -> np.ndarray:
        """A layer's weight as its node gets it."""
        return layer.view.read(self._student.weights[layer.weight])

    def _width(self, layer: Layer) -> int:
        """Output channels."""
        shape = rows.shape_of(layer, self._used(layer))
        return shape.groups * shape.outputs

    def _bias(self, layer: Layer) -> np.ndarray:
        """What is added as it is: its own bias, or one that other nodes read too and that stays."""
        name = layer.bias or ("" if layer.node.op == "MatMul" else layer.node.input(2))
        value = self._student.weights[name] if name else np.zeros(1, np.float32)
        return np.array(np.broadcast_to(value.reshape(-1), (self._width(layer),)), np.float32)

    def _repair(self, layers: list[Layer], number: int) -> None:
        layer, shared = layers[0], len(layers) > 1
        made = [self._problem(one, number, 1 / len(layers)) for one in layers]
        problems = [problem for problem in made if problem is not None]
        if len(problems) < len(made):
            self.skipped.append((layer.weight, "units were cut out of its rows: they aren't the original's"))
            return
        student = self._student.weights
        old = self._used(layer)
        matrix = rows.as_matrix(layer, old)
        bias = self._bias(layer)
        if any(problem.y.shape[1] != len(bias) for problem in problems):
            self.skipped.append((layer.weight, "which of the original's channels it has isn't known"))
            return
        if shared:  # each has a bias of its own, or none: they stay
            problem = systems.together(problems, [self._bias(one) for one in layers])
            bias = np.zeros_like(bias)
        else:
            problem = problems[0]
        free = bool(layer.bias or layer.norm) and not shared
        fits = systems.solved(problem, matrix, bias, free)
        new = layer.view.write(rows.from_matrix(layer, np.stack([f.weight for f in fits]), old))
        if new.dtype != np.float32:  # rounded to what the file stores: judged as it will be
            fits = systems.judged(problem, rows.as_matrix(layer, layer.view.read(new)), fits)
        before, after = (float(np.mean([getattr(f, k) for f in fits])) for k in ("before", "after"))
        accepted = before > _ROUNDING and after < _GAIN * before
        name = layer.node.proto.name or layer.node.outputs[0]
        ridge = float(np.median([f.ridge for f in fits]))
        self.log.append(LayerRepair(name, layer.weight, before, after, ridge, accepted))
        if not accepted:
            return
        new_bias = np.concatenate([f.bias for f in fits])
        self._set(layer.weight, new)
        if layer.bias and free:
            self._set(layer.bias, new_bias)
        elif layer.norm and free:  # a constant added before the normalization is a constant off its mean
            mean = layer.norm.names[2]
            self._set(mean, (student[mean] - (new_bias - bias)).astype(np.float32))

    def _set(self, name: str, value: np.ndarray) -> None:
        self._student.weights[name] = value
        self.changed[name] = value

    def _problem(self, layer: Layer, number: int, share: float) -> solve.Problem | None:
        """The layer's rows: the student's input beside the teacher's output, both at chosen positions.

        Args:
            layer: one layer.
            number: its place, for the choice.
            share: of the usual number of rows.

        Returns:
            None where student and teacher don't have the same rows (heads in the batch that were cut).
        """
        mine = self._student.get([layer.x, *([layer.other] if layer.other else [])])
        theirs = self._teacher.get([layer.target])[layer.target]
        if any(
            rows.count(layer, x) != rows.count(layer, y) for x, y in zip(mine[layer.x], theirs, strict=True)
        ):
            return None
        weight = self._used(layer)
        shape = rows.shape_of(layer, weight)
        wanted = int(share * rows.wanted_rows(shape, self.most_rows))
        chosen = rows.picks(layer, theirs, wanted, self._seed + number)
        kernel = tuple(weight.shape[2:])
        kept = slice(None) if layer.kept is None else list(layer.kept)
        xs, ys, offsets, held = [], [], [], []
        for i, index in enumerate(chosen):
            x = mine[layer.x][i]
            xs.append(rows.patches(layer, x, theirs[i].shape, kernel, index))
            ys.append(rows.channels_last(layer, theirs[i], index)[:, kept])
            if layer.other:
                other = _spread(mine[layer.other][i], theirs[i], layer.axis)
                offsets.append(rows.channels_last(layer, other, index))
            held.append(np.full(len(index), self._held[i]))
        self._student.release([])
        self._teacher.release([])
        offset = np.concatenate(offsets) if offsets else None
        return self._before_norm(layer, np.concatenate(xs), np.concatenate(ys), np.concatenate(held), offset)

    def _before_norm(
        self,
        layer: Layer,
        x: np.ndarray,
        target: np.ndarray,
        held: np.ndarray,
        offset: np.ndarray | None,
    ) -> solve.Problem:
        """What the layer itself must give: the sum's other operand taken off, the normalization undone."""
        wanted = target if offset is None else target - offset
        if layer.norm is None:
            return solve.Problem(x, wanted, held, layer.rectified, offset)
        scale, bias, mean, variance = (self._student.weights[n] for n in layer.norm.names)
        factor = scale / np.sqrt(variance + layer.norm.epsilon)
        own = ((wanted - bias) / factor + mean).astype(np.float32)
        # relu(z) counts with z = factor (y - mean) + bias + offset, so in y's own scale the zero is moved;
        # a negative factor would turn the rectifier round.
        shift = (bias + (0.0 if offset is None else offset)) / factor - mean
        moved = np.ascontiguousarray(np.broadcast_to(shift, own.shape), np.float32)
        return solve.Problem(x, own, held, layer.rectified and bool((factor > 0).all()), moved)


def _spread(array: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """Broadcast the other operand of a sum to the sum's positions (its channels may be fewer: cut)."""
    if array.ndim < like.ndim:
        array = array.reshape((1,) * (like.ndim - array.ndim) + array.shape)
    shape = list(like.shape)
    shape[axis] = array.shape[axis]
    return np.broadcast_to(array, shape)


def _proto(model: ir.Model) -> onnx.ModelProto:
    from condensec.serialized import whole

    return model if isinstance(model, onnx.ModelProto) else whole(model)


def _cores() -> int:
    import os

    return os.cpu_count() or 1
