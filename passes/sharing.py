"""Weights with several users: apart while the graph is read, one again where their cuts agree.

A weight that several nodes use has as many copies while the graph is read. Then the copies are tied again,
one after the other, unless that would freeze a unit that is free alone: where one user's axis is frozen and
another's isn't, or where they see the weight in ways that contradict each other. Tied embeddings and layers
that share their weights stay one weight so, in the analysis and in the file. The copies share the tensor.

A user may see the weight through views: Transpose, Cast, DequantizeLinear, ... Each copy has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from condensec.folding import NO_WEIGHTS
from condensec.passes.arithmetic import names
from condensec.passes.bodies import is_open
from condensec.passes.context import Context
from condensec.passes.tensors import borrowed
from condensec.plan import Split

VIEWS = names("Cast DequantizeLinear Flatten Identity Reshape Squeeze Transpose Unsqueeze")
VECTOR_LIMIT = 1 << 16  # a shared vector longer than this is a real shared weight, not a deduplicated bias
_INT32_BIASES = frozenset(  # operator and input; a zero-point goes with its bias
    (("DequantizeLinear", 0), ("DequantizeLinear", 2), ("QGemm", 6), ("QLinearConv", 8))
)
_TRIES = 8  # clusters a copy is held against


@dataclass
class Use:
    """One place a shared weight is used at, by names (which outlive a clone of the model).

    Attributes:
        node: the node that uses it.
        index: which of its inputs.
        value: what that input was in the original: the weight, or a view of it.
        copy: the copy of the weight.
        chain: the views of the original, from the weight on.
        made: their copies.
        parameters: copies of the views' own parameters (scales, zero-points) -> the original's name.
    """

    node: str
    index: int
    value: str
    copy: str
    chain: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass
class Family:
    """A shared weight and its uses; ``weight``: is it one (or a bias that an exporter deduplicated)?"""

    name: str
    weight: bool
    uses: list[Use]


def part(graph: ir.Graph, splits: dict[str, Split]) -> list[Family]:
    """Give every user of a shared weight a copy, with copies of the views between them.

    Args:
        graph: of a normalized model, changed in place. Views that nobody uses any more stay for now.
        splits: copies made so far; the new ones are added.
    """
    families = []
    for name, value in list(graph.initializers.items()):
        tensor, places = value.const_value, value.uses()
        if len(places) < 2 and not any(use.node.op_type in VIEWS for use in places):
            continue
        if tensor is None or tensor.size < 2 or value.is_graph_output():
            continue
        if not is_parameter(value):
            continue
        found = _users(graph, value)
        if found is None or len(found) < 2:
            continue
        vector = sum(int(d) != 1 for d in tensor.shape.numpy()) == 1 and tensor.size <= VECTOR_LIMIT
        uses = [_copied(graph, value, number, *use, splits) for number, use in enumerate(found)]
        families.append(Family(name, not vector, uses))
    return families


def is_parameter(value: ir.Value) -> bool:
    """Whether a constant holds numbers to compute with, not indices, sizes or text.

    Of 32-bit integers only biases of quantized layers do: the quantizer makes equal ones one.
    """
    tensor = value.const_value
    if tensor is None or tensor.dtype not in NO_WEIGHTS:
        return tensor is not None
    places = [(use.node.op_type, use.idx) for use in value.uses()]
    return tensor.dtype is ir.DataType.INT32 and bool(places) and set(places) <= _INT32_BIASES


def _users(graph: ir.Graph, value: ir.Value) -> list[tuple[ir.Node, int, tuple[ir.Node, ...]]] | None:
    """Who uses a weight, with the views they see it through; None where it can't be given copies."""
    found: list[tuple[ir.Node, int, tuple[ir.Node, ...]]] = []
    todo: list[tuple[ir.Value, tuple[ir.Node, ...]]] = [(value, ())]
    while todo:
        top, chain = todo.pop()
        if top.is_graph_output():
            return None
        for use in top.uses():
            node = use.node
            if node.graph is not graph or is_open(node):
                return None
            own = [v for v in node.inputs[1:] if v is not None]
            if use.idx or node.op_type not in VIEWS or not all(v.is_initializer() for v in own):
                found.append((node, use.idx, chain))
            elif any(v.const_value is None or _shared(v) for v in own):
                return None
            else:
                todo.append((node.outputs[0], (*chain, node)))
    return found


def _shared(value: ir.Value) -> bool:
    """Whether a view's own parameter, of several numbers, has other users."""
    tensor = value.const_value
    assert tensor is not None
    return tensor.size > 1 and is_parameter(value) and len(value.uses()) > 1


