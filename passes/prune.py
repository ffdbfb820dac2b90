"""Prune: the one slicer.

Takes an analysis and the units that stay; slices every weight, lets sizes in attributes and shape
arithmetic follow, and returns the cut model with the plan that describes it completely.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.errors import PostconditionError, PreconditionError
from condensec.filetensor import FileTensor, external, sliced
from condensec.passes.closing import close_bodies
from condensec.passes.collector import paused
from condensec.passes.context import AttributeRewrite, Kept
from condensec.passes.groups import Analysis
from condensec.passes.layers import take_out
from condensec.passes.planning import describe
from condensec.passes.resize import Resizer
from condensec.passes.sharing import VIEWS
from condensec.plan import Plan, RemovedLayer, Split

Array = npt.NDArray[Any]
LAZY_BYTES = 1 << 26  # larger weights are sliced when they are written out, one at a time...
SMALL_BYTES = 1 << 16  # ...and external ones above this


@dataclass(frozen=True)
class Cut:
    """A cut model and the plan that describes it."""

    model: ir.Model
    plan: Plan


@paused()
def prune(
    analysis: Analysis,
    units: Mapping[str, Sequence[int]],
    *,
    layers: Sequence[str] = (),
    sha256: str = "",
    apart: Collection[str] = (),
) -> Cut:
    """Cut a model.

    Args:
        analysis: groups of the uncut model.
        units: kept unit indices by group id; absent groups stay whole.
        layers: ids of residual blocks to take out whole.
        sha256: hash of the original file, for the plan.
        apart: copies of shared weights that have contents of their own by now, and don't become one again.

    Raises:
        PreconditionError: no layer has such an id, a group would lose all its units, or an index is out
            of range.
        PostconditionError: shape arithmetic can't follow the cut; names the node.
    """
    _check(analysis, units)
    units = _without_empty_axes(analysis, units)
    kept = analysis.kept(units)
    model = analysis.model.clone()
    nodes = {node.name: node for node in model.graph}
    slices = _slice_weights(analysis, kept, model)
    resizer = Resizer(analysis, kept, model)
    for rewrite in analysis.context.rewrites:
        node = nodes[rewrite.node.name]
        if isinstance(rewrite, AttributeRewrite):
            node.attributes[rewrite.name] = _attribute(rewrite.name, rewrite.new(kept))
        else:
            resizer.rewrite(node, rewrite.index, lambda old, rewrite=rewrite: rewrite.new(kept, old))  # type: ignore[misc]
    resizer.clear()
    _forget_shapes(model.graph)
    removed = _removed(analysis, layers)
    plan = describe(analysis, units, kept, slices, resizer.edits(), removed, sha256, apart)
    _merge_copies(model.graph, plan, analysis.normalized.splits)
    take_out(model.graph, [layer for layer in analysis.layers if layer.id in layers])
    return Cut(close_bodies(model), plan)


def _removed(analysis: Analysis, layers: Sequence[str]) -> tuple[RemovedLayer, ...]:
    """What the plan says of removed layers: nodes by their first outputs."""
    unknown = set(layers) - {layer.id for layer in analysis.layers}
    if unknown:
        raise PreconditionError(f"no layer is called {min(unknown)}")
    outputs = {node.name: node.outputs[0].name or "" for node in analysis.model.graph}
    return tuple(
        RemovedLayer(layer.id, tuple(outputs[name] for name in layer.nodes))
        for layer in analysis.layers
        if layer.id in layers
    )


def _attribute(name: str, value: int | float | list[int]) -> ir.Attr:
    if isinstance(value, list):
        return ir.AttrInt64s(name, value)
    return ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)


def _check(analysis: Analysis, units: Mapping[str, Sequence[int]]) -> None:
    for group in analysis.groups:
        kept = units.get(group.id)
        if kept is None:
            continue
        if not len(kept):
            raise PreconditionError(f"group {group.id} would lose all of its {group.size} units")
        if len(kept) < group.least:
            raise PreconditionError(
                f"group {group.id} would keep {len(kept)} of {group.size} units; {group.least} have to stay"
            )
        if min(kept) < 0 or max(kept) >= group.size or len(set(kept)) != len(kept):
            raise PreconditionError(
                f"group {group.id} has units 0..{group.size - 1}; asked to keep {list(kept)[:8]}..."
            )
    unknown = set(units) - {g.id for g in analysis.groups}
    if unknown:
        raise PreconditionError(f"no group is called {sorted(unknown)[0]}")


def _without_empty_axes(
    analysis: Analysis, units: Mapping[str, Sequence[int]]
) -> Mapping[str, Sequence[int]]:
    """The units, and one more wherever a branch would be left with no channel at all.

    That can only happen where one group lies in pieces: the units of a Gather, say, of which a later Slice
    takes a few.
    """
    pieces = {a.id: (g, i) for g in analysis.groups if len(g.atoms) > 1 for i, a in enumerate(g.atoms)}
    if not any(g.id in units for g, _ in pieces.values()):
        return units
    found = {name: set(map(int, kept)) for name, kept in units.items()}
    kept = analysis.kept(units)
    layouts = analysis.context.layouts.values()
    for term in {id(t): t for layout in layouts for t in layout if t is not None and t.size}.values():
        while not kept.size(term):
            empty = next(a for a in analysis.axes.atoms(term) if not kept.sizes.get(a.id, 1))
            group, index = pieces[empty.id]
            found[group.id].add(sum(a.size for a in group.atoms[:index]))
            kept = analysis.kept({name: sorted(some) for name, some in found.items()})
    return {name: sorted(some) for name, some in found.items()}


def _slice_weights(analysis: Analysis, kept: Kept, model: ir.Model) -> dict[str, dict[int, tuple[int, ...]]]:
    slices: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, layout in analysis.weight_layouts.items():
        found: dict[int, npt.NDArray[np.int64]] = {}
        for axis, term in enumerate(layout):
            if term is not None and kept.size(term) < term.size:
                found[axis] = kept.indices(term)
        if not found:
            continue
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = _sliced(value.const_value, found)
        value.shape = ir.Shape(value.const_value.shape.numpy())
        slices[name] = {axis: tuple(indices.tolist()) for axis, indices in found.items()}
    return slices


def _sliced(tensor: ir.TensorProtocol, indices: Mapping[int, npt.NDArray[np.int64]]) -> ir.TensorProtocol:
    """Indices of some axes of a tensor. Large weights, and those in files, are read when written out."""
    shape = tensor.shape.numpy()
    size = prod(shape) * tensor.dtype.itemsize  # nbytes, without asking for the shape twice again
    if isinstance(tensor, ir.ExternalTensor) and size > SMALL_BYTES:
        tensor = external(tensor) or tensor
    if isinstance(tensor, FileTensor):
        return sliced(tensor, dict(indices))

    def cut() -> ir.TensorProtocol:
        array = tensor.numpy()
        for axis, wanted in indices.items():
            array = np.take(array, wanted, axis=axis)
        return ir.Tensor(np.asarray(array, order="C"), dtype=tensor.dtype, name=tensor.name)

    if size > LAZY_BYTES:
        sizes = [len(indices[axis]) if axis in indices else int(n) for axis, n in enumerate(shape)]
        return ir.LazyTensor(cut, dtype=tensor.dtype, shape=ir.Shape(sizes), name=tensor.name)
    return cut()


def set_weight(value: ir.Value, array: Array, dtype: ir.DataType) -> None:
    """Give an initializer new contents, of any size."""
    value.const_value = ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _forget_shapes(graph: ir.Graph) -> None:
    """Inner values' recorded shapes are those before the cut."""
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None


