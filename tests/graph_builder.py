"""A few lines around onnx.helper, so that a test can write a graph as it would a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from model_tools import balanced
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class Builder:
    """Collects nodes and initializers; every method returns the name of the value it makes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.const(name, np.array(values, np.int64))

    def normal(self, name: str, shape: Sequence[int], scale: float, shift: float = 0.0) -> str:
        values = self.rng.standard_normal(tuple(shape)) * scale + shift
        return self.const(name, values.astype(np.float32))

    def op(
        self, kind: str, name: str, *inputs: str, outputs: Sequence[str] = (), **attributes: object
    ) -> str:
        outs = list(outputs) or [f"{name}_out"]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=name, **attributes))
        return outs[0]

    def conv(
        self, name: str, x: str, cin: int, cout: int, kernel: int = 3, *, stride: int = 1, group: int = 1,
        bias: bool = False,
    ) -> str:  # fmt: skip
        fan_in = cin // group * kernel * kernel
        weights = [self.normal(f"{name}.weight", (cout, cin // group, kernel, kernel), (2 / fan_in) ** 0.5)]
        if bias:
            weights.append(self.normal(f"{name}.bias", (cout,), 0.1))
        pad = kernel // 2
        return self.op(
            "Conv", name, x, *weights,
            kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4, group=group,
        )  # fmt: skip

    def bn(self, name: str, x: str, channels: int) -> str:
        return self.op(
            "BatchNormalization", name, x,
            self.normal(f"{name}.scale", (channels,), 0.2, 1.0),
            self.normal(f"{name}.bias", (channels,), 0.2),
            self.normal(f"{name}.mean", (channels,), 0.2),
            self.const(f"{name}.var", self.rng.uniform(0.5, 1.5, channels).astype(np.float32)),
            epsilon=1e-5,
        )  # fmt: skip

    def conv_bn_relu(self, name: str, x: str, cin: int, cout: int, kernel: int = 3, **options: int) -> str:
        y = self.conv(f"{name}.conv", x, cin, cout, kernel, **options)  # type: ignore[arg-type]
        return self.op("Relu", f"{name}.relu", self.bn(f"{name}.bn", y, cout))

    def gemm(self, name: str, x: str, cin: int, cout: int, output: str | None = None) -> str:
        """A PyTorch Linear: weight [cout, cin], transB=1."""
        w = self.normal(f"{name}.weight", (cout, cin), (1 / cin) ** 0.5)
        b = self.normal(f"{name}.bias", (cout,), 0.1)
        return self.op("Gemm", name, x, w, b, outputs=[output] if output else (), transB=1)

    def linear(self, name: str, x: str, cin: int, cout: int) -> str:
        """MatMul with weight [cin, cout], then Add: a Linear on three axes, as PyTorch exports it."""
        w = self.normal(f"{name}.weight", (cin, cout), (1 / cin) ** 0.5)
        b = self.normal(f"{name}.bias", (cout,), 0.1)
        return self.op("Add", f"{name}.add", b, self.op("MatMul", f"{name}.matmul", x, w))

    def head(self, x: str, channels: int, classes: int) -> str:
        """Global average pool, Flatten, Linear to `logits`."""
        pooled = self.op("Flatten", "flatten", self.op("GlobalAveragePool", "pool", x), axis=1)
        return self.gemm("fc", pooled, channels, classes, "logits")

    def build(self, name: str, classes: int) -> onnx.ModelProto:
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, name, self.inputs, [output], self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tests"
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return balanced(model)
