"""Tables of nodes as a file: measured on another device, counted in an emulator, or exported here.

The file is what `condensec profile` and the stand-alone script write (`condensec.hardware.device_script`):

    { "schema": 1, "kind": "condensec latency table", "target": "mobile-cpu",
      "how": "measured|emulated|modelled", "unit": "seconds|instructions",
      "device": {"cpu": "...", "onnxruntime": "1.32.0", "threads": 1},
      "model": {"name": "...", "sha256": "...", "value": 0.0123},
      "points": {"conv k9 s1 Relu float32 n3136 i64 o64 g1": 0.00042, ...}, "failed": {} }

`model.value` is the whole model's own time, if it was measured; it calibrates the sum of its nodes. Keys
are those of `condensec.hardware.nodekey`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condensec.errors import ConfigError
from condensec.hardware.nodekey import NodeKey, parse
from condensec.hardware.points import Points
from condensec.hardware.target import VERIFICATIONS, Target

SCHEMA = 1
KIND = "condensec latency table"
UNITS = ("seconds", "instructions")


@dataclass(frozen=True)
class DeviceTable:
    """A table of nodes with where it is from.

    Attributes:
        target: name of the target it was made for.
        how: how its figures were got, one of `condensec.hardware.target.VERIFICATIONS`.
        points: time by node, in `unit`.
        unit: "seconds" or "instructions".
        device: what measured it, in the script's words.
        model: name, sha256 and measured value of the model it was made with; empty for a general one.
    """

    target: str
    how: str
    points: Points
    unit: str = "seconds"
    device: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def whole(self, sha256: str) -> float | None:
        """The measured value of the model with this hash, if it's the one the table was made with."""
        value = self.model.get("value")
        same = self.model.get("sha256") == sha256
        return float(value) if same and isinstance(value, int | float) and value > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The document; keys in order, so that the same table is the same file."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "target": self.target,
            "how": self.how,
            "unit": self.unit,
            "device": dict(self.device),
            "model": dict(self.model),
            "points": dict(sorted((str(key), value) for key, value in self.points.known.items())),
            "failed": {},
        }


def read(path: Path) -> DeviceTable:
    """The table in a file. The same unchanged file is read once.

    Raises:
        ConfigError: it can't be read, or isn't such a table; says what is wrong.
    """
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"can't read the latency table {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> DeviceTable:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no latency table: not JSON ({error})") from error
    return from_json(document, str(path))


def attach(target: Target, path: Path) -> Target:
    """A target whose latencies come from this table.

    Raises:
        ConfigError: the file is no latency table.
    """
    table = read(path)
    device = table.device
    where = " ".join(str(device[k]) for k in ("cpu", "machine", "isa") if device.get(k)) or "the device"
    note = (
        f"latency from a table {table.how} on {where} (onnxruntime {device.get('onnxruntime', '?')}): "
        "the sum of a graph's nodes, not a run of it"
    )
    others = tuple(note for note in target.notes if "latenc" not in note)
    return replace(target, table=str(path), verified=table.how, notes=(*others, note))


def from_json(document: Any, name: str) -> DeviceTable:
    """A table from its document.

    Args:
        document: parsed JSON.
        name: of the file, for messages.

    Raises:
        ConfigError: it is no such table.
    """
    hint = "'condensec profile' writes one"
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ConfigError(f"{name} is no latency table", hint=hint)
    if document.get("schema") != SCHEMA:
        raise ConfigError(f"{name}: schema {document.get('schema')!r} isn't known", hint=f"known: {SCHEMA}")
    for key, known in (("how", VERIFICATIONS), ("unit", UNITS)):
        if document.get(key) not in known:
            raise ConfigError(f"{name}: {key} is {document.get(key)!r}", hint=f"one of {', '.join(known)}")
    points, target = document.get("points"), document.get("target")
    parts = (document.get("device", {}), document.get("model", {}))
    if (
        not isinstance(points, dict)
        or not isinstance(target, str)
        or not all(isinstance(p, dict) for p in parts)
    ):
        raise ConfigError(f"{name}: points, target, device or model isn't what it should be", hint=hint)
    known_points = _points(points, name)
    if not known_points:
        raise ConfigError(f"{name} holds no times", hint="its 'failed' says why")
    return DeviceTable(target, document["how"], Points(known_points), document["unit"], *parts)


def _points(points: Mapping[str, Any], name: str) -> dict[NodeKey, float]:
    found: dict[NodeKey, float] = {}
    for text, value in points.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < 0:
            raise ConfigError(f"{name}: the time of '{text}' is {value!r}")
        try:
            found[parse(text)] = float(value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name}: '{text}' is no node: {error}") from error
    return found
