"""Evidence: what calibration samples say of a model, collected once and only when a criterion asks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from condensec.data import Samples
from condensec.passes.groups import Analysis

T = TypeVar("T")


@dataclass
class Evidence:
    """Calibration samples of one model, and what was found with them.

    Attributes:
        analysis: the uncut model.
        samples: calibration samples; labels are used where a criterion knows how.
        threads: of the sessions.
        seed: of what is drawn.
        notes: what a reader of the report should know (``auto`` says what it chose).
    """

    analysis: Analysis
    samples: Samples
    threads: int = 1
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    _found: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` gives, computed at the first call for a key."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found
