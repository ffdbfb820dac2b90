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

VERSION = 3
_PLAIN = (
    *("step", "strict", "failed", "gains", "correction", "heal_seconds", "rounds", "finished", "reached"),
    *("aim", "factors", "barred", "note", "settled"),
)


@dataclass(frozen=True)
class Candidate:
    """One accepted model.

    Attributes:
        counts: kept units by group id; of a layer that may go 1, or 0 where it is taken out.
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
        best: the model to cut on from. It may have lost more than the guard allows, if healing is to come.
        safe: the smallest model so far that keeps the guard.
        front: all models so far that kept the guard, where several were asked for.
        cycles: what was tried so far.
        step: current share of units a cycle.
        strict: every cycle has to keep the guard (one that was to be healed later couldn't be).
        aim: where the cycles are going; empty: not chosen yet.
        factors: how much more or less the loss of a group or layer counts than was measured of it alone;
            None: not searched for yet.
        barred: layers that couldn't be spared.
        note: how the aim was chosen, for the report.
        failed: widths of the last cut that was rolled back; not tried again.
        gains: share of the latency that emission alone leaves, uncut, by limit.
        correction: measured over modelled latency, by limit.
        heal_seconds: gradient healing used so far.
        rounds: corrections of the latency model so far.
        finished: no cycle is left to do.
        reached: the budgets are met.
        settled: which units stay is decided, by measured latency, too; zeros in a pattern follow.
    """

    best: Candidate = field(default_factory=Candidate)
    safe: Candidate = field(default_factory=Candidate)
    front: tuple[Candidate, ...] = ()
    cycles: tuple[Cycle, ...] = ()
    step: float = 0.1
    strict: bool = False
    aim: Mapping[str, int] = field(default_factory=dict)
    factors: Mapping[str, float] | None = None
    barred: Sequence[str] = ()
    note: str = ""
    failed: Mapping[str, int] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    correction: Mapping[str, float] = field(default_factory=dict)
    heal_seconds: float = 0.0
    rounds: int = 0
    finished: bool = False
    reached: bool = False
    settled: bool = False


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
            return Progress(
                best=self._read(doc["best"]),
                safe=self._read(doc["safe"]),
                front=tuple(self._read(one) for one in doc["front"]),
                cycles=tuple(Cycle(**c) for c in doc["cycles"]),
                **{name: doc[name] for name in _PLAIN},
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the checkpoint in {self.folder} is damaged: {error}", hint="run without --resume"
            ) from error

    def save(self, progress: Progress) -> None:
        """Write a checkpoint: the weights first, then, atomically, the file that points to them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(progress.cycles)
        doc = {
            "version": VERSION,
            "key": self.key,
            "best": self._write(progress.best, f"best-{number}.npz"),
            "safe": self._write(progress.safe, f"safe-{number}.npz"),
            "front": [
                self._write(one, f"front{i}.npz", again=i + 1 == len(progress.front))
                for i, one in enumerate(progress.front)
            ],
            "cycles": [vars(c) for c in progress.cycles],
            **{name: getattr(progress, name) for name in _PLAIN},
        }
        draft = self.folder / ".progress.json"
        draft.write_text(json.dumps(doc), encoding="utf-8")
        os.replace(draft, self.folder / "progress.json")
        for old in self.folder.glob("*.npz"):
            if "-" in old.name and not old.name.endswith(f"-{number}.npz"):
                old.unlink()

    def _write(self, candidate: Candidate, archive: str, *, again: bool = True) -> dict[str, Any]:
        names = sorted(candidate.weights)
        arrays: dict[str, Any] = {f"w{i}": candidate.weights[name] for i, name in enumerate(names)}
        draft = self.folder / f".{archive}"
        if again or not (self.folder / archive).exists():
            with open(draft, "wb") as file:
                np.savez(file, **arrays)
            os.replace(draft, self.folder / archive)
        return {
            "archive": archive,
            "names": names,
            "counts": dict(candidate.counts),
            "units": {k: [int(i) for i in v] for k, v in candidate.units.items()},
            "metric": candidate.metric,
        }

    def _read(self, doc: Mapping[str, Any]) -> Candidate:
        with np.load(self.folder / doc["archive"], allow_pickle=False) as archive:
            weights = {name: archive[f"w{i}"] for i, name in enumerate(doc["names"])}
        return Candidate(doc["counts"], doc["units"], weights, doc["metric"])

    def clear(self) -> None:
        """Remove the folder: the run is done, or starts afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)
