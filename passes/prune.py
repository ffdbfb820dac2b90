"""Prune: the one slicer.

Takes an analysis and the units that stay; slices every weight, lets sizes in attributes and shape
arithmetic follow, and returns the cut model with the plan that describes it completely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.errors import PostconditionError, PreconditionError
from condensec.passes.context import AttributeRewrite, Kept
from condensec.passes.groups import Analysis
from condensec.passes.resize import Resizer
from condensec.plan import GroupCut, Plan, RemovedLayer, Restriction, ShapeEdit, Split

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Cut:
    """A cut model and the plan that describes it."""

    model: ir.Model
    plan: Plan


def prune(analysis: Analysis, units: Mapping[str, Sequence[int]], *, sha256: str = "") -> Cut:
    """Cut a model.

    Args:
        analysis: groups of the uncut model.
        units: kept unit indices by group id; absent groups stay whole.
        sha256: hash of the original file, for the plan.

    Raises:
        PreconditionError: a group would lose all its units, or an index is out of range.
        PostconditionError: shape arithmetic can't follow the cut; names the node.
    """
    _check(analysis, units)
    kept = analysis.kept(units)
    model = analysis.model.clone()
    nodes = {node.name: node for node in model.graph}
    slices = _slice_weights(analysis, kept, model)
    resizer = Resizer(analysis, kept, model)
    for rewrite in analysis.context.rewrites:
        node = nodes[rewrite.node.name]
        if isinstance(rewrite, AttributeRewrite):
            value = rewrite.new(kept)
            node.attributes[rewrite.name] = (
                ir.AttrInt64(rewrite.name, value)
                if isinstance(value, int)
                else ir.AttrInt64s(rewrite.name, value)
            )
        else:
            resizer.rewrite(node, rewrite.index, lambda old, rewrite=rewrite: rewrite.new(kept, old))  # type: ignore[misc]
    _forget_shapes(model.graph)
    shapes = resizer.edits()
    plan = _plan(analysis, units, kept, slices, shapes, sha256)
    _merge_copies(model.graph, plan.splits, analysis.normalized.splits)
    return Cut(model, plan)


def _check(analysis: Analysis, units: Mapping[str, Sequence[int]]) -> None:
    for group in analysis.groups:
        kept = units.get(group.id)
        if kept is None:
            continue
        if not len(kept):
            raise PreconditionError(f"group {group.id} would lose all of its {group.size} units")
        if min(kept) < 0 or max(kept) >= group.size or len(set(kept)) != len(kept):
            raise PreconditionError(
                f"group {group.id} has units 0..{group.size - 1}; asked to keep {list(kept)[:8]}..."
            )
    unknown = set(units) - {g.id for g in analysis.groups}
    if unknown:
        raise PreconditionError(f"no group is called {sorted(unknown)[0]}")


def _slice_weights(analysis: Analysis, kept: Kept, model: ir.Model) -> dict[str, dict[int, tuple[int, ...]]]:
    slices: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, layout in analysis.weight_layouts.items():
        found: dict[int, npt.NDArray[np.int64]] = {}
        for axis, term in enumerate(layout):
            if term is not None:
                indices = kept.indices(term)
                if len(indices) < term.size:
                    found[axis] = indices
        if not found:
            continue
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        for axis, indices in found.items():
            if not len(indices):
                raise PreconditionError(f"axis {axis} of weight '{name}' would lose everything", node=name)
            array = np.take(array, indices, axis=axis)
        set_weight(value, array, tensor.dtype)
        slices[name] = {axis: tuple(int(i) for i in indices) for axis, indices in found.items()}
    return slices


def set_weight(value: ir.Value, array: Array, dtype: ir.DataType) -> None:
    """Give an initializer new contents, of any size."""
    value.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _forget_shapes(graph: ir.Graph) -> None:
    """Inner values' recorded shapes are those before the cut."""
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None


