"""Models that answer with decisions alone: a class number, a mask, a picture of whole bytes.

How far a cut model is from its original can't be told by such answers: most are the same until one flips,
and nothing can be trained by them. So inside of condensec such a model also gives the scores that it decides
by. What is written to the user's files gives what the original gives.
"""

from __future__ import annotations

import onnx_ir as ir

# a value is taken over: where it comes from
_CARRIED = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_ROUNDED = frozenset(("Ceil", "Floor", "Round", "Sign"))
_COMPARED = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
_CHOSEN = frozenset(("ArgMax", "ArgMin", "TopK"))


def scores(model: ir.Model) -> tuple[str, ...]:
    """Names of the scores behind a model's decisions; none where some output isn't a decision."""
    outputs = model.graph.outputs
    if any(v.dtype is None or not _is_whole(v.dtype) for v in outputs):
        return ()
    found = [_scores(v) for v in outputs]
    return tuple(dict.fromkeys(v.name for v in found if v is not None and v.name))


def with_scores(model: ir.Model) -> ir.Model:
    """A model that gives the scores behind its decisions, too; the same model where it has none."""
    names = scores(model)
    if not names:
        return model
    clone = model.clone()
    made = {v.name: v for node in clone.graph for v in node.outputs}
    clone.graph.outputs.extend(made[name] for name in names)
    return clone


def without_scores(model: ir.Model, outputs: frozenset[str]) -> ir.Model:
    """A model with these outputs alone; the same model where it has no others."""
    if all(v.name in outputs for v in model.graph.outputs):
        return model
    clone = model.clone()
    kept = [v for v in clone.graph.outputs if v.name in outputs]
    clone.graph.outputs.clear()
    clone.graph.outputs.extend(kept)
    return clone


def _is_whole(dtype: ir.DataType) -> bool:
    return dtype == ir.DataType.BOOL or dtype.is_integer()


def _scores(value: ir.Value | None) -> ir.Value | None:
    """The float value that a decision is made by; None where none is found."""
    decided = False
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _CHOSEN:
            return _made(node.inputs[0])
        if node.op_type in _COMPARED:
            return next((v for v in map(_made, node.inputs) if v is not None), None)
        if node.op_type == "Gather" and _made(node.inputs[0]) is None:  # names of classes, by their number
            value = node.inputs[1]
        elif node.op_type in _CARRIED or (decided and node.op_type in _ROUNDED):
            decided |= node.op_type == "Cast"
            value = node.inputs[0]
        else:
            return value if decided and _is_float(value) else None
    return None


def _made(value: ir.Value | None) -> ir.Value | None:
    """A value that a node computes; None for inputs and constants."""
    node = None if value is None else value.producer()
    return None if node is None or node.op_type == "Constant" else value


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
