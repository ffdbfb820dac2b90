"""What healing is asked for, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from condensec.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Thin:
    """Zeros that come while training, more and more of them, see `condensec.healing.worker.zeros`.

    Attributes:
        counts: zeros of a weight at the end, by name.
        prices: what a unit of a weight's square costs (mean squares of its inputs), in the weight's shape;
            absent = 1.
    """

    counts: Mapping[str, int]
    prices: Mapping[str, np.ndarray] = field(default_factory=dict)

    def digest(self) -> str:
        """Identifies it."""
        found = hashlib.sha256(repr(sorted(self.counts.items())).encode())
        for name in sorted(self.prices):
            found.update(name.encode() + np.ascontiguousarray(self.prices[name]).tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class HealOptions:
    """Settings of healing by training.

    Attributes:
        epochs: passes over the training samples; 3 if there is no budget at all.
        minutes: wall time of the training itself, validation included; None where `epochs` is the budget.
        batch: samples a step; a model of fixed batch size takes a multiple of its own, in parts.
        lr: peak step size, relative to each weight's own root mean square (0.008 = 0.8% a step); None tries
            a few in short runs first.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        average: decay a step of the exponential moving average of the weights, which is what is validated
            and given back; 0 = none, None = by the length of the run.
        weight_decay: decoupled, on tensors of two or more axes.
        warmup: share of the run in which the step grows from zero.
        losses: kind -> weight: kl, mse, cosine, ce, bce, task_mse; `output`, which chooses among them by the
            outputs and labels; `features`, which compares block outputs. None = {"output": 1}.
        temperature: of the kl loss.
        patience: stop after this many validations without a better one; 0 = never.
        augment: changes training samples: `flip`, `crop=4`, `module:callable` or several joined by commas,
            or a function (batch: dict[str, ndarray], rng: Generator) -> dict; see `healing.augment`.
        views: of the augmented samples that are used in turn; 0 = a new one every other epoch.
        freeze: regular expression; weights in whose name, or in that of a node that reads them, it's found
            are left alone.
        zeros: names of weights whose zeros stay zeros.
        thin: zeros that come on the way; the best weights are then the best that have all of them.
        batch_norm: "on" trains convolutions with batch normalization, which is folded into what is given
            back; "auto" where much is broken: zeros come on the way, or outputs are far off.
        seed: order of the batches.
        jobs: threads.
        stall: seconds without a sign of life after which the worker is taken for hung.
    """

    epochs: float | None = None
    minutes: float | None = None
    batch: int = 32
    lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    average: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.05
    losses: Mapping[str, float] | None = None
    temperature: float = 2.0
    patience: int = 0
    augment: str | Callable[..., Any] | None = None
    views: int = 0
    freeze: str | None = None
    zeros: tuple[str, ...] = ()
    thin: Thin | None = None
    batch_norm: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    jobs: int = 1
    stall: float = 600.0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError("healing takes either epochs or minutes")
        if self.epochs is None and self.minutes is None:
            object.__setattr__(self, "epochs", 3.0)
        for name in ("epochs", "minutes", "batch", "lr", "temperature", "jobs", "stall"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"healing: {name} must be positive, not {value}")
        if self.average is not None and not 0 <= self.average < 1:
            raise ConfigError(f"healing: average must be at least 0 and below 1, not {self.average}")


@dataclass(frozen=True)
class Round:
    """One validation during healing.

    Attributes:
        number: 0 is before any step.
        epoch: passes over the data so far.
        train_loss: mean over the steps since the last round; None before the first step.
        validation_loss: of the averaged weights.
        metric: the caller's metric of the averaged weights; None without one.
        seconds: of training so far.
    """

    number: int
    epoch: float
    train_loss: float | None
    validation_loss: float
    metric: float | None
    seconds: float


@dataclass(frozen=True)
class HealResult:
    """What healing gives back.

    Attributes:
        weights: name in the student's file -> new value, the trained ones only; empty if nothing got better.
        before: the metric (validation loss without one) of the student as given.
        after: the same with `weights`.
        higher_is_better: which way the two are to be read.
        loss_curve: every validation.
        seconds: wall time of the whole heal.
        steps: optimizer steps.
        samples_per_second: of the training steps.
        peak_rss_mb: of the worker.
        frozen: (weight, reason) of weights that couldn't be trained.
        around: (node, reason) of operators without a gradient that were healed around: the part before
            learned the original's values there.
        trained_share: trained parameters / all parameters that are weights.
        note: one line for the report; "" if there is nothing to say.
        lr: step size that was trained with, see `HealOptions.lr`; None if it never came to that.
    """

    weights: Mapping[str, np.ndarray]
    before: float
    after: float
    higher_is_better: bool
    loss_curve: tuple[Round, ...]
    seconds: float
    steps: int
    samples_per_second: float
    peak_rss_mb: float
    frozen: tuple[tuple[str, str], ...] = ()
    trained_share: float = 1.0
    around: tuple[tuple[str, str], ...] = ()
    note: str = field(default="")
    lr: float | None = None
