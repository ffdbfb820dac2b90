"""Gradients of convolutions.

`ConvGrad` multiplies matrices and then folds the columns back into an image, pixel by pixel. For stride one
the gradient of the data is itself a convolution, of the output's gradient with the kernel turned round
(Dumoulin & Visin 2016, "A guide to convolution arithmetic", 4.2), which onnxruntime runs up to 1.7 times as
fast. The gradient of the kernel stays with `ConvGrad` here; see `kernel` for the one in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper

from condensec.healing.gradient_graph.writing import Shape, Writer, chain


@dataclass(frozen=True)
class Geometry:
    """What a convolution does, all attributes spelled out.

    Attributes:
        weight: shape of its weight, [M, C / groups, kernel...].
        groups: of channels.
        strides: along each spatial axis.
        dilations: along each spatial axis.
        pads: at the beginning of each spatial axis, then at the end of each.
    """

    weight: Shape
    groups: int
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    @classmethod
    def of(cls, node: onnx.NodeProto, weight: Shape | None) -> Geometry | None:
        """Of a Conv or ConvGrad; None if it isn't known."""
        if not weight or 0 in weight:
            return None
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        rank = len(weight) - 2
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            return None
        return cls(
            weight,
            int(given.get("group", 1)),
            list(given.get("strides", [1] * rank)),
            list(given.get("dilations", [1] * rank)),
            list(given.get("pads", [0] * 2 * rank)),
        )

    @property
    def kernel(self) -> list[int]:
        """Its size along each spatial axis."""
        return list(self.weight[2:])

    @property
    def inputs(self) -> int:
        """Channels read."""
        return self.weight[1] * self.groups

    @property
    def outputs(self) -> int:
        """Channels written."""
        return self.weight[0]

    @property
    def is_depthwise(self) -> bool:
        """Each channel for itself."""
        return self.groups > 1 and self.groups == self.inputs == self.outputs

    @property
    def spans(self) -> list[int]:
        """Pixels between the first and the last that a kernel reaches, along each spatial axis."""
        return [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]

    @property
    def is_plain(self) -> bool:
        """No pixel of the result is made of padding alone."""
        return all(0 <= pad <= span for pad, span in zip(self.pads, self.spans * 2, strict=True))

    def turned(self) -> list[int] | None:
        """Pads of the convolution that gives the gradient of the data; None where it isn't one."""
        if not self.is_plain or any(s != 1 for s in self.strides):
            return None
        return [span - pad for span, pad in zip(self.spans * 2, self.pads, strict=True)]


def data_gradient(node: onnx.NodeProto, writer: Writer) -> list[onnx.NodeProto] | None:
    """The gradient of a convolution's data as a convolution; None where it isn't one, or isn't needed."""
    geometry = Geometry.of(node, writer.shapes.get(node.input[2]))
    pads = geometry.turned() if geometry and node.output[0] else None
    if geometry is None or pads is None:
        return None
    groups, shape, kernel = geometry.groups, geometry.weight, geometry.kernel
    found: list[onnx.NodeProto] = []
    by_group = writer.ints(groups, shape[0] // groups, shape[1], prod(kernel))
    weight = chain(found, writer, "Reshape", node.input[2], by_group)
    back = writer.const(np.arange(prod(kernel))[::-1], np.int64)
    weight = chain(found, writer, "Gather", weight, back, axis=3)
    weight = chain(found, writer, "Transpose", weight, perm=[0, 2, 1, 3])
    whole = writer.ints(groups * shape[1], shape[0] // groups, *kernel)
    weight = chain(found, writer, "Reshape", weight, whole)
    chain(
        found, writer, "Conv", node.input[0], weight, out=node.output[0],
        kernel_shape=kernel, pads=pads, dilations=geometry.dilations, group=groups,
    )  # fmt: skip
    found += kernel_gradient(node)
    return found


def kernel_gradient(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A ConvGrad without the gradient of the data; nothing if that was all."""
    if not any(node.output[1:]):
        return []
    rest = onnx.NodeProto()
    rest.CopyFrom(node)
    rest.output[0] = ""
    return [rest]