def _copied(
    graph: ir.Graph,
    weight: ir.Value,
    number: int,
    node: ir.Node,
    index: int,
    chain: tuple[ir.Node, ...],
    splits: dict[str, Split],
) -> Use:
    """Give one user a copy of the weight and of its views."""
    seen = node.inputs[index]
    assert seen is not None
    split = Split(weight.name or "", node.outputs[0].name or "", index)
    current = _copy(graph, weight, number)
    splits[current.name or ""] = split
    found = Use(node.name or "", index, seen.name or "", current.name or "")
    found.chain = tuple(n.name or "" for n in chain)
    for view in chain:
        inputs: list[ir.Value | None] = [current]
        for own in view.inputs[1:]:
            if own is not None and own.const_value is not None and is_parameter(own):
                root = splits[own.name].of if own.name in splits else own.name or ""
                if own.const_value.size > 1:
                    own = _copy(graph, own, number)
                    splits[own.name or ""] = Split(root, split.output, split.input)
                    found.parameters[own.name or ""] = root
            inputs.append(own)
        attributes = list(view.attributes.values())
        new = ir.Node(view.domain, view.op_type, inputs, attributes, name=f"{view.name}.copy{number}")
        new.outputs[0].name = f"{view.outputs[0].name}.copy{number}"
        new.outputs[0].type = view.outputs[0].type
        graph.insert_before(view, new)
        found.made = (*found.made, new.name or "")
        current = new.outputs[0]
    node.replace_input_with(index, current)
    return found


def _copy(graph: ir.Graph, value: ir.Value, number: int) -> ir.Value:
    name = f"{value.name}.copy{number}"
    while name in graph.initializers:
        name += "_"
    assert value.const_value is not None
    tensor = borrowed(value.const_value, name)
    copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
    graph.register_initializer(copy)
    return copy


# -- together again -----------------------------------------------------------------------------------


@dataclass
class Rejoin:
    """Ties the copies that agree, once the graph has been read.

    Attributes:
        context: what the rules declared.
        graph: of the normalized model, changed in place.
        splits: copies that stay; those of a weight that is whole again leave.
        twins: copy -> the copy that stands for it, as both are cut alike; filled here.
    """

    context: Context
    graph: ir.Graph
    splits: dict[str, Split]
    twins: dict[str, str]

    def __post_init__(self) -> None:
        self._nodes = {node.name or "": node for node in self.graph}
        self._values = {o.name or "": o for node in self.graph for o in node.outputs}
        self._values.update(self.graph.initializers)

    def settle(self, families: Iterable[Family]) -> None:
        """Make one weight of each family again, as far as its cuts agree."""
        for family in families:
            clusters: list[list[Use]] = []
            for use in family.uses:
                home = next((c for c in clusters[-_TRIES:] if self._agree(c[0], use, family)), None)
                if home is None:
                    clusters.append([use])
                else:
                    home.append(use)
            if len(clusters) == 1:
                self._restore(family)
                continue
            for cluster in clusters:
                for use in cluster[1:]:
                    self._join(cluster[0], use)
            self._clear(view for use in family.uses for view in reversed(use.chain))

    def _agree(self, a: Use, b: Use, family: Family) -> bool:
        """Tie two copies, if that freezes nothing that is free."""
        if not family.weight:
            return False
        layouts = (self.context.layout(self._values[u.copy]) for u in (a, b))
        pairs = [(x, y) for x, y in zip(*layouts, strict=True) if x is not None and y is not None]
        return self.context.axes.attempt(pairs)

    def _restore(self, family: Family) -> None:
        """All users agree: everything is as it was."""
        original = self._values[family.name]
        layout = self.context.layout(self._values[family.uses[0].copy])
        for x, y in zip(layout, self.context.layout(original), strict=True):
            self.context.tie(x, y)
        for use in family.uses:
            self._nodes[use.node].replace_input_with(use.index, self._values[use.value])
            self._forget(use, (use.copy, *use.parameters))

    def _join(self, first: Use, other: Use) -> None:
        """Let one copy stand for another that is cut alike."""
        node = self._nodes[other.node]
        if first.value == other.value:  # the same view, too
            seen = self._nodes[first.node].inputs[first.index]
            self.twins.update(zip(other.parameters, first.parameters, strict=True))
            node.replace_input_with(other.index, seen)
            self._forget(other, other.parameters, keep=True)
        else:
            view = self._nodes[other.made[0]] if other.made else node
            position = 0 if other.made else other.index
            view.replace_input_with(position, self._values[first.copy])
        self.twins[other.copy] = first.copy
        self._drop(other.copy)

    def _forget(self, use: Use, copies: Iterable[str], *, keep: bool = False) -> None:
        self._clear(reversed(use.made))
        for copy in copies:
            self._drop(copy)
            if not keep:
                self.splits.pop(copy, None)

    def _clear(self, names: Iterator[str]) -> None:
        """Take views out that nobody uses, and what was declared of them."""
        gone = set()
        for name in names:
            node = self._nodes.get(name)
            if node is not None and node.graph is not None and not node.outputs[0].uses():
                gone.add(node)
                self.context.layouts.pop(node.outputs[0], None)
                self.graph.remove(node, safe=True)
        if gone:
            rewrites = self.context.rewrites
            rewrites[:] = [rewrite for rewrite in rewrites if rewrite.node not in gone]

    def _drop(self, name: str) -> None:
        value = self.graph.initializers.pop(name, None)
        if value is not None:
            self.context.layouts.pop(value, None)
