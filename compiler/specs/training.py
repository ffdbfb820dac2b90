"""What a training sees and compares: ``flip,crop=4``, ``output=1,features=0.5``."""

from __future__ import annotations

import math
import re

from condensec.errors import ConfigError
from condensec.specs.nearest import nearest

_AUGMENT_HINT = "write flip, crop=4, module:callable, or several joined by commas"
_LOSS_HINT = "write for instance output=1,features=0.5"
LOSSES = ("output", "features", "kl", "mse", "cosine", "ce", "bce", "task_mse")


def parse_augment(text: str) -> tuple[str, ...]:
    """``flip,crop=4`` or ``module:callable``: the steps, in order.

    Raises:
        ConfigError: anything else.
    """
    steps = tuple(part.strip() for part in text.split(","))
    for step in steps:
        if not re.fullmatch(r"flip|crop=[1-9][0-9]*|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", step):
            raise ConfigError(f"--augment '{step}' can't be read", hint=_AUGMENT_HINT)
    return steps


def parse_losses(text: str) -> dict[str, float]:
    """``output=1,features=0.5``: what is compared while training, and how much each counts.

    Raises:
        ConfigError: an unknown kind, or a weight that is no number from 0 on, or nothing that counts.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, _, value = part.strip().partition("=")
        if kind not in LOSSES:
            raise ConfigError(f"--loss: unknown kind '{kind}'", hint=nearest(kind, LOSSES, "known"))
        try:
            weights[kind] = float(value)
        except ValueError:
            weights[kind] = math.nan
        if not 0 <= weights[kind] < math.inf:
            raise ConfigError(
                f"--loss '{part.strip()}' can't be", hint="write for instance output=1,features=0.5"
            )
    if not any(weights.values()):
        raise ConfigError(f"--loss '{text}': nothing counts", hint="write for instance output=1,features=0.5")
    return weights
