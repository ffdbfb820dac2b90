"""Legalization: operators without a gradient, spelled out in operators that have one.

A rule is a function of a file in this folder, registered by `@legalizes("Op", ...)`; being there is all
it takes. It gets the node and an `Emitter` and writes nodes that compute the same outputs under the same
names. A rule that can't serve a case raises `NotLegal` with the reason; a rule that has nothing to do for
this case leaves the emitter empty. Rules may emit operators that other rules rewrite further.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

import onnx

from condensec.healing.graph import Emitter, Graph, Node
from condensec.healing.static import infer

Rule = Callable[[Node, Emitter], None]
_RULES: dict[str, Rule] = {}
_ROUNDS = 6  # a rule's output may need a rule; six levels deep is beyond every rule here


class NotLegal(Exception):
    """This case can't be rewritten; the message says why."""


def legalizes(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators ("com.microsoft.X" for another domain).

    Raises:
        ValueError: an operator has two rules.
    """

    def register(rule: Rule) -> Rule:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"two legalizations for {op}: {_RULES[op].__name__} and {rule.__name__}")
            _RULES[op] = rule
        return rule

    return register


@cache
def rules() -> dict[str, Rule]:
    """All rules by operator; every module of this folder is imported once."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(_RULES)


def legalize(graph: Graph) -> dict[str, str]:
    """Rewrite a graph in place until no rule applies any more.

    Returns:
        First output name of each node that stays without a gradient -> the reason.
    """
    refused: dict[str, str] = {}
    for _ in range(_ROUNDS):
        if not _round(graph, refused):
            break
    _tell_apart(graph)
    infer(graph)
    return {name: reason for name, reason in refused.items() if name in graph.producers()}


def _tell_apart(graph: Graph) -> None:
    """Give a constant or graph input that a node reads twice a second name: its gradient is defined once."""
    nodes: list[onnx.NodeProto] = []
    for proto in graph.nodes:
        for i, name in enumerate(proto.input):
            leaf = name in graph.constants or name in graph.inputs
            if leaf and graph.is_float(name) and name in list(proto.input)[:i]:
                again = graph.fresh("again")
                nodes.append(onnx.helper.make_node("Identity", [name], [again], again))
                proto.input[i] = again
        nodes.append(proto)
    graph.nodes = nodes


def _round(graph: Graph, refused: dict[str, str]) -> bool:
    nodes: list[onnx.NodeProto] = []
    changed = False
    for proto in graph.nodes:
        node = Node(proto)
        rule = rules().get(node.op)
        if rule is None or node.outputs[0] in refused or not _is_differentiable(node, graph):
            nodes.append(proto)
            continue
        emitter = Emitter(graph, proto.name or node.outputs[0])
        try:
            rule(node, emitter)
        except NotLegal as reason:
            refused[node.outputs[0]] = str(reason)
            emitter.nodes = []
        nodes.extend(emitter.nodes or [proto])
        changed |= bool(emitter.nodes)
    graph.nodes = nodes
    if changed:
        infer(graph)
    return changed


def _is_differentiable(node: Node, graph: Graph) -> bool:
    """A float comes out: what computes indices and shapes is left alone."""
    return any(name and graph.is_float(name) for name in node.outputs)
