"""The masked-equivalence oracle: proof of each cut.

Take the original model, zero exactly the parameter slices that the plan removes (a running variance: one),
and run it beside the cut one. Where a norm, softmax or mean reduces over a cut axis, the reference is the
original with that reduction restricted to the kept units. A wrong index shows at once.

The oracle is independent of the slicer: it is built from the plan and the original file alone, and imports
nothing from ``condensec.passes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.errors import PostconditionError
from condensec.plan import Plan, Restriction
from condensec.runner import Session

Array = npt.NDArray[Any]

# Two orders of the same fp32 sums differ by rounding; a wrong index differs by the size of the activations.
TOLERANCE = 1e-3
_SCALED = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))
_SAME_SHAPE = _SCALED | {
    "Softmax",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "InstanceNormalization",
}


@dataclass(frozen=True)
class Proof:
    """What the oracle found.

    Attributes:
        exact_groups: number of cut groups that no norm or softmax reduces over.
        approximate_groups: number of cut groups that one does.
        max_abs_error: largest difference of any output element.
        scale: largest magnitude of any output element of the reference.
        relative_error: the worst output's error over its scale.
        samples: number of samples compared.
    """

    exact_groups: int
    approximate_groups: int
    max_abs_error: float
    scale: float
    relative_error: float
    samples: int

    @property
    def passed(self) -> bool:
        """Whether the cut is right."""
        return bool(self.relative_error <= TOLERANCE)


def check(
    original: ir.Model, plan: Plan, pruned: ir.Model, feeds: Mapping[str, Array], *, threads: int = 1
) -> Proof:
    """Compare a cut model with the masked original.

    Args:
        original: the uncut model, as loaded from its file.
        plan: what was cut.
        pruned: the cut model, not healed.
        feeds: arrays by input name, for one call.
        threads: threads of each session.

    Raises:
        PostconditionError: the plan names something the original hasn't, or the cut model doesn't run.
    """
    reference = Session(masked(original, plan), threads=threads, optimize=False)
    expected = reference.run(feeds)
    del reference
    found = Session(pruned, threads=threads, optimize=False).run(feeds)
    return compare(plan, expected, found, samples=max((len(a) for a in feeds.values() if a.ndim), default=1))


def compare(plan: Plan, expected: Mapping[str, Array], found: Mapping[str, Array], *, samples: int) -> Proof:
    """Build the proof from the outputs of both models.

    Raises:
        PostconditionError: an output is missing or has another shape.
    """
    worst = scale = absolute = 0.0
    for name, reference in expected.items():
        other = found.get(name)
        if other is None or other.shape != reference.shape:
            shape = None if other is None else other.shape
            raise PostconditionError(
                f"output '{name}' has shape {shape} after the cut, {reference.shape} before", node=name
            )
        if reference.dtype.kind not in "fc":
            continue  # ids and counts follow from scores that are compared, and may tie
        a, b = reference.astype(np.float64), other.astype(np.float64)
        size = float(np.abs(a).max(initial=0.0))
        error = (
            float(np.abs(a - b).max(initial=0.0))
            if np.isfinite(b).all() or not np.isfinite(a).all()
            else np.inf
        )
        error = error if np.isfinite(error) else np.inf
        absolute, scale = max(absolute, error), max(scale, size)
        worst = max(worst, error / size if size > 0 else error)
    cut = [g for g in plan.groups if len(g.kept) < g.size]
    exact = sum(g.exact for g in cut)
    return Proof(exact, len(cut) - exact, absolute, scale, worst, samples)


def masked(original: ir.Model, plan: Plan) -> ir.Model:
    """The original with every removed parameter slice zeroed, and reductions restricted to kept units."""
    model = original.clone()
    values = {v.name: v for v in _values(model.graph)}
    variances = {
        node.inputs[4].name
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.inputs[4] is not None
    }
    for copy, split in plan.splits.items():
        user = values[split.output].producer()
        assert user is not None
        source = values[split.of]
        fresh = ir.Value(name=copy, shape=source.shape, type=source.type, const_value=_tensor(source))
        model.graph.register_initializer(fresh)
        user.replace_input_with(split.input, fresh)
        values[copy] = fresh
        if split.of in variances and user.op_type == "BatchNormalization":
            variances.add(copy)
    for name, axes in plan.slices.items():
        if name not in values:
            raise PostconditionError(
                f"the plan slices '{name}', which the original model doesn't have", node=name
            )
        _zero(values[name], axes, fill=1.0 if name in variances else 0.0)
    for restriction in plan.restrictions:
        _restrict(model.graph, values, restriction)
    return model


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.initializers.values(), *graph.inputs, *(o for node in graph for o in node.outputs)]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise PostconditionError(f"the plan slices '{value.name}', which isn't a constant", node=value.name)
    return tensor


def _zero(value: ir.Value, axes: Mapping[int, tuple[int, ...]], fill: float) -> None:
    tensor = _tensor(value)
    array = tensor.numpy().copy()
    for axis, kept in axes.items():
        gone = np.ones(array.shape[axis], np.bool_)
        gone[list(kept)] = False
        index: list[Any] = [slice(None)] * array.ndim
        index[axis] = gone
        array[tuple(index)] = fill
    new = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    producer = value.producer()
    if producer is not None:
        for name in list(producer.attributes):
            del producer.attributes[name]
        producer.attributes["value"] = ir.AttrTensor("value", new)
    value.const_value = new


def _restrict(graph: ir.Graph, values: Mapping[str | None, ir.Value], restriction: Restriction) -> None:
    """Let one reduction see only the kept indices of one axis of one input."""
    node = values[restriction.output].producer()
    source = values[restriction.input]
    if node is None:
        raise PostconditionError(
            f"'{restriction.output}' isn't computed in the original model", node=restriction.output
        )
    kept = np.array(restriction.kept, np.int64)
    position = next((i for i, v in enumerate(node.inputs) if v is source or _origin(v) is source), None)
    if position is None:
        raise PostconditionError(
            f"'{restriction.output}' doesn't read '{restriction.input}'", node=restriction.output
        )
    before = node.inputs[position]
    assert before is not None
    node.replace_input_with(position, _gather(graph, node, before, kept, restriction.axis))
    if node.op_type not in _SAME_SHAPE:
        return
    for index in range(1, len(node.inputs) if node.op_type in _SCALED else 1):
        parameter = node.inputs[index]  # scale and bias lie on the last axes, perhaps behind an Identity
        if parameter is not None:
            axis = restriction.axis - restriction.rank
            node.replace_input_with(index, _gather(graph, node, parameter, kept, axis))
    _scatter_back(graph, node, restriction, kept, source)


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value an inserted Gather reads, for nodes that are restricted on several axes."""
    while value is not None:
        producer = value.producer()
        if producer is None or not (producer.name or "").startswith("condensec.restrict"):
            return value
        value = producer.inputs[0]
    return None


