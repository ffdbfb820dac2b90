"""AdamW and SGD on one flat buffer, with weight averaging, gradient clipping and a schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

# ruff: noqa: TID251 (this package's own modules)
from .lanes import PIECE


class Flat:
    """Named arrays as views of one contiguous float32 buffer.

    Args:
        arrays: name -> initial value.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.buffer = np.empty(sum(a.size for a in arrays.values()), np.float32)
        self.views: dict[str, np.ndarray] = {}
        start = 0
        for name, array in arrays.items():
            view = self.buffer[start : start + array.size].reshape(array.shape)
            view[...] = array
            self.views[name] = view
            start += array.size

    def places(self) -> Iterator[tuple[str, slice]]:
        """Where each array is in the buffer."""
        start = 0
        for name, view in self.views.items():
            yield name, slice(start, start + view.size)
            start += view.size

    def like(self) -> Flat:
        """The same layout, zeros."""
        return Flat({name: np.zeros_like(view) for name, view in self.views.items()})


@dataclass(frozen=True)
class Settings:
    """How the weights move.

    Attributes:
        kind: "adamw", or "sgd": momentum on gradients scaled to a root mean square of 1, so that both take
            steps of the same size.
        lr: peak step; relative to each weight's own size where `relative`.
        relative: scale each tensor's step by its root mean square, as Adafactor does (Shazeer & Stern
            2018): graphs of every kind then train at the same rate.
        weight_decay: decoupled (Loshchilov & Hutter 2019), on tensors of two or more axes.
        clip: largest gradient norm; larger ones are scaled down.
        warmup: share of the whole run in which the step grows from zero.
        floor: the schedule's last value, as a share of the peak.
    """

    kind: str = "adamw"
    lr: float = 2e-3
    relative: bool = True
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: float = 0.05
    floor: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8

    @classmethod
    def of(cls, given: dict[str, Any]) -> Settings:
        """From a request; unknown keys are left out."""
        return cls(**{k: v for k, v in given.items() if k in cls.__dataclass_fields__})


def schedule(progress: float, settings: Settings) -> float:
    """Factor of the step at a share of the run in [0, 1]: linear warm-up, then a cosine to the floor."""
    if progress < settings.warmup:
        return max(progress / settings.warmup, 1e-3)
    share = min((progress - settings.warmup) / max(1 - settings.warmup, 1e-9), 1.0)
    return settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Piece:
    """Weights that are moved at a time: a part of a large tensor, or several small ones.

    Attributes:
        where: in the buffers.
        scale: of the step; one number, or one for each weight.
        weight_decay: as `scale`.
    """

    where: slice
    scale: Any
    weight_decay: Any


