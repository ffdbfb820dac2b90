"""What was cut, put into words: the plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from condensec.passes.context import Kept
from condensec.passes.groups import Analysis
from condensec.plan import AxisRef, GroupCut, Plan, RemovedLayer, Restriction, ShapeEdit, Split


def describe(
    analysis: Analysis,
    units: Mapping[str, Sequence[int]],
    kept: Kept,
    slices: dict[str, dict[int, tuple[int, ...]]],
    shapes: dict[str, ShapeEdit],
    removed: tuple[RemovedLayer, ...],
    sha256: str,
    apart: Collection[str] = (),
) -> Plan:
    """The plan of a cut.

    Args:
        analysis: groups of the uncut model.
        units: kept unit indices by group id.
        kept: the same by atom.
        slices: what was cut out of which weight, copies of shared weights apart.
        shapes: constants of sizes that changed.
        removed: residual blocks taken out whole.
        sha256: hash of the original file.
        apart: copies of shared weights that don't become one again.
    """
    splits, twins = analysis.normalized.splits, analysis.normalized.twins
    slices = {**slices, **{twin: slices[copy] for twin, copy in twins.items() if copy in slices}}
    merged = _merged(splits, slices, apart)
    groups = tuple(
        GroupCut(
            g.id,
            g.kind,
            g.size,
            tuple(sorted(int(i) for i in units.get(g.id, range(g.size)))),
            g.exact,
            tuple(dict.fromkeys(AxisRef(merged.get(a.tensor, a.tensor), a.axis) for a in g.axes)),
        )
        for g in analysis.groups
    )
    return Plan(
        sha256=sha256,
        opset=analysis.context.opset,
        groups=groups,
        frozen=analysis.frozen,
        slices={merged.get(name, name): axes for name, axes in slices.items()},
        shapes=shapes,
        restrictions=_restrictions(analysis, kept),
        splits={copy: split for copy, split in splits.items() if copy not in merged},
        removed_layers=removed,
    )


def _merged(
    splits: Mapping[str, Split], slices: Mapping[str, Mapping[int, tuple[int, ...]]], apart: Collection[str]
) -> dict[str, str]:
    """Copies of shared weights that were all cut alike, and so stay one: copy name -> original name."""
    families: dict[str, list[str]] = {}
    for copy, split in splits.items():
        families.setdefault(split.of, []).append(copy)
    return {
        copy: original
        for original, family in families.items()
        if all(slices.get(copy) == slices.get(family[0]) and copy not in apart for copy in family)
        for copy in family
    }


def _restrictions(analysis: Analysis, kept: Kept) -> tuple[Restriction, ...]:
    found = []
    for reduction in analysis.context.reductions:
        indices = kept.indices(reduction.term)
        source = reduction.node.inputs[reduction.index]
        if len(indices) < reduction.term.size:
            assert source is not None
            found.append(
                Restriction(
                    output=reduction.node.outputs[0].name or "",
                    input=source.name or "",
                    axis=reduction.axis,
                    rank=len(analysis.context.layout(source)),
                    size=reduction.term.size,
                    kept=tuple(int(i) for i in indices),
                )
            )
    return tuple(found)
