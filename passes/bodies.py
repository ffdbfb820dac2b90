"""Bodies of If, Loop and Scan: opened into the main graph, so that all passes see one flat list of nodes.

Nothing is unrolled or inlined in what is emitted: `open_bodies` runs on the normalized copy that is analysed
and cut, and `close_bodies` puts every node back into the body it came from. In between a body's nodes stand
in the main graph, between nodes of the domain ``condensec.body``:

- ``If``: inputs are the condition and the outputs of both branches.
- ``LoopEnter`` and ``ScanEnter``: inputs are those of the Loop or Scan, outputs the inputs of its body.
- ``Loop`` and ``Scan``: inputs are the body's outputs, then the outputs of the Enter node.

A value of a body is called ``y[else_branch].w`` while it's open: name ``w`` in the attribute ``else_branch``
of the node whose first named output is ``y``. Those are its names in plans, too: see docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from condensec.passes.tensors import borrowed

DOMAIN = "condensec.body"
HOME = "condensec.home"  # of nodes and initializers: the body they belong to; "": the main graph
NAME = "condensec.name"  # of nodes and values: their names inside the body
SHELL = "condensec.shell"  # of the nodes that end a body: what is needed to put it together again
_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}


@dataclass(frozen=True)
class Port:
    """An input of a body: its name and type; the rank is all that a cut leaves of its shape."""

    name: str
    type: ir.TypeProtocol | None
    rank: int | None


@dataclass(frozen=True)
class Body:
    """One body.

    Attributes:
        attribute: where the node keeps it.
        scope: what its values' names begin with.
        name: of the graph.
        inputs: its inputs.
        outputs: number of its outputs.
    """

    attribute: str
    scope: str
    name: str | None
    inputs: tuple[Port, ...]
    outputs: int


@dataclass(frozen=True)
class Shell:
    """An If, Loop or Scan without its bodies."""

    domain: str
    attributes: tuple[ir.Attr, ...]
    bodies: tuple[Body, ...]
    doc: str | None
    version: int | None


def is_open(node: ir.Node) -> bool:
    """Whether a node stands for the beginning or the end of a body."""
    return node.domain == DOMAIN


def enters(node: ir.Node) -> bool:
    """Whether a node stands for the beginning of a body."""
    return node.domain == DOMAIN and node.op_type.endswith("Enter")


def entry(node: ir.Node) -> ir.Node:
    """The Enter node of an open Loop or Scan."""
    last = node.inputs[-1]
    found = last.producer() if last is not None else None
    assert found is not None
    return found


def scan_axes(node: ir.Node, side: str) -> list[int]:
    """The axes that an open Scan takes its inputs apart on, or puts its outputs together on.

    Args:
        node: its Enter node for the side ``input``, its end for ``output``.
        side: which.
    """
    attributes, name = node.attributes, f"scan_{side}_axes"
    scanned = attributes["num_scan_inputs"].as_int()
    count = scanned if side == "input" else len(node.outputs) - (len(entry(node).inputs) - scanned)
    return [int(a) for a in attributes[name].as_ints()] if name in attributes else [0] * count


def home(thing: ir.Node | ir.Value) -> str:
    """The body a node or initializer belongs to; "" is the main graph."""
    return str(thing.meta.get(HOME, ""))


def owners(graph: ir.Graph) -> dict[str, str]:
    """Node name -> the node of the main graph that it is, or will be inside of when the bodies are closed."""
    ends = {body.scope: node for node in graph if SHELL in node.meta for body in node.meta[SHELL].bodies}
    starts = {entry(node): node for node in ends.values() if node.op_type != "If"}
    found: dict[str, str] = {}
    for node in graph:
        top = starts.get(node, node)
        while home(top):
            top = ends[home(top)]
        found[node.name or ""] = top.name or ""
    return found


def slot_scope(node: ir.Node, index: int) -> str:
    """The body that an input of an open node is seen from."""
    shell = node.meta.get(SHELL)
    if shell is None:
        return home(node)
    start = 1 if node.op_type == "If" else 0
    if index < start:
        return home(node)
    for body in shell.bodies:
        start += body.outputs
        if index < start:
            return str(body.scope)
    return str(shell.bodies[-1].scope)  # outputs of the Enter node


# -- opening ------------------------------------------------------------------------------------------


def open_bodies(model: ir.Model) -> None:
    """Move the nodes of all bodies into the main graph, in place. Bodies of other operators stay closed."""
    graph = model.graph
    if not any(_fit(node) for node in graph):
        return
    for thing in (*graph, *graph.initializers.values()):
        thing.meta[HOME] = ""
    todo = [node for node in graph if _fit(node)]
    while todo:
        todo.extend(_open(graph, todo.pop(0)))


def _fit(node: ir.Node) -> bool:
    """Whether the bodies of a node can be opened."""
    names = _BODIES.get(node.op_type)
    if names is None or node.domain not in ("", "ai.onnx") or not any(o.name for o in node.outputs):
        return False
    graphs = [a for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if {a.name for a in graphs} != set(names):
        return False
    bodies = [node.attributes[name].as_graph() for name in names]
    given, made = len(node.inputs), len(node.outputs)
    if node.op_type == "If":
        return all(not b.inputs and len(b.outputs) == made for b in bodies)
    if node.op_type == "Loop":
        return len(bodies[0].inputs) == given and len(bodies[0].outputs) == made + 1
    old = node.version is not None and node.version < 9  # before 9, Scan had a batch axis
    fits = len(bodies[0].inputs) == given and len(bodies[0].outputs) == made
    return fits and not old and all(v is not None for v in node.inputs)


def _open(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """Move one node's bodies out; returns the nodes inside that have bodies of their own."""
    first = next(o.name for o in node.outputs if o.name)
    attributes = [a for a in node.attributes.values() if a.type != ir.AttributeType.GRAPH]
    bodies: list[Body] = []
    slots: list[ir.Value] = []
    inner: list[ir.Node] = []
    given = list(node.inputs)
    for name in _BODIES[node.op_type]:
        body, scope = node.attributes[name].as_graph(), f"{first}[{name}]"
        ports = tuple(
            Port(v.name or "", v.type, None if v.shape is None else len(v.shape)) for v in body.inputs
        )
        bodies.append(Body(name, scope, body.name, ports, len(body.outputs)))
        if node.op_type != "If":
            given = _begin(graph, node, body, scope, attributes)
        inner.extend(_move(graph, node, body, scope, slots))
    sources = [*given[:1], *slots] if node.op_type == "If" else [*slots, *given]
    end = ir.Node(DOMAIN, node.op_type, sources, attributes, name=node.name, num_outputs=len(node.outputs))
    end.meta.update(node.meta)
    end.meta[SHELL] = Shell(node.domain, tuple(attributes), tuple(bodies), node.doc_string, node.version)
    graph.insert_after(node, end)
    _hand_over(node.outputs, end.outputs)
    _drop(graph, node)
    return [n for n in inner if _fit(n)]


