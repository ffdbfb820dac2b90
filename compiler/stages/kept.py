"""Trainings under fixed zeros that ended: a run that is resumed doesn't repeat them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.stages.heal import Healed

Weights = Mapping[str, npt.NDArray[Any]]


class Kept:
    """Reads and writes one file a training; the checkpoint of the run vouches for model, data and options.

    Args:
        folder: made when something is written; it goes with the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, number: int, start: Weights) -> Healed | None:
        """What a training made of these weights; None if it hasn't ended, or began with others."""
        try:
            with np.load(self.folder / f"{number}.npz", allow_pickle=False) as archive:
                doc = json.loads(str(archive["doc"]))
                if doc["start"] != _digest(start):
                    return None
                weights = {name: archive[f"w{i}"] for i, name in enumerate(doc["names"])}
            return Healed(weights, how=doc["how"], gradient_seconds=doc["seconds"], note=doc["note"])
        except (OSError, KeyError, ValueError):  # none, or a damaged one
            return None

    def store(self, number: int, start: Weights, healed: Healed) -> None:
        """Keep a training that ended; a disk that is full costs the resumption, not the run."""
        names = sorted(healed.weights)
        doc = {
            "start": _digest(start),
            "names": names,
            "how": healed.how,
            "seconds": healed.gradient_seconds,
            "note": healed.note,
        }
        arrays: dict[str, Any] = {f"w{i}": healed.weights[name] for i, name in enumerate(names)}
        draft = self.folder / f".{number}.npz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(draft, "wb") as file:
                np.savez(file, doc=np.array(json.dumps(doc)), **arrays)
            os.replace(draft, self.folder / f"{number}.npz")
        except OSError:
            draft.unlink(missing_ok=True)


def _digest(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()
