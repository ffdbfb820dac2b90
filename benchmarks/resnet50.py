"""A ResNet-50 with seeded weights: its map says nothing, its cost is real."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


class Layers:
    """Nodes and weights of a graph that grows."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node named like its output."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        """Normally distributed."""
        array = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> str:
        """A convolution with a bias, of zeros, and a ReLU."""
        weight = self.weight(f"{name}.w", (cout, cin, kernel, kernel), (2 / (cin * kernel * kernel)) ** 0.5)
        self.weights.append(numpy_helper.from_array(np.zeros(cout, np.float32), f"{name}.b"))
        self.node(
            "Conv", [x, weight, f"{name}.b"], name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )  # fmt: skip
        return self.node("Relu", [name], f"{name}.relu") if relu else name

    def block(self, x: str, name: str, cin: int, width: int, stride: int, first: bool) -> str:
        """A bottleneck; the first of a stage has a convolution beside it."""
        y = self.conv(x, f"{name}.1", cin, width, 1)
        y = self.conv(y, f"{name}.2", width, width, 3, stride)
        y = self.conv(y, f"{name}.3", width, 4 * width, 1, relu=False)
        side = self.conv(x, f"{name}.side", cin, 4 * width, 1, stride, relu=False) if first else x
        return self.node("Relu", [self.node("Add", [y, side], f"{name}.sum")], f"{name}.out")


def resnet50(seed: int) -> onnx.ModelProto:
    """ResNet-50 v1 (He et al. 2015, arXiv:1512.03385), batch norms folded, seeded weights."""
    net = Layers(seed)
    x = net.conv("input", "stem", 3, 64, 7, 2)
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    cin = 64
    for s, (blocks, width) in enumerate(STAGES):
        for b in range(blocks):
            x = net.block(x, f"s{s}b{b}", cin, width, 2 if s and not b else 1, first=not b)
            cin = 4 * width
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")
    net.node("MatMul", [x, net.weight("fc.w", (cin, 1000), 1 / cin**0.5)], "logits")
    graph = helper.make_graph(
        net.nodes,
        "resnet50",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        net.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
