"""Running samples through a model: how many fit into a time, and in which batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data import Samples
from condensec.data.side import batch_of, single_call
from condensec.passes.segments import Batch
from condensec.runner import Session

Array = npt.NDArray[Any]
MACS_PER_SECOND = 4e9  # a cautious figure for one or two cores
BATCH = 32  # samples a call, where the model's batch is open


def affordable(macs: int, runs: int, seconds: float, least: int = 16, rate: float = MACS_PER_SECOND) -> int:
    """How many samples fit into a time, by the size of the model alone.

    Never by the clock: the same model, data and settings have to give the same choice.
    """
    return max(least, int(seconds * rate / max(1, macs * runs)))


def batches(session: Session, samples: Samples) -> list[Batch]:
    """Inputs a call; a model with a fixed batch gets whole ones, filled up with the last sample."""
    given = [port for port in session.ports if not port[0].startswith("condensec.mask")]
    fixed = batch_of(given)
    size, count = fixed or BATCH, len(samples)
    found = []
    for first in range(0, count, size):
        stop = first + size if fixed else min(first + size, count)
        index = np.minimum(np.arange(first, stop), count - 1)
        feeds = {n: np.ascontiguousarray(a[index]) for n, a in samples.inputs.items()}
        found.append(single_call(given, feeds))
    return found


def run(session: Session, samples: Samples, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the super-graph for all samples under one set of masks, joined along axis 0."""
    parts: list[dict[str, Array]] = []
    for feeds in batches(session, samples):
        found = session.run({**feeds, **masks})
        parts.append({name: session.by_sample(name, value) for name, value in found.items()})
    count = len(samples)
    return {
        name: np.concatenate([p[name] for p in parts])[:count] if parts[0][name].ndim else parts[0][name]
        for name in parts[0]
    }
