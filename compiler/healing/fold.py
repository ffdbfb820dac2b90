"""Batch normalization after a convolution, folded into the convolution's weights *inside* the graph.

y = BN(conv(x, W) + b) is conv(x, W s) + (b - mean) s + beta with s = scale / sqrt(var + eps) per output
channel. Written on the weights, the four parameters W, b, scale, beta all keep their gradients, and
nothing of an activation's size is computed or kept for it.
"""

from __future__ import annotations

import onnx

from condensec.healing.graph import Emitter, Graph, Node, copy_node
from condensec.healing.legalize.norm import inverse_deviation


def fold_batch_norms(graph: Graph) -> int:
    """Rewrite every Conv or ConvTranspose whose only reader is a BatchNormalization; gives their number."""
    producers, consumers = graph.producers(), graph.consumers()
    replaced: dict[int, list[onnx.NodeProto]] = {}
    for index, proto in enumerate(graph.nodes):
        norm = Node(proto)
        source = producers.get(norm.input(0), -1)
        if norm.op != "BatchNormalization" or source < 0 or norm.attribute("training_mode", 0):
            continue
        conv = Node(graph.nodes[source])
        single = len(consumers[norm.inputs[0]]) == 1 and norm.inputs[0] not in graph.outputs
        if conv.op in ("Conv", "ConvTranspose") and single:
            replaced[source] = []
            replaced[index] = _folded(conv, norm, graph)
    graph.nodes = [n for i, node in enumerate(graph.nodes) for n in replaced.get(i, [node])]
    return len(replaced) // 2


def _folded(conv: Node, norm: Node, graph: Graph) -> list[onnx.NodeProto]:
    e = Emitter(graph, norm.proto.name or norm.outputs[0])
    scale, shift, mean, variance = norm.inputs[1:5]
    factor = e.op("Mul", scale, inverse_deviation(variance, norm.attribute("epsilon", 1e-5), e))
    weight = conv.inputs[1]
    rank = len(e.shape(weight))
    if conv.op == "Conv":
        column = e.op("Reshape", factor, e.ints([-1] + [1] * (rank - 1)))
        scaled = e.op("Mul", weight, column)
    else:  # [Cin, Cout/group, ...]: the output channel is spread over axis 0 (by group) and axis 1
        group = conv.attribute("group", 1)
        shape = e.shape(weight)
        grouped = e.reshape(weight, (group, shape[0] // group, *shape[1:]))
        column = e.op("Reshape", factor, e.ints([group, 1, -1] + [1] * (rank - 2)))
        scaled = e.reshape(e.op("Mul", grouped, column), shape)
    centre = e.op("Sub", conv.input(2), mean) if conv.input(2) else e.op("Neg", mean)
    bias = e.op("Add", e.op("Mul", centre, factor), shift)
    inputs = [conv.inputs[0], scaled, bias]
    return [*e.nodes, copy_node(conv.proto, input=inputs, output=[norm.outputs[0]])]
