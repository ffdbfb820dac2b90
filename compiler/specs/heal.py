"""Healing: ``minutes=10,closed-form=off`` and its like."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from condensec.errors import ConfigError
from condensec.specs.nearest import nearest

AUTO_MINUTES = 2.0  # of gradient healing in all, when the user says nothing
_HEAL_HINT = "write off, closed-form, auto, epochs=3 or minutes=10 (and ',closed-form=off' to train only)"


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)


_SETTINGS: dict[str, tuple[str, Callable[[str], float | int | str], str]] = {
    # as written -> (field of HealOptions, type, what is allowed)
    "lr": ("lr", float, "a step size above 0, relative to each weight (0.008 = 0.8%)"),
    "batch": ("batch", int, "samples a step, at least 1"),
    "optimizer": ("optimizer", str, "adamw or sgd"),
    "weight-decay": ("weight_decay", float, "a number from 0 on"),
    "warmup": ("warmup", float, "a share of the run, from 0 to below 1"),
    "average": ("average", float, "a decay a step, from 0 (none) to below 1"),
    "temperature": ("temperature", float, "a number above 0"),
    "freeze": ("freeze", str, "a regular expression without commas"),
    "patience": ("patience", int, "validations without a better one, 0 = never stop early"),
    "views": ("views", int, "augmented views used in turn, 0 = a new one every other epoch"),
    "batch-norm": ("batch_norm", str, "on, off or auto (convolutions are normalized where much is broken)"),
    # of the stack, not of one training: no field of HealOptions
    "zeros": ("", float, "the share of the training for zeros, from 0 to below 1"),
    "quantized": ("", float, "the share of the training for int8 graphs, from 0 to below 1"),
    "qat": ("", str, "on, off or auto (int8 graphs are trained where they lose over half of the guard)"),
}
_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "lr": lambda v: 0 < v < math.inf,
    "batch": lambda v: v >= 1,
    "optimizer": lambda v: v in ("adamw", "sgd"),
    "weight-decay": lambda v: 0 <= v < math.inf,
    "warmup": lambda v: 0 <= v < 1,
    "average": lambda v: 0 <= v < 1,
    "temperature": lambda v: 0 < v < math.inf,
    "freeze": _is_pattern,
    "patience": lambda v: v >= 0,
    "views": lambda v: v >= 0,
    "batch-norm": lambda v: v in ("on", "off", "auto"),
    "zeros": lambda v: 0 <= v < 1,
    "quantized": lambda v: 0 <= v < 1,
    "qat": lambda v: v in ("on", "off", "auto"),
}


@dataclass(frozen=True)
class Heal:
    """How a cut model learns again.

    Attributes:
        mode: ``off``, ``closed-form``, ``auto``, ``epochs`` or ``minutes``. ``auto`` trains for at most
            `AUTO_MINUTES` where there is real data.
        epochs: passes over the training samples, in mode ``epochs``.
        minutes: of gradient healing, in modes ``minutes`` and ``auto``.
        train_only: no closed form before the training.
        settings: (name, value) of further settings of the training, as written.
    """

    mode: str
    epochs: int | None = None
    minutes: float | None = None
    train_only: bool = False
    settings: tuple[tuple[str, float | int | str], ...] = ()

    @property
    def closed_form(self) -> bool:
        """Whether weights are re-solved by least squares first."""
        return self.mode != "off" and not self.train_only

    @property
    def gradient(self) -> bool:
        """Whether the model is trained, given data."""
        return self.mode in ("auto", "epochs", "minutes")

    @property
    def options(self) -> dict[str, Any]:
        """The further settings as fields of `condensec.healing.HealOptions`."""
        return {_SETTINGS[name][0]: value for name, value in self.settings if _SETTINGS[name][0]}

    def of_stack(self, name: str, default: Any) -> Any:
        """A setting of the stack: ``zeros``, ``quantized`` or ``qat``."""
        return dict(self.settings).get(name, default)

    def __str__(self) -> str:
        text = {"epochs": f"epochs={self.epochs}", "minutes": f"minutes={self.minutes or 0:g}"}
        more = ["closed-form=off"] * self.train_only
        more += [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.settings
        ]
        return ",".join([text.get(self.mode, self.mode), *more])


def parse_heal(text: str) -> Heal:
    """``off``, ``closed-form``, ``auto``, ``epochs=3``, ``minutes=10``; to the last three more may be added.

    ``minutes=10,closed-form=off,lr=0.004,optimizer=sgd``: see `_SETTINGS`.

    Raises:
        ConfigError: anything else.
    """
    head, *more = [part.strip() for part in text.split(",")]
    if head in ("off", "closed-form") and not more:
        return Heal(head)
    key, _, value = head.partition("=")
    train_only = "closed-form=off" in more
    settings = tuple(_heal_setting(text, part) for part in more if part != "closed-form=off")
    try:
        if head == "auto":
            return Heal("auto", None, AUTO_MINUTES, train_only, settings)
        if key == "epochs" and int(value) > 0:
            return Heal("epochs", int(value), None, train_only, settings)
        if key == "minutes" and 0 < float(value) < math.inf:
            return Heal("minutes", None, float(value), train_only, settings)
    except ValueError:
        pass
    raise ConfigError(f"--heal '{text}' can't be read", hint=_HEAL_HINT)


def _heal_setting(text: str, part: str) -> tuple[str, float | int | str]:
    name, _, written = part.partition("=")
    if name not in _SETTINGS:
        raise ConfigError(
            f"--heal '{text}': unknown setting '{name}'",
            hint=nearest(name, ("closed-form", *_SETTINGS), "known"),
        )
    _, kind, allowed = _SETTINGS[name]
    try:
        value = kind(written)
        fits = _ALLOWED[name](value)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"--heal '{text}': {name} can't be '{written}'", hint=f"give {allowed}")
    return name, value
