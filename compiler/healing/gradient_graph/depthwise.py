"""Gradients of depthwise convolutions as depthwise convolutions in blocks.

Every sample and channel is by itself, up to the sum over samples. So what is there in blocks, [N, C/b, H, W,
b], is read as it is, as one image of N C channels: the kernel's gradient is its depthwise convolution with a
kernel as large as the output's gradient, the stride in the place of the dilation and the other way round.
`ConvGrad` unfolds every channel of every sample by itself.
"""

from __future__ import annotations

from functools import partial
from math import prod

import onnx

from condensec.healing.gradient_graph import layout
from condensec.healing.gradient_graph.convolution import Geometry
from condensec.healing.gradient_graph.writing import Shape, Writer, chain, reshaped

Nodes = list[onnx.NodeProto]


def kernel(
    geometry: Geometry,
    shapes: tuple[Shape, Shape],
    given: tuple[str, str],
    names: tuple[str, str],
    block: int,
    nodes: Nodes,
    writer: Writer,
) -> None:
    """Gradients of a depthwise convolution's parameters.

    Args:
        geometry: of the convolution.
        shapes: of the image it read and of what it gave, [N, C, H, W].
        given: the image and the gradient of what it gave, in blocks.
        names: for the gradients of kernel and bias; "" = not wanted.
        block: channels a block.
        nodes: get the operators.
        writer: names and constants.
    """
    (samples, _, *image), (_, _, *result) = shapes
    channels = layout.whole(geometry.outputs, block)
    taps, planes = prod(geometry.kernel), samples * channels

    shaped = partial(reshaped, nodes, writer)

    def written(name: str, rows: int, out: str, *shape: int) -> None:
        """Sums over samples of [N, C/b, rows, b], as the first channels of [C, shape]."""
        ones = writer.const([[1.0] * samples])
        sums = chain(nodes, writer, "MatMul", ones, shaped(name, samples, channels * rows))
        sums = shaped(sums, channels // block, rows, block)
        sums = shaped(chain(nodes, writer, "Transpose", sums, perm=[0, 2, 1]), channels, *shape)
        chain(nodes, writer, "Slice", sums, *(writer.ints(i) for i in (0, geometry.outputs, 0)), out=out)

    x, gradient = given
    weight, bias = names
    if bias:
        pixels = shaped(gradient, planes // block, prod(result), block)
        written(chain(nodes, writer, "MatMul", writer.const([[1.0] * prod(result)]), pixels), 1, bias)
    if weight:
        reached = [
            (n - 1) * s + span + 1
            for n, s, span in zip(result, geometry.strides, geometry.spans, strict=True)
        ]
        x = shaped(x, planes // block, image[0], image[1] * block)
        (top, left), (down, along) = geometry.pads[:2], (r - i for r, i in zip(reached, image, strict=True))
        pads = [0, top, left * block, 0, down - top, (along - left) * block]
        if any(pads):  # a negative one cuts off what no kernel reaches
            x = chain(nodes, writer, "Pad", x, writer.ints(*pads))
        found = chain(
            nodes, writer, "Conv", shaped(x, 1, planes, *reached), shaped(gradient, planes, 1, *result),
            domain=layout.DOMAIN, kernel_shape=result, dilations=geometry.strides,
            strides=geometry.dilations, pads=[0, 0, 0, 0], group=planes,
        )  # fmt: skip
        written(found, taps, weight, 1, *geometry.kernel)


def spread(
    geometry: Geometry, shapes: tuple[Shape, Shape], gradient: str, block: int, nodes: Nodes, writer: Writer
) -> tuple[str, list[int]] | None:
    """The gradient of a strided convolution's output with zeros between its pixels.

    The gradient of the data is its convolution, of stride one, with the kernel turned round (Dumoulin &
    Visin 2016, 4.6).

    Args:
        geometry: of the convolution.
        shapes: of the image it read and of what it gave, [N, C, H, W].
        gradient: of what it gave, in blocks.
        block: channels a block.
        nodes: get the operators.
        writer: names and constants.

    Returns:
        Its name, in blocks, and the pads of that convolution; None where it isn't one.
    """
    (samples, _, *image), (_, _, *result) = shapes
    before = [span - pad for span, pad in zip(geometry.spans, geometry.pads[:2], strict=True)]
    sizes = [n * s for n, s in zip(result, geometry.strides, strict=True)]
    after = [n - size + pad for n, size, pad in zip(image, sizes, geometry.pads[:2], strict=True)]
    if not geometry.is_plain or not all(0 <= n <= s for n, s in zip(after, geometry.spans, strict=True)):
        return None
    channels = layout.whole(geometry.outputs, block)
    lines = samples * channels // block * result[0]
    for shape, missing in (
        ((lines * result[1], block), (geometry.strides[1] - 1) * block),
        ((lines, sizes[1] * block), (geometry.strides[0] - 1) * sizes[1] * block),
    ):
        if missing:
            gradient = reshaped(nodes, writer, gradient, *shape)
            gradient = chain(nodes, writer, "Pad", gradient, writer.ints(0, 0, 0, missing))
    whole = writer.ints(samples, channels, *sizes)
    return chain(nodes, writer, "Reshape", gradient, whole), [*before, *after]
