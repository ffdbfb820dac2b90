"""Gradients of convolutions.

`ConvGrad` multiplies matrices and then folds the columns back into an image, pixel by pixel. For stride one
the gradient of the data is itself a convolution, of the output's gradient with the kernel turned round
(Dumoulin & Visin 2016, "A guide to convolution arithmetic", 4.2), which onnxruntime runs up to 1.7 times as
fast. The gradient of the kernel stays with `ConvGrad`.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import helper

from condensec.healing.gradient_graph.writing import Shapes, Writer, chain


def data_gradient(node: onnx.NodeProto, shapes: Shapes, writer: Writer) -> list[onnx.NodeProto] | None:
    """The gradient of a convolution's data as a convolution; None where it isn't one, or isn't needed."""
    shape = shapes.get(node.input[2])
    if not shape or not node.output[0]:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kernel = list(shape[2:])
    rank = len(kernel)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)] * 2
    turned = [span - pad for span, pad in zip(spans, pads, strict=True)]
    automatic = attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"")
    if automatic or any(s != 1 for s in strides) or min(turned) < 0 or 0 in shape:
        return None
    groups = int(attributes.get("group", 1))
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
        kernel_shape=kernel, pads=turned, dilations=dilations, group=groups,
    )  # fmt: skip
    if any(node.output[1:]):
        rest = onnx.NodeProto()
        rest.CopyFrom(node)
        rest.output[0] = ""
        found.append(rest)
    return found
