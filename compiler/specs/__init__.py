"""The small languages of the command line: budgets, healing, patterns, shapes. Each has one parser.

Every parser raises a `ConfigError` that repeats what was written and says what is allowed.
"""

from __future__ import annotations

from condensec.specs.budgets import BUDGET_KINDS, Budget, parse_budget
from condensec.specs.heal import AUTO_MINUTES, Heal, parse_heal
from condensec.specs.inputs import input_value, parse_input, parse_shape
from condensec.specs.patterns import (
    DEFAULT_PATTERNS,
    KIND_PATTERNS,
    LAYERS,
    NOTHING,
    UNIT_PATTERNS,
    parse_patterns,
)
from condensec.specs.training import LOSSES, parse_augment, parse_losses

__all__ = [
    "AUTO_MINUTES",
    "BUDGET_KINDS",
    "DEFAULT_PATTERNS",
    "KIND_PATTERNS",
    "LAYERS",
    "LOSSES",
    "NOTHING",
    "UNIT_PATTERNS",
    "Budget",
    "Heal",
    "input_value",
    "parse_augment",
    "parse_budget",
    "parse_heal",
    "parse_input",
    "parse_losses",
    "parse_patterns",
    "parse_shape",
]
