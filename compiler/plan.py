"""Plan: the one hand-over between thinking and cutting.

A plan is an immutable value, saved as JSON (``schema`` 1). It says, per group, which units stay,
and per weight which indices stay on which axis, in the names of the *original* file. A program that
knows only ONNX can replay it or check it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condensec import documents
from condensec.errors import ConfigError

SCHEMA = 1
KINDS = ("channel", "neuron", "head", "head_dim", "kv_head", "hidden", "expert", "rnn_unit", "layer")


@dataclass(frozen=True)
class AxisRef:
    """One axis of one weight, by the weight's name in the original file."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class GroupCut:
    """Which units of one group stay.

    Attributes:
        id: stable name of the group within this model.
        kind: one of `KINDS`.
        size: number of units in the original model.
        kept: indices of the units that stay, ascending.
        exact: False where a norm or softmax reduces over the cut axis.
        axes: every weight axis on which the group's units lie.
    """

    id: str
    kind: str
    size: int
    kept: tuple[int, ...]
    exact: bool
    axes: tuple[AxisRef, ...]


@dataclass(frozen=True)
class FrozenAxis:
    """An axis that can't be cut, with a reason a user can act on."""

    id: str
    size: int
    reason: str


@dataclass(frozen=True)
class Restriction:
    """A reduction (norm, softmax, mean, choice of the best) over a cut axis: it sees only the kept indices.

    Attributes:
        output: name of the reducing node's first output.
        input: name of the value it reduces.
        axis: the axis of that value (non-negative).
        rank: number of axes of that value.
        size: length of that axis in the original model.
        kept: the indices that stay.
    """

    output: str
    input: str
    axis: int
    rank: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A copy of a shared weight, made because its users are cut differently.

    Attributes:
        of: name of the original weight.
        output: first output of the node that uses the copy.
        input: which input of that node it is.
    """

    of: str
    output: str
    input: int


@dataclass(frozen=True)
class ShapeEdit:
    """A constant that holds a shape, size or position, before and after the cut."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class RemovedLayer:
    """A residual block taken out whole.

    Attributes:
        id: name of the block within this model.
        nodes: its nodes by their first outputs (which always have names), the sum last.
    """

    id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is cut, completely.

    Attributes:
        sha256: hash of the original model file's bytes (and of its external data's names, not contents).
        opset: default-domain opset of the original.
        groups: every prunable group, cut or not.
        frozen: axes that can't be cut, with reasons.
        slices: weight name -> axis -> kept indices, in order. Complete; names of the original file.
        shapes: constant name -> its value before and after.
        restrictions: reductions over a cut axis (see `Restriction`).
        splits: copies made of a shared weight whose users are cut differently: copy name -> `Split`.
        removed_layers: residual blocks removed whole.
    """

    sha256: str
    opset: int
    groups: tuple[GroupCut, ...] = ()
    frozen: tuple[FrozenAxis, ...] = ()
    slices: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    shapes: Mapping[str, ShapeEdit] = field(default_factory=dict)
    restrictions: tuple[Restriction, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    removed_layers: tuple[RemovedLayer, ...] = ()

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Group id -> kept units, for the groups that are cut at all."""
        return {g.id: g.kept for g in self.groups if len(g.kept) < g.size}

    def with_removed(self, layers: tuple[RemovedLayer, ...]) -> Plan:
        """The same plan with other removed layers."""
        return replace(self, removed_layers=layers)

    def to_json(self) -> dict[str, Any]:
        """The document written to plan.json."""
        return {
            "schema": SCHEMA,
            "model": {"sha256": self.sha256, "opset": self.opset},
            "groups": [
                {
                    "id": g.id,
                    "kind": g.kind,
                    "size": g.size,
                    "kept": list(g.kept),
                    "exact": g.exact,
                    "axes": [{"tensor": a.tensor, "axis": a.axis} for a in g.axes],
                }
                for g in self.groups
            ],
            "frozen": [{"id": f.id, "size": f.size, "reason": f.reason} for f in self.frozen],
            "slices": {
                name: {str(axis): list(kept) for axis, kept in sorted(axes.items())}
                for name, axes in sorted(self.slices.items())
            },
            "shapes": {
                name: {"from": list(edit.before), "to": list(edit.after)}
                for name, edit in sorted(self.shapes.items())
            },
            "restrictions": [{**vars(r), "kept": list(r.kept)} for r in self.restrictions],
            "splits": {
                name: {"of": s.of, "output": s.output, "input": s.input}
                for name, s in sorted(self.splits.items())
            },
            "removed_layers": [{"id": r.id, "nodes": list(r.nodes)} for r in self.removed_layers],
        }

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> Plan:
        """Read a document of `to_json`.

        Raises:
            ConfigError: the document isn't a plan of a schema we know.
        """
        if not isinstance(doc, Mapping) or doc.get("schema") != SCHEMA:
            found = doc.get("schema") if isinstance(doc, Mapping) else type(doc).__name__
            raise ConfigError(f"not a plan of schema {SCHEMA} (found {found!r})")
        try:
            return cls._parse(doc)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"the plan is malformed: {error!r}") from error

    @classmethod
    def _parse(cls, doc: Mapping[str, Any]) -> Plan:
        return cls(
            sha256=str(doc["model"]["sha256"]),
            opset=int(doc["model"]["opset"]),
            groups=tuple(
                GroupCut(
                    id=str(g["id"]),
                    kind=str(g["kind"]),
                    size=int(g["size"]),
                    kept=tuple(int(i) for i in g["kept"]),
                    exact=bool(g["exact"]),
                    axes=tuple(AxisRef(str(a["tensor"]), int(a["axis"])) for a in g["axes"]),
                )
                for g in doc["groups"]
            ),
            frozen=tuple(FrozenAxis(str(f["id"]), int(f["size"]), str(f["reason"])) for f in doc["frozen"]),
            slices={
                str(name): {int(axis): tuple(int(i) for i in kept) for axis, kept in axes.items()}
                for name, axes in doc["slices"].items()
            },
            shapes={
                str(name): ShapeEdit(tuple(map(int, edit["from"])), tuple(map(int, edit["to"])))
                for name, edit in doc["shapes"].items()
            },
            restrictions=tuple(
                Restriction(
                    output=str(r["output"]),
                    input=str(r["input"]),
                    axis=int(r["axis"]),
                    rank=int(r["rank"]),
                    size=int(r["size"]),
                    kept=tuple(map(int, r["kept"])),
                )
                for r in doc.get("restrictions", [])
            ),
            splits={
                str(k): Split(str(v["of"]), str(v["output"]), int(v["input"]))
                for k, v in doc.get("splits", {}).items()
            },
            removed_layers=tuple(
                RemovedLayer(str(r["id"]), tuple(map(str, r["nodes"]))) for r in doc["removed_layers"]
            ),
        )

    def dumps(self) -> str:
        """Canonical JSON text: the same plan gives the same bytes."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """SHA-256 of the canonical text."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        ConfigError: the file is missing, isn't JSON, or isn't a plan.
    """
    return documents.read(path, "plan", "give a plan.json that condensec wrote", Plan.from_json)