def _begin(
    graph: ir.Graph, node: ir.Node, body: ir.Graph, scope: str, attributes: Sequence[ir.Attr]
) -> list[ir.Value | None]:
    """Insert the node that stands for a body's inputs; returns its outputs."""
    ports = list(body.inputs)
    start = ir.Node(
        DOMAIN,
        f"{node.op_type}Enter",
        list(node.inputs),
        list(attributes),
        name=f"{node.name or scope} begins",
        num_outputs=len(ports),
    )
    start.meta[HOME] = home(node)
    body.inputs.clear()
    for port, output in zip(ports, start.outputs, strict=True):
        output.name, output.type = f"{scope}.{port.name}", port.type
        output.meta[NAME] = port.name
        port.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.insert_before(node, start)
    return list(start.outputs)


def _move(graph: ir.Graph, node: ir.Node, body: ir.Graph, scope: str, slots: list[ir.Value]) -> list[ir.Node]:
    """Move a body's initializers and nodes into the main graph, before a node; its outputs join ``slots``."""
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        fresh = ir.Value(name=f"{scope}.{name}", shape=value.shape, type=value.type)
        if value.const_value is not None:
            fresh.const_value = borrowed(value.const_value, f"{scope}.{name}")
        fresh.meta.update({HOME: scope, NAME: name})
        value.replace_all_uses_with(fresh, replace_graph_outputs=True)
        graph.register_initializer(fresh)
    slots.extend(body.outputs)
    body.outputs.clear()
    moved = list(body)
    for inner in moved:
        body.remove(inner)
        inner.meta.update({HOME: scope, NAME: inner.name})
        if inner.name:
            inner.name = f"{scope}.{inner.name}"
        for output in inner.outputs:
            if output.name:
                output.meta[NAME] = output.name
                output.name = f"{scope}.{output.name}"
        graph.insert_before(node, inner)
    return moved


