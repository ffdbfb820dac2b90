"""Checkpoints: after every cycle the run can be killed and goes on from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import ConfigError
from condensec.report.model import Cycle

VERSION = 1
_PLAIN = ("step", "correction", "heal_seconds", "rounds", "finished", "reached")


@dataclass(frozen=True)
class Candidate:
    """One accepted model.

    Attributes:
        counts: kept units by group id.
        units: kept unit indices by group id.
        weights: healed weights in the shapes of the cut, by name.
        metric: on validation samples.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, Sequence[int]] = field(default_factory=dict)
    weights: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    metric: float | None = None


@dataclass(frozen=True)
class Progress:
    """Everything a resumed run needs.

    Attributes:
        best: the last accepted model.
        cycles: what was tried so far.
        step: current share of units a cycle.
        correction: measured over modelled latency, by target.
        heal_seconds: gradient healing used so far.
        finished: no cycle is left to do.
        reached: the budgets are met.
    """

    best: Candidate = field(default_factory=Candidate)
    cycles: tuple[Cycle, ...] = ()
    step: float = 0.1
    correction: Mapping[str, float] = field(default_factory=dict)
    heal_seconds: float = 0.0
    rounds: int = 0
    finished: bool = False
    reached: bool = False


class Checkpoints:
    """Reads and writes ``state/`` in the output folder.

    Args:
        folder: the state folder.
        key: identifies model, data and options; a checkpoint of another key isn't used.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def load(self) -> Progress | None:
        """The last checkpoint, or None where there is none.

        Raises:
            ConfigError: it belongs to another model, other data or other options, or is damaged.
        """
        path = self.folder / "progress.json"
        if not path.exists():
            return None
        try:
            doc = json.loads(path.read_text(encoding="utf-8"))
            if doc["version"] != VERSION or doc["key"] != self.key:
                raise ConfigError(
                    f"{self.folder} holds an unfinished run of another model, data or options",
                    hint="run without --resume to start afresh",
                )
            with np.load(self.folder / doc["weights"], allow_pickle=False) as archive:
                weights = {name: archive[f"w{i}"] for i, name in enumerate(doc["names"])}
            best = Candidate(doc["counts"], doc["units"], weights, doc["metric"])
            cycles = tuple(Cycle(**c) for c in doc["cycles"])
            rest = {
                k: doc[k] for k in ("step", "correction", "heal_seconds", "rounds", "finished", "reached")
            }
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the checkpoint in {self.folder} is damaged: {error}", hint="run without --resume"
            ) from error
        return Progress(best, cycles, **rest)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint: the weights first, then, atomically, the file that points to them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = sorted(progress.best.weights)
        archive = f"weights-{len(progress.cycles)}.npz"
        draft = self.folder / f".{archive}"
        arrays: dict[str, Any] = {f"w{i}": progress.best.weights[name] for i, name in enumerate(names)}
        with open(draft, "wb") as file:
            np.savez(file, **arrays)
        os.replace(draft, self.folder / archive)
        doc = {
            "version": VERSION,
            "key": self.key,
            "weights": archive,
            "names": names,
            "counts": dict(progress.best.counts),
            "units": {k: [int(i) for i in v] for k, v in progress.best.units.items()},
            "metric": progress.best.metric,
            "cycles": [vars(c) for c in progress.cycles],
            "step": progress.step,
            "correction": dict(progress.correction),
            "heal_seconds": progress.heal_seconds,
            "rounds": progress.rounds,
            "finished": progress.finished,
            "reached": progress.reached,
        }
        draft = self.folder / ".progress.json"
        draft.write_text(json.dumps(doc), encoding="utf-8")
        os.replace(draft, self.folder / "progress.json")
        for old in self.folder.glob("weights-*.npz"):
            if old.name != archive:
                old.unlink()

    def clear(self) -> None:
        """Remove the folder: the run is done, or starts afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)
