"""AdamW and SGD on one flat buffer, with weight averaging, gradient clipping and a schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_CHUNK = 1 << 16  # elements updated at a time: temporaries stay in the cache


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


def zeros_of(weights: Flat, names: list[str]) -> np.ndarray | None:
    """Where some weights are zero, as a mask of the buffer; None without names."""
    if not names:
        return None
    fixed = np.zeros(weights.buffer.size, np.bool_)
    start = 0
    for name, view in weights.views.items():
        if name in names:
            fixed[start : start + view.size] = view.ravel() == 0
        start += view.size
    return fixed


class Optimizer:
    """Moves the weights of a `Flat` by the gradients of another of the same layout.

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
    ) -> None:
        self._weights = weights
        self._gradients = gradients
        self._fixed = fixed  # zeros that stay: with no gradient there is no moment and no step
        self.settings = settings
        self.decay = average_decay
        self.step_count = 0
        self.first = np.zeros_like(weights.buffer)
        self.second = np.zeros_like(weights.buffer)
        self.average = weights.buffer.copy()
        self._sizes = self._measure()  # of the weights given, once: a run that diverged has none to go by

    def _measure(self) -> list[tuple[int, int, float, float]]:
        """(start, stop, step scale, weight decay) of each tensor."""
        found, start = [], 0
        for view in self._weights.views.values():
            rms = float(np.sqrt(np.mean(np.square(view, dtype=np.float64)))) if view.size else 1.0
            scale = max(rms, 1e-3) if self.settings.relative else 1.0
            decay = self.settings.weight_decay if view.ndim >= 2 else 0.0
            found.append((start, start + view.size, scale, decay))
            start += view.size
        return found

    def gradient_norm(self) -> float:
        """Euclidean norm of all gradients; NaN or inf if one of them is."""
        buffer = self._gradients.buffer
        if self._fixed is not None:
            buffer[self._fixed] = 0.0
        return math.sqrt(float(np.dot(buffer, buffer)))

    def step(self, progress: float, norm: float) -> None:
        """One update of weights and average.

        Args:
            progress: share of the run done, for the schedule.
            norm: what `gradient_norm` gave.
        """
        s = self.settings
        if self._fixed is not None:
            self._gradients.buffer[self._fixed] = 0.0
        self.step_count += 1
        factor = schedule(progress, s) * s.lr
        shrink = min(1.0, s.clip / norm) if s.clip > 0 and norm > 0 else 1.0
        if s.kind == "sgd" and norm > 0:
            shrink = math.sqrt(self._gradients.buffer.size) / norm
        # The average must not remember the start for longer than the run is old.
        decay = min(self.decay, (1 + self.step_count) / (10 + self.step_count))
        for start, stop, scale, weight_decay in self._sizes:
            for low in range(start, stop, _CHUNK):
                part = slice(low, min(low + _CHUNK, stop))
                self._move(part, factor * scale, shrink, factor * weight_decay, decay)

    def _move(self, part: slice, rate: float, shrink: float, weight_decay: float, decay: float) -> None:
        s, w = self.settings, self._weights.buffer[part]
        g = self._gradients.buffer[part] * np.float32(shrink)
        m, v = self.first[part], self.second[part]
        if s.kind == "sgd":
            m += (1 - s.beta1) * (g - m)
            update = m
        else:
            m += (1 - s.beta1) * (g - m)
            v += (1 - s.beta2) * (g * g - v)
            fix1 = 1 - s.beta1**self.step_count
            fix2 = 1 - s.beta2**self.step_count
            update = (m / fix1) / (np.sqrt(v / fix2) + s.epsilon)
        if weight_decay:
            w *= 1 - weight_decay
        w -= rate * update
        a = self.average[part]
        a += (1 - decay) * (w - a)

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on later."""
        return {
            "weights": self._weights.buffer,
            "first": self.first,
            "second": self.second,
            "average": self.average,
            "step_count": np.asarray(self.step_count),
        }

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
