"""What is in a model, and what could be cut of it: `condensec inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.plan import FrozenAxis

if TYPE_CHECKING:
    from condensec.data import Signature

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GroupInfo:
    """One group of units that live and die together."""

    id: str
    kind: str
    size: int
    exact: bool
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in a model, and what could be cut.

    Attributes:
        inputs, outputs: name -> type and shape.
        opset: of the default domain.
        nodes: number of nodes.
        params: elements of all weights.
        macs: multiply-accumulates of one sample at the sample shapes.
        reachable: share of the MACs in nodes with at least one prunable axis.
        shapes: the sample shapes used.
        groups: prunable groups in graph order.
        frozen: axes that can't be cut, and why.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opset: int
    nodes: int
    params: int
    macs: int
    reachable: float
    shapes: Shapes
    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenAxis, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of ``condensec inspect --json``."""
        return {
            "schema": 1,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "opset": self.opset,
            "nodes": self.nodes,
            "params": self.params,
            "macs": self.macs,
            "reachable": self.reachable,
            "shapes": {name: list(sizes) for name, sizes in self.shapes.items()},
            "groups": [vars(g) | {"tensors": list(g.tensors)} for g in self.groups],
            "frozen": [vars(f) for f in self.frozen],
        }


def look(model: Path, shapes: Shapes | None = None, freeze: str | None = None) -> Inspection:
    """See `condensec.api.inspect`."""
    from condensec import io
    from condensec.passes.groups import analyze as find
    from condensec.stages.goals import count_parameters

    loaded = io.load(model)
    signature = io.signature(loaded)
    analysis = find(loaded, shapes, freeze=freeze)
    return Inspection(
        inputs={spec.name: str(spec) for spec in signature.inputs},
        outputs={spec.name: str(spec) for spec in signature.outputs},
        opset=analysis.context.opset,
        nodes=len(list(loaded.graph)),
        params=count_parameters(analysis),
        macs=analysis.macs(),
        reachable=analysis.reachable(),
        shapes=_one_sample(signature, analysis.world.inputs),
        groups=tuple(
            GroupInfo(g.id, g.kind, g.size, g.exact, tuple(dict.fromkeys(a.tensor for a in g.axes)))
            for g in analysis.groups
        ),
        frozen=analysis.frozen,
    )


def _one_sample(signature: Signature, sizes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of one sample's inputs, from sizes at any batch."""
    from condensec.data import synthetic

    found = {name: (1, *dims[1:]) for name, dims in sizes.items() if name not in signature.sides}
    if signature.sides:
        found = signature.sample_shapes(synthetic(signature, count=1, shapes=found))
    return found