class Optimizer:
    """Moves the weights of a `Flat` by the gradients of another of the same layout.

    Args:
        weights: what is moved.
        gradients: read at every step.
        settings: how.
        average_decay: of the average, a step.
        fixed: mask of weights that are zero and stay so.
        threads: that share the work; the result doesn't depend on them.

    Attributes:
        settings: may be replaced between two steps.
        decay: of the average, a step.
        step_count: steps done.
        average: exponential moving average of the weights.
    """

    def __init__(
        self,
        weights: Flat,
        gradients: Flat,
        settings: Settings,
        average_decay: float,
        fixed: np.ndarray | None = None,
        threads: int = 1,
    ) -> None:
        self._weights = weights
        self._gradients = gradients
        self._keep = _kept(fixed)  # 0 at zeros that stay: with no gradient there is no moment and no step
        self.settings = settings
        self.decay = average_decay
        self.step_count = 0
        self.first = np.zeros_like(weights.buffer)
        self.second = np.zeros_like(weights.buffer)
        self.average = weights.buffer.copy()
        # of the weights given, once: a run that diverged has none to go by
        pieces = list(self._pieces())
        self._shares = [pieces[i::threads] for i in range(min(threads, len(pieces)))]
        self._pool = ThreadPoolExecutor(max(len(self._shares), 1))

    def _pieces(self) -> Iterator[Piece]:
        """All weights, in pieces of at most `PIECE`."""
        few: list[tuple[int, int, float, float]] = []  # small tensors: a piece of its own costs more
        for tensor in self._measure():
            if few and tensor[1] - few[0][0] > PIECE:
                yield _together(few)
                few = []
            start, stop, scale, decay = tensor
            if stop - start > PIECE:
                for low in range(start, stop, PIECE):
                    yield Piece(slice(low, min(low + PIECE, stop)), scale, decay)
            else:
                few.append(tensor)
        if few:
            yield _together(few)

    def _measure(self) -> Iterator[tuple[int, int, float, float]]:
        """(start, stop, step scale, weight decay) of each tensor."""
        for name, at in self._weights.places():
            view = self._weights.views[name]
            rms = float(np.sqrt(np.mean(np.square(view, dtype=np.float64)))) if view.size else 1.0
            scale = max(rms, 1e-3) if self.settings.relative else 1.0
            decay = self.settings.weight_decay if view.ndim >= 2 else 0.0
            yield at.start, at.stop, scale, decay

    def gradient_norm(self) -> float:
        """Euclidean norm of all gradients; NaN or inf if one of them is. Those of fixed zeros are cleared."""
        buffer = self._gradients.buffer
        if self._keep is not None:
            buffer *= self._keep
        return math.sqrt(float(np.dot(buffer, buffer)))

    def step(self, progress: float, norm: float) -> None:
        """One update of weights and average.

        Args:
            progress: share of the run done, for the schedule.
            norm: what `gradient_norm` gave, which is asked first.
        """
        s = self.settings
        self.step_count += 1
        factor = schedule(progress, s) * s.lr
        shrink = min(1.0, s.clip / norm) if s.clip > 0 and norm > 0 else 1.0
        if s.kind == "sgd" and norm > 0:
            shrink = math.sqrt(self._gradients.buffer.size) / norm
        # The average must not remember the start for longer than the run is old.
        decay = min(self.decay, (1 + self.step_count) / (10 + self.step_count))

        def move(pieces: Sequence[Piece]) -> None:
            space = np.empty((2, PIECE), np.float32)
            for piece in pieces:
                self._move(piece, factor, shrink, decay, space)

        list(self._pool.map(move, self._shares))

    def _move(self, piece: Piece, factor: float, shrink: float, decay: float, space: np.ndarray) -> None:
        """One piece; what is computed on the way goes to `space`."""
        s, at = self.settings, piece.where
        w, m, v, a = self._weights.buffer[at], self.first[at], self.second[at], self.average[at]
        g, t = space[:, : w.size]
        np.multiply(self._gradients.buffer[at], np.float32(shrink), out=g)
        np.subtract(g, m, out=t)
        t *= 1 - s.beta1
        m += t
        rate = piece.scale * factor
        if s.kind == "sgd":
            np.multiply(m, rate, out=t)
        else:
            np.multiply(g, g, out=g)
            g -= v
            g *= 1 - s.beta2
            v += g
            # (m / fix1) / (sqrt(v / fix2) + epsilon), the corrections of single numbers taken together
            fix1 = 1 - s.beta1**self.step_count
            root = math.sqrt(1 - s.beta2**self.step_count)
            np.sqrt(v, out=g)
            g += s.epsilon * root
            np.divide(m, g, out=t)
            t *= rate * (root / fix1)
        if np.any(piece.weight_decay):
            w *= 1 - factor * piece.weight_decay
        w -= t
        np.subtract(w, a, out=t)
        t *= 1 - decay
        a += t

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on later."""
        return {
            "weights": self._weights.buffer,
            "first": self.first,
            "second": self.second,
            "average": self.average,
            "step_count": np.asarray(self.step_count),
        }

    def fix(self, zeros: np.ndarray | None) -> None:
        """Weights that are zero from now on, as a mask of the buffer; None: all may move."""
        self._keep = _kept(zeros)
        if self._keep is not None:
            for buffer in (self._weights.buffer, self.first, self.second, self.average):
                buffer *= self._keep
                buffer += 0.0  # no negative zeros

    def restart(self, weights: np.ndarray) -> None:
        """Begin anew from some weights, nothing remembered."""
        self._weights.buffer[:] = weights
        self.average[:] = weights
        self.first[:] = 0
        self.second[:] = 0
        self.step_count = 0

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`."""
        self._weights.buffer[:] = state["weights"]
        self.first[:] = state["first"]
        self.second[:] = state["second"]
        self.average[:] = state["average"]
        self.step_count = int(state["step_count"])


def _kept(zeros: np.ndarray | None) -> np.ndarray | None:
    """1 where weights may move; a product with it takes a tenth of the time that setting by a mask does."""
    return None if zeros is None else (~zeros).astype(np.float32)


def _together(tensors: Sequence[tuple[int, int, float, float]]) -> Piece:
    """Tensors that follow one another."""
    sizes = [stop - start for start, stop, _, _ in tensors]
    scales, decays = (np.repeat(np.array([t[i] for t in tensors], np.float32), sizes) for i in (2, 3))
    return Piece(slice(tensors[0][0], tensors[-1][1]), scales, decays if decays.any() else 0.0)
