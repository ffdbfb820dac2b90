"""Normalize: put a model into the one form the later passes read.

Local functions are inlined, bodies of If, Loop and Scan stand open (see `bodies`), Constant nodes become
initializers (same name), initializers are no longer overridable inputs, weights computed from weights are
constants (see `condensec.folding`), first states of zeros are left out, every node has a unique name, and
small vectors shared by several nodes (deduplicated biases and scales) get one copy a user, so that two layers
aren't tied by an accident of storage. Other shared weights get copies until the graph has been read (see
`sharing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from condensec.errors import ModelError
from condensec.folding import fold_weights
from condensec.passes import sharing
from condensec.passes.bodies import is_open, open_bodies
from condensec.passes.states import leave_zeros_out
from condensec.passes.tensors import borrowed
from condensec.plan import Split


@dataclass
class Normalized:
    """A normalized copy of a model.

    Attributes:
        model: the copy; the original is untouched, tensors are shared.
        splits: copy name -> where it is used, for weights that were shared by several nodes.
        twins: copies that are cut alike and share one copy: name -> the name it goes by in the model.
        families: shared weights that nobody has tried to make one again yet.
    """

    model: ir.Model
    splits: dict[str, Split] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    families: list[sharing.Family] = field(default_factory=list)


def normalize(original: ir.Model) -> Normalized:
    """Return a normalized copy. Tensors are shared with the original, never copied."""
    model = original.clone()
    if model.functions:
        try:
            ir_passes.InlinePass()(model)
        except Exception as error:  # a function that calls itself, or one that isn't there
            raise ModelError(f"the model's local functions can't be inlined: {error}") from error
        model.functions.clear()
    fold_weights(model)
    open_bodies(model)
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir_passes.RemoveInitializersFromInputsPass()(model)
    leave_zeros_out(model)
    _see_through_identities(model.graph)
    if model.ir_version < 4:  # before 4, every initializer had to be an input
        model.ir_version = 4
    _name_nodes(model.graph)
    splits = _split_shared_vectors(model.graph)
    families = sharing.part(model.graph, splits)
    return Normalized(model, splits, families=families)


def _see_through_identities(graph: ir.Graph) -> None:
    """Users of a constant's Identity use the constant: exporters share equal vectors that way."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or not source.is_initializer() or node.outputs[0].is_graph_output():
            continue
        node.outputs[0].replace_all_uses_with(source)
        graph.remove(node, safe=True)


def _name_nodes(graph: ir.Graph) -> None:
    taken: set[str] = set()
    for index, node in enumerate(graph):
        first = next((o.name for o in node.outputs if o.name), None)
        name = node.name or f"{node.op_type}_{first or index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name


def _split_shared_vectors(graph: ir.Graph) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    outputs = set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        uses = list(value.uses())
        tensor = value.const_value
        if len(uses) < 2 or tensor is None or value in outputs or not sharing.is_parameter(value):
            continue
        dims = [d for d in tensor.shape.numpy() if d != 1]
        if len(dims) != 1 or dims[0] > sharing.VECTOR_LIMIT:
            continue
        if any(u.node.graph is not graph or is_open(u.node) for u in uses):
            continue
        for number, use in enumerate(uses):
            copy_name = f"{name}.copy{number}"
            while copy_name in graph.initializers:
                copy_name += "_"
            copy = ir.Value(name=copy_name, shape=value.shape, type=value.type)
            copy.const_value = borrowed(tensor, copy_name)
            graph.register_initializer(copy)
            use.node.replace_input_with(use.idx, copy)
            splits[copy_name] = Split(name, use.node.outputs[0].name or "", use.idx)
    return splits
