"""Convolutions in onnxruntime's blocked layout, activations and their gradients kept in it between them.

onnxruntime's fastest float convolution works on channels in blocks of 8 or 16 (a vector register's), laid
out [N, C/b, H, W, b], and is up to twice as fast as the one for [N, C, H, W] (the gain comes from not
unfolding the image; Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions on SIMD
architectures"). Its optimizer uses it for constant weights only. Here the same operators, of its internal
domain com.microsoft.nchwc, are written by hand: weights, which are small, are re-ordered inside of the graph
in every step.

A value in blocks has its channels filled up to whole blocks. What the filling holds never matters: the
weights for it are zero, and it is dropped on the way back; so only operators that make finite numbers of
finite numbers may run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

import onnx

from condensec.healing.gradient_graph import depthwise, layout
from condensec.healing.gradient_graph.batch import Batch, Statistics
from condensec.healing.gradient_graph.convolution import Geometry, kernel_gradient
from condensec.healing.gradient_graph.kernel import Kernel, Layout, is_worth
from condensec.healing.gradient_graph.writing import Writer, chain
from condensec.healing.graph import Node

# Element by element, finite for finite inputs; the others of their inputs are scalars.
_SAFE = frozenset((
    "Relu", "Clip", "Mul", "Add", "Sub", "Sum", "Identity", "Sigmoid", "Tanh", "Neg", "Erf",
    "com.microsoft.SigmoidGrad", "com.microsoft.TanhGrad",
))  # fmt: skip
_WASTE = 1.4  # padded work over needed work, at most: above, the plain convolution is faster
_WASTE_DEPTHWISE = 4.0  # the plain one is ten times as slow
_STRONG = 100  # multiplications for one output above which re-ordering the data costs less than is gained


class Blocked:
    """Rewrites a gradient graph's nodes, in order.

    Args:
        writer: for names and constants; knows the shapes.
        block: channels a block.
    """

    def __init__(self, writer: Writer, block: int) -> None:
        self._writer, self._block = writer, block
        self._found: list[onnx.NodeProto] = []
        self._blocked: dict[str, str] = {}  # value -> its name in blocks
        self._native: set[str] = set()  # values made in blocks
        self._plain: set[str] = set()  # of these: those that were written out plainly as well
        self._normalized: dict[str, Statistics] = {}  # a saved mean's name -> what was made in its place
        self.changed = 0

    def rewrite(self, nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that compute the same outputs."""
        kinds: dict[str, Callable[[onnx.NodeProto], bool]]
        kinds = {"Conv": self._convolution, "ConvGrad": self._gradients}
        kinds |= {"BatchNormInternal": self._batch, "BatchNormalizationGrad": self._batch_gradients}
        for node in nodes:
            done = kinds.get(node.op_type, self._element_by_element)(node)
            if not done:
                for name in node.input:
                    self._make_plain(name)
                self._found.append(node)
        for name in outputs:
            self._make_plain(name)
        return self._found

    # -- layouts ----------------------------------------------------------------------------------------

    def _make_plain(self, name: str) -> None:
        if name in self._native and name not in self._plain:
            self._plain.add(name)
            channels = self._writer.shapes[name][1]
            source = self._blocked[name]
            chain(
                self._found,
                self._writer,
                "ReorderOutput",
                source,
                out=name,
                domain=layout.DOMAIN,
                channels=channels,
            )

    def _in_blocks(self, name: str) -> str:
        """A value's name in blocks, re-ordered once if it wasn't made so."""
        if name not in self._blocked:
            shape = self._writer.shapes[name]
            source = name
            if shape[1] % 4:  # what the re-ordering operator takes
                missing = layout.whole(shape[1], self._block) - shape[1]
                pads = self._writer.ints(0, 0, 0, 0, 0, missing, 0, 0)
                source = chain(self._found, self._writer, "Pad", name, pads)
            self._blocked[name] = chain(
                self._found, self._writer, "ReorderInput", source, domain=layout.DOMAIN
            )
        return self._blocked[name]

    def _made(self, name: str) -> str:
        """A name in blocks for a value that is being made."""
        self._native.add(name)
        self._blocked[name] = self._writer.fresh("blocked")
        return self._blocked[name]

    # -- operators --------------------------------------------------------------------------------------

    def _element_by_element(self, node: onnx.NodeProto) -> bool:
        """An operator on single elements of which an input is there in blocks."""
        shapes = self._writer.shapes
        shape = shapes.get(node.output[0], ())
        given = [name for name in node.input if name]
        if Node(node).op not in _SAFE or len(shape) != 4:
            return False
        full = [name for name in given if shapes.get(name) == shape]
        scalars = all(name in full or prod(shapes.get(name, (0,))) == 1 for name in given)
        if not scalars or not self._native.intersection(full):
            return False
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in full:
                renamed.input[i] = self._in_blocks(name)
        renamed.output[0] = self._made(node.output[0])
        self._found.append(renamed)
        return True

    def _convolution(self, node: onnx.NodeProto) -> bool:
        geometry = Geometry.of(node, self._writer.shapes.get(node.input[1]))
        if geometry is None or not self._are_images(node.input[0], node.output[0]):
            return False
        inputs, outputs = geometry.inputs, geometry.outputs
        x = node.input[0]
        direct = geometry.groups == 1 and inputs < self._block and x not in self._native
        if not self._is_worth(geometry, inputs, outputs, x, direct):
            return False
        weight = self._weight(node.input[1], geometry, direct)
        bias = []
        if len(node.input) > 2 and node.input[2]:
            bias = [layout.filled(node.input[2], (outputs,), self._block, self._found, self._writer)]
        self._emit(
            geometry, [x if direct else self._in_blocks(x), weight, *bias], node.output[0], geometry.pads
        )
        return True

    def _batch(self, node: onnx.NodeProto) -> bool:
        """A batch normalization of what was made in blocks; its statistics are for its gradient alone."""
        x, scale, shift = node.input[:3]
        if x not in self._native:
            return False
        writer = self._batch_of(x)
        epsilon = Node(node).attribute("epsilon", 1e-5)
        made = writer.forward(self._in_blocks(x), scale, shift, epsilon, self._made(node.output[0]))
        self._normalized[node.output[3]] = made
        self.changed += 1
        return True

    def _batch_gradients(self, node: onnx.NodeProto) -> bool:
        dy, x, _, mean, _ = node.input
        made = self._normalized.get(mean)
        if made is None:
            return False
        into, scale, shift = node.output
        gradient = self._in_blocks(dy)
        names = (self._made(into) if into else "", scale, shift)
        self._batch_of(x).gradient(gradient, self._in_blocks(x), made, names)
        self.changed += 1
        return True

    def _batch_of(self, x: str) -> Batch:
        return Batch(self._writer.shapes[x], self._block, self._found, self._writer)

    def _are_images(self, *names: str) -> bool:
        """Known to be [N, C, H, W]."""
        return all(len(self._writer.shapes.get(name, ())) == 4 for name in names)

    def _weight(self, name: str, geometry: Geometry, direct: bool) -> str:
        arguments = (name, geometry.weight, self._block, self._found, self._writer)
        return layout.forward(*arguments, single=direct or geometry.is_depthwise)

    def _gradients(self, node: onnx.NodeProto) -> bool:
        """Gradients of the data and of the parameters, those of both that are faster in blocks."""
        geometry = Geometry.of(node, self._writer.shapes.get(node.input[2]))
        if geometry is None or not self._are_images(*node.input[:2]):
            return False
        rest: onnx.NodeProto | None = node
        if node.output[0]:
            if not self._data_gradient(node, geometry):
                return False  # `ConvGrad` gives no gradient of the data alone
            rest = next(iter(kernel_gradient(node)), None)
        if rest is not None and self._kernel_gradient(rest, geometry):
            rest = None
        if rest is node:
            return False
        if rest is not None:
            for name in rest.input:
                self._make_plain(name)
            self._found.append(rest)
        return True

    def _data_gradient(self, node: onnx.NodeProto, geometry: Geometry) -> bool:
        """The convolution of the output's gradient with the kernel turned round."""
        gradient, _, kernel = node.input
        turned = geometry.turned()
        if not self._are_images(node.output[0]):
            return False
        if not self._is_worth(geometry, geometry.outputs, geometry.inputs, gradient, False):
            return False
        source = self._in_blocks(gradient) if turned else ""
        if turned is None and geometry.is_depthwise:
            shapes = self._writer.shapes[node.output[0]], self._writer.shapes[gradient]
            source, turned = depthwise.spread(
                geometry, shapes, self._in_blocks(gradient), self._block, self._found, self._writer
            ) or ("", None)
        if turned is None:
            return False
        write = layout.turned_depthwise if geometry.is_depthwise else layout.turned
        weight = write(kernel, geometry.weight, self._block, self._found, self._writer)
        whole = replace(geometry, strides=[1] * len(geometry.strides))
        self._emit(whole, [source, weight], node.output[0], turned)
        return True

    def _kernel_gradient(self, node: onnx.NodeProto, geometry: Geometry) -> bool:
        """Gradients of weight and bias, by samples in the place of channels."""
        gradient, x, _ = node.input
        shapes = self._writer.shapes
        names = [*node.output[1:], "", ""]
        if geometry.is_depthwise:
            if not self._is_worth(geometry, geometry.inputs, geometry.outputs, x, False):
                return False
            depthwise.kernel(
                geometry, (shapes[x], shapes[gradient]), (self._in_blocks(x), self._in_blocks(gradient)),
                (names[0], names[1]), self._block, self._found, self._writer,
            )  # fmt: skip
            self.changed += 1
            return True
        minor = 1 if geometry.inputs < self._block and x not in self._native else self._block
        plan = Layout.of(shapes[x], shapes[gradient], self._block, minor)
        only_blocks = all(name in self._native - self._plain for name in (gradient, x))
        if not is_worth(geometry, plan, only_blocks=only_blocks):
            return False
        source = self._in_blocks(x) if minor > 1 else x
        Kernel(geometry, plan, self._found, self._writer).write(source, self._in_blocks(gradient), *names[:2])
        self.changed += 1
        return True

    def _emit(self, geometry: Geometry, inputs: list[str], output: str, pads: list[int]) -> None:
        groups = layout.whole(geometry.groups, self._block) if geometry.is_depthwise else 1
        chain(
            self._found, self._writer, "Conv", *inputs, out=self._made(output), domain=layout.DOMAIN,
            kernel_shape=geometry.kernel, dilations=geometry.dilations, strides=geometry.strides, pads=pads,
            group=groups,
        )  # fmt: skip
        self.changed += 1

    def _is_worth(self, geometry: Geometry, inputs: int, outputs: int, x: str, direct: bool) -> bool:
        """Whether the blocked convolution is faster; a fixed rule, so that every run does the same."""
        if len(geometry.kernel) != 2 or not geometry.is_plain:
            return False
        if geometry.is_depthwise:
            return layout.whole(inputs, self._block) <= _WASTE_DEPTHWISE * inputs
        if geometry.groups != 1:
            return False
        taken = inputs if direct else layout.whole(inputs, self._block)
        waste = taken * layout.whole(outputs, self._block) / (inputs * outputs)
        strong = inputs * prod(geometry.kernel) >= _STRONG
        return waste <= _WASTE and (strong or direct or x in self._native)
