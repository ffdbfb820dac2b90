"""Bodies of If, Loop and Scan: opened into the main graph, so that all passes see one flat list of nodes.

Nothing is unrolled or inlined in what is emitted: `open_bodies` runs on the normalized copy that is analysed
and cut, and `condensec.passes.closing` puts every node back into the body it came from. In between a body's
nodes stand in the main graph, between nodes of the domain ``condensec.body``:

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
    """An input or output of a body: its name and type; the rank is all that a cut leaves of its shape."""

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
        outputs: its outputs.
    """

    attribute: str
    scope: str
    name: str | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


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
        start += len(body.outputs)
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
        bodies.append(Body(name, scope, body.name, *(_ports(vs) for vs in (body.inputs, body.outputs))))
        if node.op_type != "If":
            given = _begin(graph, node, body, scope, attributes)
        inner.extend(_move(graph, node, body, scope, slots))
    sources = [*given[:1], *slots] if node.op_type == "If" else [*slots, *given]
    end = ir.Node(DOMAIN, node.op_type, sources, attributes, name=node.name, num_outputs=len(node.outputs))
    end.meta.update(node.meta)
    end.meta[SHELL] = Shell(node.domain, tuple(attributes), tuple(bodies), node.doc_string, node.version)
    graph.insert_after(node, end)
    hand_over(node.outputs, end.outputs)
    _drop(graph, node)
    return [n for n in inner if _fit(n)]


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(Port(v.name or "", v.type, None if v.shape is None else len(v.shape)) for v in values)


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


def hand_over(old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    """New values take the names, types and users of old ones."""
    for before, after in zip(old, new, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        after.meta.update(before.meta)
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name = None


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    graph.remove(node)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
