"""Batch normalization of values in blocks of channels, and its gradient.

Everything of an image's size is a sum over pixels, which is a product with ones, a product of two images, or
one factor and one summand for each channel, which is a depthwise convolution of one pixel. With M values a
channel, n = (x - mean) / s the normalized value, g the scale and dy the gradient of g n + shift:

    d shift = sum(dy)        d g = sum(dy n)        dx = g / s (dy - d shift / M - n d g / M)

(Ioffe & Szegedy 2015, section 3). With n spelled out, dx is a dy + b x + c for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from condensec.healing.gradient_graph import layout
from condensec.healing.gradient_graph.writing import Shape, Writer, chain, reshaped


@dataclass(frozen=True)
class Statistics:
    """Of a value's channels, filled up to whole blocks: names of [1, channels].

    Attributes:
        mean: the mean.
        inverse: 1 / sqrt(variance + epsilon).
        factor: the scale times `inverse`.
    """

    mean: str
    inverse: str
    factor: str


class Batch:
    """Writes the operators for one value.

    Args:
        shape: of the value, [N, C, H, W].
        block: channels a block.
        nodes: get the operators.
        writer: names and constants.
    """

    def __init__(self, shape: Shape, block: int, nodes: list[onnx.NodeProto], writer: Writer) -> None:
        self._shape, self._block, self._nodes, self._writer = shape, block, nodes, writer
        self._channels = layout.whole(shape[1], block)
        self._count = shape[0] * shape[2] * shape[3]

    def forward(self, x: str, scale: str, shift: str, epsilon: float, out: str) -> Statistics:
        """Normalize.

        Args:
            x: the value in blocks.
            scale: [C].
            shift: [C].
            epsilon: added to the variance.
            out: name for the result, in blocks.
        """
        mean = self._mean(x)
        square = self._mean(self._op("Mul", x, x))
        spread = self._op("Sub", square, self._op("Mul", mean, mean))
        spread = self._op("Max", spread, self._writer.const(0))
        root = self._op("Sqrt", self._op("Add", spread, self._writer.const(epsilon)))
        inverse = self._op("Reciprocal", root)
        factor = self._op("Mul", self._filled(scale), inverse)
        moved = self._op("Sub", self._filled(shift), self._op("Mul", mean, factor))
        self._channelwise(x, factor, moved, out=out)
        return Statistics(mean, inverse, factor)

    def gradient(self, dy: str, x: str, of: Statistics, names: tuple[str, str, str]) -> None:
        """Gradients of a normalized value.

        Args:
            dy: gradient of the result, in blocks.
            x: what was normalized, in blocks.
            of: what `forward` gave.
            names: for the gradients of x (in blocks), of scale and of shift; "" = not wanted.
        """
        total = self._sum(dy)
        product = self._sum(self._op("Mul", dy, x))
        centred = self._op("Sub", product, self._op("Mul", of.mean, total))
        slope = self._op("Mul", centred, of.inverse)
        if names[1]:
            self._cut(slope, names[1])
        if names[2]:
            self._cut(total, names[2])
        if not names[0]:
            return
        share = self._writer.const(-1 / self._count)
        scaled = self._op("Mul", of.factor, share)
        of_x = self._op("Mul", scaled, self._op("Mul", slope, of.inverse))
        rest = self._op("Sub", self._op("Mul", scaled, total), self._op("Mul", of_x, of.mean))
        inner = self._channelwise(x, of_x, rest)
        self._channelwise(dy, of.factor, "", inner, out=names[0])

    def _channelwise(self, x: str, factor: str, summand: str, value: str = "", out: str = "") -> str:
        """A factor and a summand for each channel, and a value in blocks on top."""
        weight = reshaped(self._nodes, self._writer, factor, self._channels, 1, 1, 1)
        bias = reshaped(self._nodes, self._writer, summand, self._channels) if summand else ""
        inputs = [x, weight, *([bias] if summand or value else []), *([value] if value else [])]
        return chain(
            self._nodes, self._writer, "Conv", *inputs, out=out, domain=layout.DOMAIN, kernel_shape=[1, 1],
            dilations=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], group=self._channels,
        )  # fmt: skip

    def _sum(self, x: str) -> str:
        return self._summed(x, 1.0)

    def _mean(self, x: str) -> str:
        return self._summed(x, 1 / self._count)

    def _summed(self, x: str, factor: float) -> str:
        """[1, channels]: sums over samples and pixels, times a factor."""
        samples, _, *image = self._shape
        pixels = image[0] * image[1]
        rows = reshaped(
            self._nodes, self._writer, x, samples * self._channels // self._block, pixels, self._block
        )
        rows = self._op("MatMul", self._writer.const([[1.0] * pixels]), rows)
        rows = reshaped(self._nodes, self._writer, rows, samples, self._channels)
        return self._op("MatMul", self._writer.const([[factor] * samples]), rows)

    def _filled(self, name: str) -> str:
        """[C] as [1, channels]."""
        name = layout.filled(name, (self._shape[1],), self._block, self._nodes, self._writer)
        return reshaped(self._nodes, self._writer, name, 1, self._channels)

    def _cut(self, name: str, out: str) -> None:
        """[1, channels] as [C]."""
        row = reshaped(self._nodes, self._writer, name, self._channels)
        stops = self._writer.ints(self._shape[1])
        chain(self._nodes, self._writer, "Slice", row, self._writer.ints(0), stops, out=out)

    def _op(self, op: str, *inputs: str) -> str:
        return chain(self._nodes, self._writer, op, *inputs)