def _plan(
    analysis: Analysis,
    units: Mapping[str, Sequence[int]],
    kept: Kept,
    slices: dict[str, dict[int, tuple[int, ...]]],
    shapes: dict[str, ShapeEdit],
    sha256: str,
) -> Plan:
    splits = analysis.normalized.splits
    copies: dict[str, list[str]] = {}
    for copy, split in splits.items():
        copies.setdefault(split.of, [split.of]).append(copy)
    different = {
        copy: splits[copy]
        for original, family in copies.items()
        if any(slices.get(m) != slices.get(original) for m in family)
        for copy in family[1:]
    }
    same = set(splits) - set(different)
    groups = tuple(
        GroupCut(
            g.id,
            g.kind,
            g.size,
            tuple(sorted(int(i) for i in units.get(g.id, range(g.size)))),
            g.exact,
            tuple(a for a in g.axes if a.tensor not in same),
        )
        for g in analysis.groups
    )
    return Plan(
        sha256=sha256,
        opset=analysis.context.opset,
        groups=groups,
        frozen=analysis.frozen,
        slices={name: axes for name, axes in slices.items() if name not in same},
        shapes=shapes,
        restrictions=_restrictions(analysis, kept),
        splits=different,
        removed_layers=(),
    )


def _restrictions(analysis: Analysis, kept: Kept) -> tuple[Restriction, ...]:
    found = []
    for reduction in analysis.context.reductions:
        indices = kept.indices(reduction.term)
        source = reduction.node.inputs[reduction.index]
        # a contraction sees zeros at cut indices, unless a norm before it moved them
        needed = not reduction.contraction or any(not a.exact for a in analysis.axes.atoms(reduction.term))
        if len(indices) < reduction.term.size and needed:
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


def _merge_copies(graph: ir.Graph, different: Mapping[str, Split], splits: Mapping[str, Split]) -> None:
    """Copies of a shared vector that were cut alike become one again."""
    for copy, split in splits.items():
        if copy in different:
            continue
        duplicate, value = graph.initializers[copy], graph.initializers[split.of]
        for use in list(duplicate.uses()):
            use.node.replace_input_with(use.idx, value)
        del graph.initializers[copy]


def replay(analysis: Analysis, plan: Plan) -> Cut:
    """Cut a model as a saved plan says.

    Raises:
        PreconditionError: the plan's groups aren't this model's.
    """
    mine = {g.id: g for g in analysis.groups}
    for cut in plan.groups:
        if cut.id not in mine or mine[cut.id].size != cut.size:
            raise PreconditionError(
                f"the plan's group {cut.id} ({cut.size} units) isn't in this model",
                hint="was the plan made for another file?",
            )
    if plan.removed_layers:
        raise PreconditionError("the plan removes layers, which this version can't replay")
    return prune(analysis, plan.kept(), sha256=plan.sha256)


def carried(weights: Mapping[str, Array], before: Plan, after: Plan) -> dict[str, Array]:
    """Healed weights of an earlier cut, sliced for a deeper one.

    Args:
        weights: healed arrays by name, in the shapes that ``before`` cut.
        before: the plan the weights were healed under.
        after: a plan that keeps a subset of what ``before`` keeps.

    Raises:
        PostconditionError: ``after`` keeps an index that ``before`` had cut.
    """
    result: dict[str, Array] = {}
    for name, array in weights.items():
        for axis, indices in after.slices.get(name, {}).items():
            old = before.slices.get(name, {}).get(axis)
            positions = np.asarray(indices) if old is None else np.searchsorted(old, indices)
            if old is not None and not np.array_equal(
                np.asarray(old)[np.minimum(positions, len(old) - 1)], indices
            ):
                raise PostconditionError(
                    f"axis {axis} of '{name}' would bring back units that were cut", node=name
                )
            array = np.take(array, positions, axis=axis)
        result[name] = array
    return result


def with_weights(model: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    """A copy of a model with other weights (in their dtypes); names it doesn't have are passed over."""
    copy = model.clone()
    for name, array in weights.items():
        value = copy.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            set_weight(value, array, value.const_value.dtype)
    return copy


__all__ = ["Cut", "Plan", "RemovedLayer", "carried", "prune", "replay", "set_weight", "with_weights"]
