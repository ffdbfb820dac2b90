"""How a time budget is shared out: the teacher's answers, validation, and training itself.

The plan is stored in the state folder, so that a resumed heal goes on with the same samples and seconds
however fast the machine is by then.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.healing.options import HealOptions

if TYPE_CHECKING:
    from condensec.data import Samples

_TEACHER = 0.15  # of the budget: the teacher's answers on the training samples
_VALIDATION = 0.03  # of the budget: one validation (the teacher once, the student in every round)
_LEAST = 256  # validation samples, if there are as many
_END = 0.3  # seconds: what is left to do when the worker is done


@dataclass(frozen=True)
class Share:
    """What a heal may use.

    Attributes:
        key: of the job it was made for.
        train: training samples.
        validation: validation samples.
        seconds: of training, worker's validation included; None = by epochs.
    """

    key: str
    train: int
    validation: int
    seconds: float | None


def job_key(student: Path, teacher: Path, options: HealOptions, counts: tuple[int, int]) -> str:
    """Equal for calls that ask for the same thing."""
    plain = asdict(replace(options, thin=None))
    text = json.dumps([plain, counts], default=_name, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update((options.thin.digest() if options.thin else "").encode())
    for path in (student, teacher):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _name(value: object) -> str:
    """A function by its name: its `repr` differs from run to run."""
    return str(getattr(value, "__qualname__", value))


def stored(state: Path, key: str) -> Share | None:
    """The plan of an interrupted call for the same job."""
    try:
        share = Share(**json.loads((state / "share.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return share if share.key == key else None


def store(state: Path, share: Share) -> None:
    """Keep a plan for a later call."""
    temporary = state / "share.json.tmp"
    temporary.write_text(json.dumps(asdict(share)), encoding="utf-8")
    os.replace(temporary, state / "share.json")


def counts(
    options: HealOptions, train: int, validation: int, seconds_a_sample: float, batch: int
) -> tuple[int, int]:
    """How many samples of each kind to use.

    Args:
        options: the budget.
        train: samples there are.
        validation: samples there are.
        seconds_a_sample: of the teacher.
        batch: samples a step.
    """
    if options.minutes is None:
        return train, validation
    seconds = 60 * options.minutes
    seen = int(_TEACHER * seconds / max(seconds_a_sample, 1e-9))
    judged = int(_VALIDATION * seconds / max(seconds_a_sample, 1e-9))
    return min(train, max(seen, 4 * batch)), min(validation, max(judged, _LEAST))


def remaining(options: HealOptions, begun: float) -> float | None:
    """Seconds left for the worker of a call that began at a time; at least a tenth of the budget."""
    if options.minutes is None:
        return None
    seconds = 60 * options.minutes
    return max(seconds - (time.monotonic() - begun) - _END, 0.1 * seconds)


def chosen(samples: Samples, count: int, seed: int) -> Samples:
    """Some of the samples, spread evenly over a random order (files are often sorted by class)."""
    if count >= len(samples):
        return samples
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    return samples.subset(np.sort(order))
