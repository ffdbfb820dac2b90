"""Gradients of kernels as convolutions in blocks, with the samples in the place of the channels.

    dW[m, c, i, j] = sum over n, h, w of  dY[n, m, h, w]  X[n, c, s h + i - p, s w + j - p]

is itself a convolution: of X with a kernel as large as dY, in which samples are summed over, as channels
are, and the stride s is the kernel's dilation. `ConvGrad` unfolds the image of every sample instead, and
adds up products of thin matrices.

Here 16 (a block of) samples are what the blocked operator reads as a block of channels. One transposition of
X [N, C/b, H, W, b] brings the samples to the end: that is a blocked image of height H and width W b, in which
a step of one pixel is a step of b. So along its rows the result holds all shifts j of all b channels side by
side, enough of them to fill the processor's registers, and nothing is unfolded.

Where a part has fewer samples than a block, the images are cut into strips that count as samples, each with
the rows of its neighbours that the kernel reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import onnx

from condensec.healing.gradient_graph import layout
from condensec.healing.gradient_graph.convolution import Geometry
from condensec.healing.gradient_graph.writing import Shape, Writer, chain, reshaped

_STRIPS = 8  # of an image, at most
_WASTE = 1.4  # padded work over needed work, at most
_THIN = 64  # channels: products of matrices with more are as fast


@dataclass(frozen=True)
class Layout:
    """How X and dY are laid out for the convolution.

    Attributes:
        samples: of a part.
        block: samples, and channels of dY, in a block.
        minor: channels of X side by side: a block, or 1 where X isn't in blocks.
        groups: of so many channels.
        image: rows and columns of X.
        result: rows and columns of dY.
        strips: an image is cut into.
    """

    samples: int
    block: int
    minor: int
    groups: int
    image: tuple[int, int]
    result: tuple[int, int]
    strips: int

    @classmethod
    def of(cls, x: Shape, dy: Shape, block: int, minor: int) -> Layout:
        """Of an image and the gradient of its convolution's output, both [N, C, H, W]."""
        strips = block // gcd(x[0], block)
        groups = layout.whole(x[1], block) // block if minor > 1 else x[1]
        return cls(x[0], block, minor, groups, (x[2], x[3]), (dy[2], dy[3]), strips)

    @property
    def rows(self) -> int:
        """Of dY in one strip."""
        return -(-self.result[0] // self.strips)

    @property
    def blocks(self) -> int:
        """Of samples."""
        return self.samples * self.strips // self.block

    def waste(self, geometry: Geometry) -> float:
        """Work over needed work."""
        channels = self.groups * self.minor * layout.whole(geometry.outputs, self.block)
        return channels * self.rows * self.strips / (geometry.inputs * geometry.outputs * self.result[0])


def is_worth(geometry: Geometry, plan: Layout, *, only_blocks: bool) -> bool:
    """Whether it is faster than `ConvGrad`; a fixed rule, so that every run does the same.

    For kernels of one pixel that unfolds nothing: there it is the way out of the blocks that is saved.

    Args:
        geometry: of the convolution.
        plan: what would be done.
        only_blocks: X and dY are there in blocks only.
    """
    if len(geometry.kernel) != 2 or geometry.groups != 1 or not geometry.is_plain:
        return False
    if any(d != 1 for d in geometry.dilations) or plan.strips > _STRIPS or plan.waste(geometry) > _WASTE:
        return False
    return prod(geometry.kernel) > 1 or (only_blocks and min(geometry.inputs, geometry.outputs) <= _THIN)


class Kernel:
    """Writes the operators.

    Args:
        geometry: of the convolution.
        plan: how its data is laid out.
        nodes: get the operators.
        writer: names and constants.
    """

    def __init__(self, geometry: Geometry, plan: Layout, nodes: list[onnx.NodeProto], writer: Writer) -> None:
        self._geometry, self._plan, self._nodes, self._writer = geometry, plan, nodes, writer
        self._outputs = layout.whole(geometry.outputs, plan.block)

    def write(self, x: str, dy: str, weight: str, bias: str) -> None:
        """Gradients of a convolution's parameters.

        Args:
            x: what it read: in blocks, or plainly where `minor` is 1.
            dy: gradient of what it gave, in blocks.
            weight: name for the gradient of the kernel; "" = not wanted.
            bias: name for the gradient of the bias; "" = not wanted.
        """
        given = self._gradient(dy)
        if bias:
            self._bias(given, bias)
        if weight:
            geometry, plan = self._geometry, self._plan
            steps = [geometry.strides[0], geometry.strides[1] * plan.minor]
            found = self._node(
                "Conv", self._image(x), given, domain=layout.DOMAIN, kernel_shape=[plan.rows, plan.result[1]],
                dilations=steps, strides=[1, 1], pads=[0, 0, 0, 0], group=1,
            )  # fmt: skip
            self._weight(found, weight)

    def _image(self, x: str) -> str:
        """X as [groups, samples in blocks, rows, columns minor]."""
        plan, kernel = self._plan, self._geometry.kernel
        (rows, columns), (top, left) = plan.image, self._geometry.pads[:2]
        down, along = self._geometry.strides
        tall = (plan.rows - 1) * down + kernel[0]  # of a strip
        height = (plan.strips - 1) * plan.rows * down + tall
        width = (plan.result[1] - 1) * along + kernel[1]
        x = self._shaped(x, plan.samples, plan.groups, rows, columns * plan.minor)
        below, right = height - rows - top, width - columns - left
        pads = [0, 0, top, left * plan.minor, 0, 0, below, right * plan.minor]
        if any(pads):  # a negative one cuts off what no kernel reaches
            x = self._node("Pad", x, self._writer.ints(*pads))
        if plan.strips > 1:
            starts = [i * plan.rows * down for i in range(plan.strips)]
            x = self._node("Concat", *(self._rows(x, start, start + tall) for start in starts), axis=0)
        inner = plan.groups * tall * width * plan.minor
        x = self._shaped(x, plan.blocks, plan.block, inner)
        x = self._node("Transpose", x, perm=[0, 2, 1])
        x = self._groups_first(x, plan.groups, inner // plan.groups * plan.block)
        return self._shaped(x, plan.groups, plan.blocks * plan.block, tall, width * plan.minor)

    def _gradient(self, dy: str) -> str:
        """The output's gradient as a kernel: [channels, samples in blocks, rows, columns]."""
        plan, groups = self._plan, self._outputs // self._plan.block
        columns = plan.result[1]
        missing = plan.rows * plan.strips - plan.result[0]
        if missing:
            dy = self._shaped(dy, plan.samples, groups, plan.result[0], columns * plan.block)
            dy = self._node("Pad", dy, self._writer.ints(0, 0, 0, 0, 0, 0, missing, 0))
        if plan.strips > 1:
            dy = self._shaped(dy, plan.samples * groups, plan.strips, plan.rows * columns * plan.block)
            dy = self._node("Transpose", dy, perm=[1, 0, 2])
        inner = groups * plan.rows * columns
        dy = self._shaped(dy, plan.blocks, plan.block, inner, plan.block)
        dy = self._node("Transpose", dy, perm=[0, 2, 1, 3])
        dy = self._groups_first(dy, groups, inner // groups * plan.block**2)
        return self._shaped(dy, self._outputs, plan.blocks * plan.block, plan.rows, columns)

    def _weight(self, found: str, name: str) -> None:
        """[groups, channels / b, taps, minor, b] as [M, C, k, k], one axis after another."""
        plan, geometry = self._plan, self._geometry
        taps = prod(geometry.kernel)
        found = self._shaped(found, -1, taps * plan.minor, plan.block)
        found = self._node("Transpose", found, perm=[0, 2, 1])
        if taps > 1 and plan.minor > 1:
            found = self._shaped(found, -1, taps, plan.minor)
            found = self._node("Transpose", found, perm=[0, 2, 1])
        if plan.groups > 1:
            found = self._shaped(found, plan.groups, self._outputs, taps * plan.minor)
            found = self._node("Transpose", found, perm=[1, 0, 2])
        found = self._shaped(found, self._outputs, plan.groups * plan.minor, *geometry.kernel)
        stops = self._writer.ints(geometry.outputs, geometry.inputs)
        self._node("Slice", found, self._writer.ints(0, 0), stops, self._writer.ints(0, 1), out=name)

    def _bias(self, given: str, name: str) -> None:
        """Sums over samples and pixels: a product with ones, eight times as fast as `ReduceSum`."""
        plan, groups = self._plan, self._outputs // self._plan.block
        rows, columns = plan.blocks * plan.rows, plan.result[1] * plan.block
        sums = self._shaped(given, groups * rows, columns, plan.block)
        sums = self._node("MatMul", self._writer.const([[1.0] * columns]), sums)
        sums = self._shaped(sums, groups, rows, plan.block)
        sums = self._node("MatMul", self._writer.const([[1.0] * rows]), sums)
        sums = self._shaped(sums, self._outputs)
        stops = self._writer.ints(self._geometry.outputs)
        self._node("Slice", sums, self._writer.ints(0), stops, self._writer.ints(0), out=name)

    def _groups_first(self, name: str, groups: int, size: int) -> str:
        """[blocks, groups, size] with the first two axes exchanged."""
        blocks = self._plan.blocks
        if blocks == 1 or groups == 1:
            return name
        return self._node("Transpose", self._shaped(name, blocks, groups, size), perm=[1, 0, 2])

    def _rows(self, name: str, start: int, stop: int) -> str:
        return self._node("Slice", name, *(self._writer.ints(i) for i in (start, stop, 2)))

    def _shaped(self, name: str, *shape: int) -> str:
        return reshaped(self._nodes, self._writer, name, *shape)

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        return chain(self._nodes, self._writer, op, *inputs, **attributes)