def _merge_copies(graph: ir.Graph, plan: Plan, splits: Mapping[str, Split]) -> None:
    """Copies of a shared weight that were cut alike become one again; of the others the original goes."""
    for copy, split in splits.items():
        if copy in plan.splits:
            graph.initializers.pop(split.of, None)
            continue
        duplicate, value = graph.initializers.get(copy), graph.initializers[split.of]
        if duplicate is None:  # another stands for it
            continue
        value.const_value, value.shape = duplicate.const_value, duplicate.shape
        for use in list(duplicate.uses()):
            use.node.replace_input_with(use.idx, value)
        del graph.initializers[copy]
        _merge_views(graph, value)


def _merge_views(graph: ir.Graph, value: ir.Value) -> None:
    """Equal views of one weight become one."""
    seen: dict[tuple[Any, ...], ir.Node] = {}
    for use in list(value.uses()):
        node = use.node
        if node.op_type not in VIEWS or any(o.is_graph_output() for o in node.outputs):
            continue
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        first = seen.setdefault((node.domain, node.op_type, node.inputs, *attributes), node)
        if first is not node:
            for other in list(node.outputs[0].uses()):
                other.node.replace_input_with(other.idx, first.outputs[0])
            graph.remove(node, safe=True)
    for node in seen.values():
        _merge_views(graph, node.outputs[0])


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
    layers = [layer.id for layer in plan.removed_layers]
    return prune(analysis, plan.kept(), layers=layers, sha256=plan.sha256)


def carried(weights: Mapping[str, Array], before: Plan, after: Plan) -> dict[str, Array]:
    """Healed weights of an earlier cut, sliced for a deeper one.

    Args:
        weights: healed arrays by name, in the shapes that ``before`` cut.
        before: the plan the weights were healed under.
        after: a plan that keeps a subset of what ``before`` keeps.

    Raises:
        PostconditionError: ``after`` keeps an index that ``before`` had cut.
    """
    apart = {copy: split.of for copy, split in after.splits.items() if copy not in before.splits}
    sources = {name: name for name in weights if name not in apart.values()}
    sources |= {copy: of for copy, of in apart.items() if of in weights}
    for copy in sorted(after.splits.keys() - sources.keys()):  # another copy stood for it
        twin = next((t for t in before.splits if t in weights and _alike(before, t, copy)), None)
        if twin is not None:
            sources[copy] = twin
    return {
        name: _deeper(name, weights[source], before.slices.get(source, {}), after.slices.get(name, {}))
        for name, source in sources.items()
    }


def _alike(plan: Plan, a: str, b: str) -> bool:
    """Whether two copies are of one weight and were cut alike."""
    both = plan.splits.get(a), plan.splits.get(b)
    same = both[0] is not None and both[1] is not None and both[0].of == both[1].of
    return same and plan.slices.get(a) == plan.slices.get(b)


def _deeper(
    name: str, array: Array, before: Mapping[int, tuple[int, ...]], after: Mapping[int, tuple[int, ...]]
) -> Array:
    for axis, indices in after.items():
        old = before.get(axis)
        positions = np.asarray(indices) if old is None else np.searchsorted(old, indices)
        if old is not None and not np.array_equal(
            np.asarray(old)[np.minimum(positions, len(old) - 1)], indices
        ):
            raise PostconditionError(
                f"axis {axis} of '{name}' would bring back units that were cut", node=name
            )
        array = np.take(array, positions, axis=axis)
    return array


def with_weights(model: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    """A copy of a model with other weights (in their dtypes); names it doesn't have are passed over."""
    copy = model.clone()
    for name, array in weights.items():
        value = copy.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            set_weight(value, array, value.const_value.dtype)
    return copy


__all__ = ["Cut", "Plan", "RemovedLayer", "carried", "prune", "replay", "set_weight", "with_weights"]