def _constant(graph: ir.Graph, node: ir.Node, array: Array) -> ir.Value:
    name = f"condensec.restrict.constant.{len(graph.initializers)}"
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _gather(graph: ir.Graph, node: ir.Node, value: ir.Value, kept: Array, axis: int) -> ir.Value:
    indices = _constant(graph, node, kept)
    name = f"condensec.restrict.{len(graph.initializers)}"
    new = ir.Node("", "Gather", [value, indices], [ir.AttrInt64("axis", axis)], name=name)
    new.outputs[0].name = f"{name}.out"
    new.outputs[0].type = value.type
    graph.insert_before(node, new)
    return new.outputs[0]


def _scatter_back(
    graph: ir.Graph, node: ir.Node, restriction: Restriction, kept: Array, source: ir.Value
) -> None:
    """Bring the result back to full width, with zeros at the cut indices."""
    width = restriction.size
    positions = np.zeros(width, np.int64)
    positions[kept] = np.arange(len(kept))
    mask = np.zeros(width, np.float32)
    mask[kept] = 1
    mask = mask.reshape([width if i == restriction.axis else 1 for i in range(restriction.rank)])
    output = node.outputs[0]
    users = list(output.uses())
    spread = ir.Node(
        "", "Gather", [output, _constant(graph, node, positions)], [ir.AttrInt64("axis", restriction.axis)]
    )
    spread.name = f"condensec.restrict.spread.{len(graph.initializers)}"
    dtype = output.dtype or source.dtype or ir.DataType.FLOAT
    scale = _constant(graph, node, mask.astype(dtype.numpy()))
    zeroed = ir.Node(
        "", "Mul", [spread.outputs[0], scale], name=f"condensec.restrict.zero.{len(graph.initializers)}"
    )
    for new in (spread, zeroed):
        new.outputs[0].name = f"{new.name}.out"
        new.outputs[0].type = output.type
    graph.insert_after(node, [spread, zeroed])
    for use in users:
        use.node.replace_input_with(use.idx, zeroed.outputs[0])
