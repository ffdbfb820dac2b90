"""What a search for zeros has found so far, on disk: a run that is resumed repeats no step that ended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.patterns import Zeros
from condensec.stages.heal import Healed

Weights = Mapping[str, npt.NDArray[Any]]
_PLAIN = ("gradual", "tries", "low", "high", "reached", "heal_seconds", "trainings")


@dataclass(frozen=True)
class Try:
    """One application of a pattern.

    Attributes:
        zeros: what it makes of each weight.
        weights: all weights, healed if it was.
        metric: with these, on validation samples; NaN until judged.
        how: what healed it, in words.
    """

    zeros: Mapping[str, Zeros]
    weights: Weights
    metric: float
    how: str = "off"


@dataclass(frozen=True)
class Standing:
    """Where a search for zeros is.

    Attributes:
        gradual: the zeros came while the model trained.
        current: what the next step starts from: all layers before any is taken out.
        tries: whole applications that were judged.
        low, high: what is left to search: shares, or numbers of layers taken out.
        best: the best try within the guard.
        reached: all that was asked for is within the guard.
        heal_seconds: training used so far, in the whole run.
        trainings: trainings begun.
    """

    gradual: bool = False
    current: Try | None = None
    tries: int = 0
    low: float = 0.0
    high: float = 0.0
    best: Try | None = None
    reached: bool = False
    heal_seconds: float = 0.0
    trainings: int = 0


@dataclass
class Kept:
    """Reads and writes a search's standing, and the trainings since; a full disk costs only the resumption.

    Attributes:
        folder: made when something is written; it goes with the run's checkpoints, which vouch for model,
            data and options.
        key: what the search began with, see `digest_of`; what was kept of another one isn't used.
    """

    folder: Path
    key: str
    _written: dict[str, Try] = field(default_factory=dict, repr=False)

    def standing(self) -> Standing | None:
        """Where the search was; None where nothing is kept of it, or what is is damaged."""
        try:
            doc = json.loads((self.folder / "standing.json").read_text(encoding="utf-8"))
            if doc["key"] != self.key:
                return None
            current, best = (self._read(doc[slot]) if doc[slot] else None for slot in ("current", "best"))
            return Standing(current=current, best=best, **{name: doc[name] for name in _PLAIN})
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def save(self, standing: Standing) -> None:
        """Keep where the search is: its weights first, then, atomically, the file that points to them."""
        doc: dict[str, Any] = {name: getattr(standing, name) for name in _PLAIN}
        draft = self.folder / ".standing.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for slot in ("current", "best"):
                doc[slot] = self._write(getattr(standing, slot), f"{standing.tries}-{slot}")
            draft.write_text(json.dumps({"key": self.key, **doc}), encoding="utf-8")
            os.replace(draft, self.folder / "standing.json")
        except OSError:
            draft.unlink(missing_ok=True)
            return
        in_use = {doc[slot] for slot in ("current", "best")}
        self._written = {name: one for name, one in self._written.items() if name in in_use}
        for old in self.folder.glob("*.npz"):
            if old.name not in in_use:
                old.unlink(missing_ok=True)

    def _write(self, one: Try | None, name: str) -> str:
        """The file that holds a try; "" for none. What is there already isn't written again."""
        if one is None:
            return ""
        known = next((file for file, other in self._written.items() if other is one), None)
        if known is not None:
            return known
        doc: dict[str, Any] = {
            "metric": float(one.metric),
            "how": one.how,
            "weights": sorted(one.weights),
            "zeros": {n: [float(z.damage), z.mask.shape] for n, z in sorted(one.zeros.items())},
        }
        arrays = {f"w{i}": one.weights[n] for i, n in enumerate(doc["weights"])}
        for i, zeros in enumerate(one.zeros[n] for n in doc["zeros"]):
            arrays |= {f"z{i}": zeros.weight, f"m{i}": np.packbits(zeros.mask)}
        _store(self.folder / f"{name}.npz", doc, arrays)
        self._written[f"{name}.npz"] = one
        return f"{name}.npz"

    def _read(self, name: str) -> Try:
        with np.load(self.folder / name, allow_pickle=False) as archive:
            doc = json.loads(str(archive["doc"]))
            weights = {n: archive[f"w{i}"] for i, n in enumerate(doc["weights"])}
            zeros = {}
            for i, (n, (damage, shape)) in enumerate(doc["zeros"].items()):
                mask = np.unpackbits(archive[f"m{i}"], count=int(np.prod(shape))).reshape(shape)
                zeros[n] = Zeros(mask.astype(np.bool_), archive[f"z{i}"], damage)
        self._written[name] = found = Try(zeros, weights, doc["metric"], doc["how"])
        return found

    def training(self, number: int, start: Weights) -> Healed | None:
        """What a training made of these weights; None if it hasn't ended, or began with others."""
        try:
            with np.load(self.folder / f"training{number}.npz", allow_pickle=False) as archive:
                doc = json.loads(str(archive["doc"]))
                if doc["start"] != digest_of(start):
                    return None
                weights = {name: archive[f"w{i}"] for i, name in enumerate(doc["names"])}
            return Healed(weights, how=doc["how"], gradient_seconds=doc["seconds"], note=doc["note"])
        except (OSError, KeyError, ValueError):  # none, or a damaged one
            return None

    def trained(self, number: int, start: Weights, healed: Healed) -> None:
        """Keep a training that ended, until the standing it leads to is kept."""
        names = sorted(healed.weights)
        doc = {
            "start": digest_of(start),
            "names": names,
            "how": healed.how,
            "seconds": healed.gradient_seconds,
            "note": healed.note,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _store(
                self.folder / f"training{number}.npz",
                doc,
                {f"w{i}": healed.weights[n] for i, n in enumerate(names)},
            )
        except OSError:
            pass


def _store(path: Path, doc: Mapping[str, Any], arrays: Weights) -> None:
    """Write arrays and what they are, whole or not at all.

    Raises:
        OSError: as the disk says, or where .npy has no form of it (bfloat16).
    """
    if any(array.dtype.kind == "V" for array in arrays.values()):
        raise OSError(f"{path.name}: a type that .npy doesn't know")
    draft = path.with_name(f".{path.name}")
    try:
        with open(draft, "wb") as file:
            np.savez(file, doc=np.array(json.dumps(doc)), **arrays)  # type: ignore[arg-type]
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def digest_of(weights: Weights, *more: str) -> str:
    """Identifies weights, and what is done with them."""
    digest = hashlib.sha256("\n".join(more).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()
