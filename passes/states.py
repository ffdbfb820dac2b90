"""Recurrent layers whose first state is zero anyway need no input for it.

Exporters fill that state with zeros in a shape computed from the batch. Its size would have to follow a cut,
and one such tensor may serve several layers and tie them; left out, the state is zero by ONNX's definition.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from condensec.passes.arithmetic import names

_LAYERS = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_STATES = (5, 6)  # initial_h, initial_c
_MOVES = names("Cast Expand Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze")


def leave_zeros_out(model: ir.Model) -> int:
    """Take initial states that are zeros off recurrent layers, in place; returns how many."""
    found = 0
    for node in model.graph:
        if node.op_type in _LAYERS:
            for index in _STATES:
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is not None and _is_zero(value):
                    node.replace_input_with(index, None)
                    found += 1
    if found:
        ir_passes.RemoveUnusedNodesPass()(model)
    return found


def _is_zero(value: ir.Value) -> bool:
    """Whether all elements are zero, whatever the shape is."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return not value.is_graph_input() and not np.any(tensor.numpy())
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "ConstantOfShape":
        filled = producer.attributes.get("value")
        return filled is None or not np.any(filled.as_tensor().numpy())
    source = producer.inputs[0] if producer.inputs else None
    return producer.op_type in _MOVES and source is not None and _is_zero(source)
