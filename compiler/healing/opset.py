"""Bring a graph of any opset from 7 on to the one the training copy uses.

onnx's own version converter stops at several of these steps (Upsample, Resize 10, Pad with a value,
Softmax's old flattening), so the few operators that really changed are bumped here, each by one function.
Later opsets mostly add types; what they changed in meaning is handled by a legalization rule.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from condensec.healing.graph import Emitter, Graph, Node, copy_node

Bump = Callable[[Node, Emitter, int], None]
_REDUCES = (
    "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"
)


def bump(graph: Graph, opset: int) -> None:
    """Rewrite every node of an older opset in place.

    Args:
        graph: nodes as the file has them.
        opset: the file's default-domain opset.
    """
    nodes: list[onnx.NodeProto] = []
    for proto in graph.nodes:
        node = Node(proto)
        step = _BUMPS.get(node.op)
        younger = _YOUNGER.get(node.op)
        if step is not None and opset < step[0]:
            rewrite = step[1]
        elif younger is not None and opset >= younger[0]:
            rewrite = younger[1]
        else:
            nodes.append(proto)
            continue
        emitter = Emitter(graph, proto.name or proto.output[0])
        rewrite(node, emitter, opset)
        nodes.extend(emitter.nodes or [proto])
    graph.nodes = nodes


def _again(node: Node, e: Emitter, inputs: list[str], **attributes: object) -> None:
    """The same node with other inputs and attributes (None removes one)."""
    while inputs and not inputs[-1]:
        inputs.pop()
    e.nodes.append(copy_node(node.proto, input=inputs, **attributes))


def _axes_to_input(node: Node, e: Emitter, opset: int) -> None:
    axes = node.attribute("axes")
    if axes is not None:
        _again(node, e, [node.inputs[0], e.ints(axes)], axes=None)


def _softmax(node: Node, e: Emitter, opset: int) -> None:
    """Before 13, Softmax flattened its input to 2-D at `axis` (default 1). Needs the rank: see `late`."""
    e.nodes.append(copy_node(node.proto, axis=node.attribute("axis", 1), condensec_flatten=1))


def late(graph: Graph) -> None:
    """The bumps that need shapes: Softmax, LogSoftmax and Hardmax of opset < 13."""
    nodes: list[onnx.NodeProto] = []
    for proto in graph.nodes:
        node = Node(proto)
        if not node.attribute("condensec_flatten"):
            nodes.append(proto)
            continue
        shape = graph.shape(node.inputs[0])
        assert shape is not None, "shapes are resolved before late bumps"
        axis = node.attribute("axis") % len(shape)
        plain = copy_node(proto, condensec_flatten=None, axis=-1)
        if axis == len(shape) - 1:
            nodes.append(plain)
            continue
        e = Emitter(graph, proto.name)
        flat = e.reshape(node.inputs[0], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))
        e.reshape(e.op(node.op, flat, axis=-1), shape, out=node.outputs[0])
        nodes.extend(e.nodes)
    graph.nodes = nodes


def _split(node: Node, e: Emitter, opset: int) -> None:
    parts = node.attribute("split")
    if parts is not None:
        _again(node, e, [node.inputs[0], e.ints(parts)], split=None)
    elif not node.input(1):
        _again(node, e, [node.inputs[0]], num_outputs=len(node.outputs))


def _slice(node: Node, e: Emitter, opset: int) -> None:
    starts, ends = node.attribute("starts"), node.attribute("ends")
    axes = node.attribute("axes", list(range(len(starts))))
    inputs = [node.inputs[0], e.ints(starts), e.ints(ends), e.ints(axes)]
    _again(node, e, inputs, starts=None, ends=None, axes=None)


def _clip(node: Node, e: Emitter, opset: int) -> None:
    low, high = node.attribute("min"), node.attribute("max")
    inputs = [node.inputs[0], "" if low is None else e.const(low), "" if high is None else e.const(high)]
    _again(node, e, inputs, min=None, max=None)


def _pad(node: Node, e: Emitter, opset: int) -> None:
    value = e.const(node.attribute("value", 0.0))
    pads = node.attribute("pads", node.attribute("paddings"))
    _again(node, e, [node.inputs[0], e.ints(pads), value], pads=None, paddings=None, value=None)


def _dropout(node: Node, e: Emitter, opset: int) -> None:
    e.op("Identity", node.inputs[0], out=node.outputs[0])


def _upsample(node: Node, e: Emitter, opset: int) -> None:
    scales = node.attribute("scales")
    factor = e.const(scales) if scales is not None else node.inputs[1]
    _old_resize(node, e, factor)


def _resize(node: Node, e: Emitter, opset: int) -> None:
    _old_resize(node, e, node.inputs[1])


def _old_resize(node: Node, e: Emitter, factor: str) -> None:
    """Upsample and Resize 10 mapped coordinates asymmetrically and rounded down."""
    e.op(
        "Resize",
        node.inputs[0],
        "",
        factor,
        out=node.outputs[0],
        mode=node.attribute("mode", "nearest"),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _topk(node: Node, e: Emitter, opset: int) -> None:
    if node.attribute("k") is not None:
        _again(node, e, [node.inputs[0], e.ints([node.attribute("k")])], k=None)


def _batchnorm(node: Node, e: Emitter, opset: int) -> None:
    _again(node, e, list(node.inputs), spatial=None, is_test=None)
    del e.nodes[-1].output[1:]


def _scatter(node: Node, e: Emitter, opset: int) -> None:
    e.op("ScatterElements", *node.inputs, out=node.outputs[0], axis=node.attribute("axis", 0))


def _cast(node: Node, e: Emitter, opset: int) -> None:
    to = node.attribute("to")
    if isinstance(to, str):
        _again(node, e, list(node.inputs), to=TensorProto.DataType.Value(to))


def _group_norm(node: Node, e: Emitter, opset: int) -> None:
    """From 21 on scale and bias are per channel; spelled out without knowing the rank yet."""
    x, scale, bias = node.inputs
    groups, channels = int(node.attribute("num_groups")), e.shape(scale)[0]
    shape = e.op("Shape", x)
    grouped = e.op("Reshape", x, e.ints([0, groups, -1]))
    ones, zeros = e.const(np.ones(groups)), e.const(np.zeros(groups))
    unit = e.op("InstanceNormalization", grouped, ones, zeros, epsilon=node.attribute("epsilon", 1e-5))
    by_channel = e.op("Reshape", unit, e.op("Concat", _first(shape, e), e.ints([channels, -1]), axis=0))
    scaled = e.op("Mul", by_channel, e.op("Reshape", scale, e.ints([-1, 1])))
    moved = e.op("Add", scaled, e.op("Reshape", bias, e.ints([-1, 1])))
    e.op("Reshape", moved, shape, out=node.outputs[0])


def _first(shape: str, e: Emitter) -> str:
    return e.op("Slice", shape, e.ints([0]), e.ints([1]))


# Operators whose meaning changed after the copy's opset: first opset of the new meaning, rewrite.
_YOUNGER: dict[str, tuple[int, Bump]] = {"GroupNormalization": (21, _group_norm)}

_BUMPS: dict[str, tuple[int, Bump]] = {
    "Squeeze": (13, _axes_to_input),
    "Unsqueeze": (13, _axes_to_input),
    "ReduceSum": (13, _axes_to_input),
    **dict.fromkeys(_REDUCES.split(), (18, _axes_to_input)),
    "Softmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Hardmax": (13, _softmax),
    "Split": (18, _split),
    "Slice": (10, _slice),
    "Clip": (11, _clip),
    "Pad": (11, _pad),
    "Dropout": (12, _dropout),
    "Upsample": (10, _upsample),
    "Resize": (11, _resize),
    "TopK": (10, _topk),
    "BatchNormalization": (14, _batchnorm),
    "Scatter": (11, _scatter),
    "Cast": (9, _cast),
}
