"""Bodies of If, Loop and Scan are closed again: the way back from `condensec.passes.bodies`."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from condensec.passes.bodies import (
    HOME,
    NAME,
    SHELL,
    Body,
    Port,
    Shell,
    enters,
    entry,
    hand_over,
    home,
    is_open,
    slot_scope,
)
from condensec.passes.tensors import borrowed


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
            given, slots = list(start.inputs), sources[: len(shell.bodies[0].outputs)]
        graphs = []
        for body in shell.bodies:
            graphs.append(self._body(end, body, slots[: len(body.outputs)]))
            slots = slots[len(body.outputs) :]
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
        hand_over(end.outputs, node.outputs)
        for output in node.outputs:
            output.meta.clear()
        return node

    def _body(self, end: ir.Node, body: Body, slots: Sequence[ir.Value | None]) -> tuple[str, ir.Graph]:
        nodes = self._members.get(body.scope, [])
        inside = {o for n in nodes for o in n.outputs}
        outputs: list[ir.Value] = []
        for number, (slot, port) in enumerate(zip(slots, body.outputs, strict=True)):
            assert slot is not None
            if slot not in inside or slot in outputs:  # a body's output has to be made by one of its nodes
                pass_on = ir.Node("", "Identity", [slot], name=f"{body.scope}.output{number}")
                pass_on.outputs[0].name = f"{body.scope}.output{number}_out"
                pass_on.outputs[0].type = slot.type
                nodes = [*nodes, pass_on]
                slot = pass_on.outputs[0]
            slot.type = slot.type or port.type
            slot.shape = _rank(port)  # onnxruntime wants a Scan's to be there
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
    return ir.Value(name=port.name, type=port.type, shape=_rank(port))


def _rank(port: Port) -> ir.Shape | None:
    return None if port.rank is None else ir.Shape([None] * port.rank)


def _restore(node: ir.Node, taken: set[str | None]) -> None:
    """Give a node and its outputs the names they have inside their body."""
    if NAME in node.meta and node.meta[NAME] and node.meta[NAME] not in taken:
        node.name = node.meta[NAME]
    for output in node.outputs:
        name = output.meta.get(NAME)
        if name and name not in taken:
            output.name = name
