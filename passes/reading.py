"""Read a graph: apply every operator's rule in order, and freeze what can't be followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from condensec.passes import rules
from condensec.passes.arithmetic import is_known
from condensec.passes.bodies import enters
from condensec.passes.context import Context, InputRewrite, UnknownShape
from condensec.passes.openings import repeats
from condensec.passes.positions import follow
from condensec.plan import Split


def read_graph(context: Context, graph: ir.Graph) -> None:
    """Apply every node's rule, in graph order; outputs end up frozen."""
    for value in graph.inputs:
        context.set(value, [None] * len(context.world.inputs[value.name or ""]))
    context.repeats.update(repeats(graph, context.world))
    for node in graph:
        before = len(context.rewrites)
        _apply_rule(context, node)
        _hold_unforeseen(context, node, before)
        follow(context, node)
        _pin_sizes(context, node, before)
    for value in graph.outputs:
        reason = f"graph output '{value.name}'"
        context.freeze_all(value, reason)
        _freeze_sizes(context, value, reason)


def _hold_unforeseen(context: Context, node: ir.Node, before: int) -> None:
    """Sizes that only come to light when the model runs (out of an If, say) can't follow a cut."""
    for rewrite in context.rewrites[before:]:
        source = node.inputs[rewrite.index] if isinstance(rewrite, InputRewrite) else None
        if source is not None and context.world.known(source) is None:
            del context.rewrites[before:]
            freeze_node(context, node, f"sizes of {node.op_type} '{node.name}' are chosen at run time")
            return


def _pin_sizes(context: Context, node: ir.Node, before: int) -> None:
    """Sizes that a node computes with (the root of a head's size, say) stay what they were before the cut."""
    if is_known(node, context.world.values):
        return
    own = {r.index for r in context.rewrites[before:] if isinstance(r, InputRewrite)}
    for index, value in enumerate(node.inputs):
        if value is None or value.name not in context.world.derived or index in own:
            continue
        if all(term is None for term in context.layout(value)):
            context.input(node, index, lambda kept, old: old)


def _freeze_sizes(context: Context, value: ir.Value, reason: str) -> None:
    """Freeze the axes whose sizes a value of shape arithmetic is computed from."""
    todo, seen = [value], {value}
    while todo:
        top = todo.pop()
        producer = top.producer()
        if top.name not in context.world.derived or producer is None:
            continue
        if producer.op_type in ("Shape", "Size"):
            context.freeze_all(producer.inputs[0], reason)
        for source in producer.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                todo.append(source)


def _apply_rule(context: Context, node: ir.Node) -> None:
    if not enters(node) and all(v is None or context.is_constant(v) for v in node.inputs):
        context.constants.update(node.outputs)
    if is_known(node, context.world.values) and not context.fills(node):
        for output in node.outputs:  # shape arithmetic: rewritten with the cut, never cut itself
            context.set(output, [None] * len(context.world.shape(output) or ()))
        return
    found = rules.find(node)
    reason = f"operator {node.op_type} has no rule"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        found, reason = None, f"used inside the subgraph of {node.op_type} '{node.name}'"
    if found is not None:
        declared = context.declared()
        try:
            found(context, node)
            return
        except UnknownShape as error:
            reason = str(error)
        except Exception as error:  # a graph the rule didn't foresee: nothing here is cut
            reason = f"{node.op_type} '{node.name}' is unusual: {error or type(error).__name__}"
        for output in node.outputs:
            context.layouts.pop(output, None)
        context.forget(declared)
    freeze_node(context, node, reason)


def freeze_node(context: Context, node: ir.Node, reason: str) -> bool:
    """Freeze everything a node touches, captured values included; returns whether any of it was free."""
    loose = False
    for value in (*node.inputs, *_captured(node), *(o for o in node.outputs if o in context.layouts)):
        if value is not None:
            loose |= any(context.axes.is_free(t) for t in context.layout(value) if t is not None)
            context.freeze_all(value, reason)
            _freeze_sizes(context, value, reason)
    for output in node.outputs:
        context.layouts.setdefault(output, [None] * len(context.world.shape(output) or ()))
    return loose


def _captured(node: ir.Node) -> list[ir.Value]:
    found: list[ir.Value] = []
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        if attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        for graph in graphs:
            for inner in graph.all_nodes():
                found.extend(v for v in inner.inputs if v is not None and v.graph is not inner.graph)
            found.extend(graph.outputs)
    return found


def freeze_named(
    context: Context, graph: ir.Graph, pattern: str | None, splits: Mapping[str, Split] = MappingProxyType({})
) -> None:
    """Freeze the nodes and weights whose names match a regular expression, copies by the original's name."""
    if not pattern:
        return
    regex = re.compile(pattern)
    for node in graph:
        if regex.search(node.name or ""):
            for value in (*node.inputs, *node.outputs):
                if value is not None and value in context.layouts:
                    context.freeze_all(value, "named by --freeze")
    for name, value in graph.initializers.items():
        known_as = splits[name].of if name in splits else name
        if regex.search(known_as) and value in context.layouts:
            context.freeze_all(value, "named by --freeze")
