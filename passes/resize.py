"""Let shape arithmetic follow a cut: constants that hold sizes, positions or indices, wherever they sit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.axes import Term
from condensec.errors import PostconditionError
from condensec.passes.arithmetic import evaluate_node
from condensec.passes.context import Kept
from condensec.plan import ShapeEdit

if TYPE_CHECKING:
    from condensec.passes.groups import Analysis

Array = npt.NDArray[Any]
_MOVES = frozenset(("Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Transpose"))
_PASS_THROUGH = frozenset(("Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity", "Flatten"))


class Resizer:
    """Rewrites inputs that hold sizes, in a cut model whose weights are sliced already.

    A constant is replaced, and so is arithmetic on sizes that are really constant. A size computed from
    `Shape` of a cut activation follows by itself. Where a target mixes sizes of the data with constants, the
    requirement is traced back through Concat, Unsqueeze, Cast, ... to the constant in it.
    """

    def __init__(self, analysis: Analysis, kept: Kept, model: ir.Model) -> None:
        self._analysis = analysis
        self._kept = kept
        self._graph = model.graph
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._values: dict[str, Array] = {}  # of shape arithmetic, after the cut, in the sample world
        self._dynamics: dict[str, npt.NDArray[np.bool_]] = {}
        self._edits: dict[str, ShapeEdit] = {}
        self._copies: dict[tuple[str, str, bytes], ir.Node] = {}
        self._copied: list[ir.Node] = []
        self._by_name = {value.name or "": value for value in analysis.context.layouts}

    def edits(self) -> dict[str, ShapeEdit]:
        """Constants changed, by their original name."""
        return dict(self._edits)

    def rewrite(self, node: ir.Node, index: int, new: Callable[[Array], Array]) -> None:
        """Make input ``index`` of ``node`` hold what ``new`` makes of it.

        Raises:
            PostconditionError: the value is computed in a way that can't be traced.
        """
        value = node.inputs[index]
        old = self._analysis.world.known(value) if value is not None else None
        if value is None or old is None:
            return  # chosen at run time: its rule froze what it had to
        wanted = np.asarray(new(np.asarray(old)))
        self._require(node, index, value, wanted)

    def _require(self, node: ir.Node, index: int, value: ir.Value, wanted: Array) -> None:
        current = self._now(value)
        if current is not None and current.shape == wanted.shape and np.array_equal(current, wanted):
            return
        if not self._dynamic(value).any():
            self._replace(node, index, value, wanted)
            self._values.clear()
            return
        producer = value.producer()
        assert producer is not None
        if len(value.uses()) > 1 or value.is_graph_output():
            own = self._own(node, index, value, producer, wanted)
            if own is None:
                return
            producer = own
        for position, part in self._trace(node, producer, wanted):
            source = producer.inputs[position]
            assert source is not None
            self._require(producer, position, source, part)

    def _own(
        self, node: ir.Node, index: int, value: ir.Value, producer: ir.Node, wanted: Array
    ) -> ir.Node | None:
        """A copy of a node whose result others read, too, and may need as it is or otherwise.

        Exporters and optimizers compute equal shapes once: heads of queries, keys and values, say.

        Returns:
            None where another user wanted the same, and its copy serves here.
        """
        key = (value.name or "", wanted.dtype.str, wanted.tobytes())
        copy = self._copies.get(key)
        if copy is not None:
            node.replace_input_with(index, copy.outputs[producer.outputs.index(value)])
            return None
        number = len(self._copies)
        copy = ir.Node(
            producer.domain,
            producer.op_type,
            list(producer.inputs),
            list(producer.attributes.values()),
            num_outputs=len(producer.outputs),
            name=f"{producer.name}.cut{number}",
        )
        for old, new in zip(producer.outputs, copy.outputs, strict=True):
            new.name, new.type = f"{old.name}.cut{number}", old.type
        copy.meta.update(producer.meta)  # which body it is in
        self._graph.insert_after(producer, copy)
        node.replace_input_with(index, copy.outputs[producer.outputs.index(value)])
        self._copies[key] = copy
        self._copied.append(producer)
        return copy

    def clear(self) -> None:
        """Take out what nobody reads any more: originals all of whose users have copies."""
        for producer in reversed(self._copied):
            if producer.graph is self._graph and not any(
                o.uses() or o.is_graph_output() for o in producer.outputs
            ):
                self._graph.remove(producer, safe=True)

    def _trace(self, node: ir.Node, producer: ir.Node, wanted: Array) -> list[tuple[int, Array]]:
        """What the inputs of a node have to become, so that its output becomes ``wanted``."""
        olds = [self._old(v) for v in producer.inputs]
        if producer.op_type == "Concat":
            bounds = np.cumsum([old.size for old in olds])[:-1]
            return list(enumerate(np.split(wanted, bounds)))
        if producer.op_type in _PASS_THROUGH:
            return [(0, wanted.reshape(olds[0].shape).astype(olds[0].dtype))]
        if producer.op_type == "Mul" and wanted.size == 1:
            for number, data in ((0, 1), (1, 0)):
                constant, factor = producer.inputs[number], self._now(producer.inputs[data])
                if constant is None or self._dynamic(constant).any() or factor is None or not factor.all():
                    continue
                quotient, rest = np.divmod(wanted.reshape(-1)[0], factor.reshape(-1)[0])
                if rest == 0:
                    return [(number, np.full(olds[number].shape, quotient, olds[number].dtype))]
        if producer.op_type == "Where":
            condition = self._now(producer.inputs[0])
            if condition is not None and all(old.shape == wanted.shape for old in olds):
                now = [self._now(producer.inputs[i]) for i in (1, 2)]
                if now[0] is not None and now[1] is not None:
                    chosen = condition.astype(np.bool_)
                    return [(1, np.where(chosen, wanted, now[0])), (2, np.where(chosen, now[1], wanted))]
        raise self._failure(node, producer)

    def _old(self, value: ir.Value | None) -> Array:
        """The value before the cut, in the sample world."""
        known = self._analysis.world.known(value)
        return np.zeros(0) if known is None else np.asarray(known)

    def _dynamic(self, value: ir.Value | None) -> npt.NDArray[np.bool_]:
        """Which elements of shape arithmetic depend on an axis of the data, and so may differ at run time.

        The size of an axis that has a layout comes from a weight: it's a number, however it was computed.
        """
        name = value.name or "" if value is not None else ""
        world = self._analysis.world
        if value is None or name not in world.derived:
            return np.zeros(np.shape(world.values.get(name, 0)), np.bool_)
        found = self._dynamics.get(name)
        if found is None:
            found = self._dynamics[name] = self._find_dynamic(value)
        return found

    def _find_dynamic(self, value: ir.Value) -> npt.NDArray[np.bool_]:
        world = self._analysis.world
        known = world.values[value.name or ""]
        producer = value.producer()
        assert producer is not None
        if producer.op_type in ("Shape", "Size"):
            source = producer.inputs[0]
            assert source is not None
            layout = self._analysis.context.layouts.get(self._by_name[source.name or ""], [])
            data = np.array([self._is_data(term) for term in layout], np.bool_)
            if producer.op_type == "Size":
                return np.asarray(data.any())
            start = producer.attributes["start"].as_int() if "start" in producer.attributes else 0
            end = producer.attributes["end"].as_int() if "end" in producer.attributes else len(data)
            return data[start:end]
        taints = [self._dynamic(v) for v in producer.inputs]
        if producer.op_type in _MOVES:
            moved = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
            feeds = {v.name or "": world.values[v.name or ""] for v in producer.inputs if v is not None}
            feeds.update((v.name or "", t.astype(np.int64)) for v, t in zip(moved, taints, strict=False) if v)
            results = evaluate_node(producer, feeds, world.shapes)
            if results is not None:
                return results[producer.outputs.index(value)].astype(np.bool_)
        return np.full(known.shape, any(t.any() for t in taints))

    def _is_data(self, term: Term | None) -> bool:
        return term is None or any(atom.data for atom in self._analysis.axes.atoms(term))

    def _failure(self, node: ir.Node, producer: ir.Node) -> PostconditionError:
        return PostconditionError(
            f"the sizes that '{node.name}' ({node.op_type}) takes from '{producer.name}' "
            f"({producer.op_type}) can't follow the cut",
            node=node.name,
            hint="leave it alone with --freeze",
        )

    def _replace(self, node: ir.Node, index: int, value: ir.Value, wanted: Array) -> None:
        """Put a new constant in the place of one input; other users keep theirs."""
        name = value.name or ""
        old = self._analysis.world.known(value)
        assert old is not None
        wanted = np.asarray(wanted, dtype=old.dtype, order="C")  # ascontiguousarray: no scalars
        alone = value.is_initializer() and len(list(value.uses())) == 1
        new_name = name if alone else f"{name}.cut"
        number = 1
        while not alone and new_name in self._graph.initializers:
            present = self._graph.initializers[new_name]
            if present.const_value is not None and np.array_equal(present.const_value.numpy(), wanted):
                node.replace_input_with(index, present)
                return
            number += 1
            new_name = f"{name}.cut{number}"
        tensor = ir.Tensor(wanted, name=new_name)
        if alone:
            value.const_value = tensor
            value.shape = ir.Shape(wanted.shape)
            value.dtype = tensor.dtype
        else:
            fresh = ir.Value(
                name=new_name,
                shape=ir.Shape(wanted.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self._graph.register_initializer(fresh)
            node.replace_input_with(index, fresh)
        self._record(name if alone or name not in self._edits else new_name, old, wanted)

    def _record(self, name: str, old: Array, new: Array) -> None:
        """A value that only stays what it was needs no entry."""
        if old.shape != new.shape or not np.array_equal(old, new):
            self._edits[name] = ShapeEdit(tuple(map(int, old.reshape(-1))), tuple(map(int, new.reshape(-1))))

    def _now(self, value: ir.Value | None) -> Array | None:
        """The value after the cut, in the sample world."""
        if value is None:
            return None
        name = value.name or ""
        if value.is_initializer():
            return None if value.const_value is None else value.const_value.numpy()
        if name not in self._analysis.world.derived:
            return self._analysis.world.values.get(name)
        if name in self._values:
            return self._values[name]
        producer = value.producer()
        if producer is None:
            return None
        inputs: dict[str, Array] = {}
        for source in producer.inputs:
            if source is None:
                continue
            if producer.op_type not in ("Shape", "Size"):
                found = self._now(source)
                if found is None:
                    return None
                inputs[source.name or ""] = found
        results = evaluate_node(producer, inputs, self._shapes_after())
        if results is None:
            return None
        for output, array in zip(producer.outputs, results, strict=False):
            self._values[output.name or ""] = array
        return self._values.get(name)

    def _shapes_after(self) -> dict[str, tuple[int, ...]]:
        if self._shapes is None:
            self._shapes = dict(self._analysis.world.shapes)
            for value, layout in self._analysis.context.layouts.items():
                before = self._analysis.world.shape(value)
                if before is not None and any(t is not None for t in layout):
                    self._shapes[value.name or ""] = tuple(
                        s if t is None else self._kept.size(t) for s, t in zip(before, layout, strict=True)
                    )
        return self._shapes