def _hand_over(old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    for before, after in zip(old, new, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        after.meta.update(before.meta)
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name = None


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    graph.remove(node)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


# -- closing ------------------------------------------------------------------------------------------


def close_bodies(model: ir.Model) -> ir.Model:
    """The model with every node back in its body: a copy, or the model itself where nothing is open."""
    if not any(is_open(node) for node in model.graph):
        return model
    copy = model.clone()
    _Closing(copy.graph).run()
    return copy


class _Closing:
    """Puts nodes and initializers where they belong: new ones where all of their users see them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._parents: dict[str, str] = {}
        self._homes: dict[ir.Node | ir.Value, str] = {}
        self._members: dict[str, list[ir.Node]] = {"": []}
        self._constants: dict[str, list[ir.Value]] = {}

    def run(self) -> None:
        """Close all bodies, in place."""
        nodes = list(self._graph)
        for node in nodes:
            for body in node.meta[SHELL].bodies if SHELL in node.meta else ():
                self._parents[body.scope] = home(node)
        for node in reversed(nodes):
            self._homes[node] = self._place(node, node.outputs)
        for value in list(self._graph.initializers.values()):
            self._homes[value] = self._place(value, (value,))
        taken = self._top_names(nodes)
        for value in list(self._graph.initializers.values()):
            if self._homes[value]:
                self._constants.setdefault(self._homes[value], []).append(self._unhoused(value, taken))
        for node in nodes:
            self._graph.remove(node)
            _restore(node, taken)
            if enters(node):
                continue
            closed = self._closed(node) if is_open(node) else node
            self._members.setdefault(self._homes[node], []).append(closed)
        self._graph.extend(self._members[""])

    def _place(self, thing: ir.Node | ir.Value, outputs: Sequence[ir.Value]) -> str:
        """The innermost body that all users are in, or where it came from if that is further out."""
        scopes = [self._seen_from(use.node, use.idx) for output in outputs for use in output.uses()]
        if HOME in thing.meta:
            scopes.append(home(thing))
        if not scopes or any(o.is_graph_output() for o in outputs):
            return ""
        common = self._path(scopes[0])
        for scope in scopes[1:]:
            path = self._path(scope)
            common = [a for a, b in zip(common, path, strict=False) if a == b]
        return common[-1]

    def _seen_from(self, user: ir.Node, index: int) -> str:
        return slot_scope(user, index) if is_open(user) else self._homes[user]

    def _path(self, scope: str) -> list[str]:
        path = [scope]
        while path[-1]:
            path.append(self._parents[path[-1]])
        return path[::-1]

    def _top_names(self, nodes: Sequence[ir.Node]) -> set[str | None]:
        """Names that a body can't use again."""
        values = [
            *self._graph.inputs,
            *(o for n in nodes for o in n.outputs),
            *self._graph.initializers.values(),
        ]
        return {v.name for v in values if NAME not in v.meta} | {n.name for n in nodes if NAME not in n.meta}

    def _unhoused(self, value: ir.Value, taken: set[str | None]) -> ir.Value:
        """An initializer as the body's own."""
        name = value.meta.get(NAME, value.name)
        name = value.name or "" if name in taken else name
        del self._graph.initializers[value.name or ""]
        fresh = ir.Value(name=name, shape=value.shape, type=value.type)
        assert value.const_value is not None
        fresh.const_value = borrowed(value.const_value, name)
        value.replace_all_uses_with(fresh)
        return fresh

    def _closed(self, end: ir.Node) -> ir.Node:
        """The If, Loop or Scan that a node stands for."""
        shell: Shell = end.meta[SHELL]
        sources = list(end.inputs)
        if end.op_type == "If":
            given, slots = sources[:1], sources[1:]
        else:
            start = entry(end)
            given, slots = list(start.inputs), sources[: shell.bodies[0].outputs]
        graphs = []
        for body in shell.bodies:
            graphs.append(self._body(end, body, slots[: body.outputs]))
            slots = slots[body.outputs :]
        attributes = [*shell.attributes, *(ir.AttrGraph(g[0], g[1]) for g in graphs)]
        node = ir.Node(
            shell.domain,
            end.op_type,
            given,
            attributes,
            name=end.name,
            num_outputs=len(end.outputs),
            version=shell.version,
            doc_string=shell.doc,
        )
        for index in range(len(end.inputs)):
            end.replace_input_with(index, None)
        _hand_over(end.outputs, node.outputs)
        for output in node.outputs:
            output.meta.clear()
        return node

    def _body(self, end: ir.Node, body: Body, slots: Sequence[ir.Value | None]) -> tuple[str, ir.Graph]:
        nodes = self._members.get(body.scope, [])
        inside = {o for n in nodes for o in n.outputs}
        outputs: list[ir.Value] = []
        for number, slot in enumerate(slots):
            assert slot is not None
            if slot not in inside or slot in outputs:  # a body's output has to be made by one of its nodes
                pass_on = ir.Node("", "Identity", [slot], name=f"{body.scope}.output{number}")
                pass_on.outputs[0].name = f"{body.scope}.output{number}_out"
                pass_on.outputs[0].type = slot.type
                nodes = [*nodes, pass_on]
                slot = pass_on.outputs[0]
            outputs.append(slot)
        inputs = [_port(port) for port in body.inputs]
        if inputs:
            start = entry(end)
            for index in range(len(start.inputs)):
                start.replace_input_with(index, None)
            for output, value in zip(start.outputs, inputs, strict=True):
                value.type = output.type
                output.replace_all_uses_with(value)
        constants = self._constants.get(body.scope, [])
        graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, name=body.name)
        return body.attribute, graph


def _port(port: Port) -> ir.Value:
    shape = None if port.rank is None else ir.Shape([None] * port.rank)
    return ir.Value(name=port.name, type=port.type, shape=shape)


def _restore(node: ir.Node, taken: set[str | None]) -> None:
    """Give a node and its outputs the names they have inside their body."""
    if NAME in node.meta and node.meta[NAME] and node.meta[NAME] not in taken:
        node.name = node.meta[NAME]
    for output in node.outputs:
        name = output.meta.get(NAME)
        if name and name not in taken:
            output.name = name
