"""Random graphs with everything that makes grouping hard, from one seed.

Feature maps [N, C, H, W] and tokens [N, S, C] flow through randomly chosen blocks: branches, residuals,
concatenations, splits, reshapes, shuffles, shared weights, grouped convolutions, gates, norms, attention,
and bodies of If, Loop and Scan (`random_bodies`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import random_bodies
from graph_builder import IR_VERSION, OPSET, Builder
from onnx import TensorProto, helper


@dataclass(frozen=True)
class Map:
    """A feature map [N, channels, size, size]."""

    name: str
    channels: int
    size: int


@dataclass(frozen=True)
class Tokens:
    """Tokens [N, length, features]."""

    name: str
    length: int
    features: int


class RandomModel:
    """Grows one graph; every block takes a tensor and returns one that is added to the pool."""

    def __init__(self, seed: int) -> None:
        self.b = Builder(seed)
        self.rng = np.random.default_rng(seed + 1_000_003)
        self.count = 0
        self.maps: list[Map] = []
        self.tokens: list[Tokens] = []
        self.shared: dict[tuple[int, ...], str] = {}
        self.inner: list[onnx.TensorProto] = []  # weights of the body that was built last

    # -- small helpers ----------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = self.name(kind.lower())
        outs = [f"{name}_out{i}" for i in range(outputs)]
        return self.b.op(kind, name, *inputs, outputs=outs, **attributes)

    def pick(self, *options: object) -> object:
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def weight(self, *shape: int, scale: float | None = None, shift: float = 0.0) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.b.normal(self.name("w"), shape, scale if scale is not None else fan**-0.5, shift)

    def ints(self, *values: int) -> str:
        return self.b.ints(self.name("ints"), *values)

    # -- feature maps -------------------------------------------------------------------------------

    def conv(self, m: Map, channels: int | None = None, group: int = 1, kernel: int | None = None) -> Map:
        channels = channels or 2 * self.number(2, 8)
        kernel = kernel or int(str(self.pick(1, 3)))
        shape = (channels, m.channels // group, kernel, kernel)
        weight = self.shared.get(shape) if self.rng.random() < 0.3 else None
        if weight is None:
            weight = self.weight(*shape)
            self.shared[shape] = weight
        inputs = [m.name, weight]
        if self.rng.random() < 0.6:
            inputs.append(self.weight(channels, scale=0.2))
        y = self.op("Conv", *inputs, group=group, pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel])
        return Map(y, channels, m.size)

    def grouped(self, m: Map) -> Map:
        divisors = [g for g in range(2, m.channels + 1) if m.channels % g == 0]
        group = int(str(self.pick(*divisors))) if divisors else 1
        return self.conv(m, group * self.number(1, 3), group)

    def norm(self, m: Map) -> Map:
        name = self.name("bn")
        return Map(self.b.bn(name, m.name, m.channels), m.channels, m.size)

    def instance_norm(self, m: Map) -> Map:
        y = self.op(
            "InstanceNormalization",
            m.name,
            self.weight(m.channels, scale=0.2, shift=1.0),
            self.weight(m.channels),
        )
        return Map(y, m.channels, m.size)

    def activation(self, m: Map) -> Map:
        kind = str(
            self.pick("Relu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "LeakyRelu", "PRelu", "Silu")
        )
        if kind == "PRelu":
            return Map(self.op(kind, m.name, self.weight(m.channels, 1, 1, scale=0.3)), m.channels, m.size)
        if kind == "Silu":
            return Map(self.op("Mul", m.name, self.op("Sigmoid", m.name)), m.channels, m.size)
        return Map(self.op(kind, m.name), m.channels, m.size)

    def residual(self, m: Map) -> Map:
        others = [o for o in self.maps if o.channels == m.channels and o.size == m.size and o != m]
        other = others[int(self.rng.integers(len(others)))] if others else self.conv(m, m.channels)
        return Map(
            self.op(str(self.pick("Add", "Mul", "Sub", "Max")), m.name, other.name), m.channels, m.size
        )

    def concat(self, m: Map) -> Map:
        others = [o for o in self.maps if o.size == m.size and o.channels + m.channels <= 48]
        chosen = (
            [others[int(self.rng.integers(len(others)))] for _ in range(self.number(1, 2))] if others else []
        )
        parts = [m, *chosen]
        return Map(
            self.op("Concat", *(p.name for p in parts), axis=1), sum(p.channels for p in parts), m.size
        )

    def split(self, m: Map) -> Map:
        if m.channels < 4:
            return m
        first = (
            m.channels // 2
            if m.channels % 2 == 0 and self.rng.random() < 0.5
            else self.number(2, m.channels - 2)
        )
        sizes = (first, m.channels - first)
        if self.rng.random() < 0.5:
            name = self.name("split")
            self.b.op("Split", name, m.name, self.ints(*sizes), outputs=[f"{name}a", f"{name}b"], axis=1)
            left, right = f"{name}a", f"{name}b"
        else:
            left = self.op("Slice", m.name, self.ints(0), self.ints(first), self.ints(1))
            right = self.op("Slice", m.name, self.ints(first), self.ints(2**31 - 1), self.ints(1))
        parts = Map(left, sizes[0], m.size), Map(right, sizes[1], m.size)
        self.maps.extend(parts)
        if self.rng.random() < 0.5:
            mixed = self.op("Concat", right, left, axis=1)
            return Map(mixed, m.channels, m.size)
        return parts[self.number(0, 1)]

    def shuffle(self, m: Map) -> Map:
        divisors = [g for g in range(2, m.channels) if m.channels % g == 0]
        if not divisors:
            return m
        g = int(str(self.pick(*divisors)))
        y = self.op("Reshape", m.name, self.ints(0, g, m.channels // g, m.size, m.size))
        y = self.op("Transpose", y, perm=[0, 2, 1, 3, 4])
        return Map(self.op("Reshape", y, self.ints(0, -1, m.size, m.size)), m.channels, m.size)

    def permute(self, m: Map) -> Map:
        order = self.rng.permutation(m.channels)[: self.number(max(2, m.channels // 2), m.channels)]
        if len(order) < 2:
            return m
        return Map(self.op("Gather", m.name, self.ints(*map(int, order)), axis=1), len(order), m.size)

    def pad(self, m: Map) -> Map:
        low, high = self.number(0, 3), self.number(1, 3)
        y = self.op("Pad", m.name, self.ints(0, low, 0, 0, 0, high, 0, 0))
        return Map(y, m.channels + low + high, m.size)

    def gate(self, m: Map) -> Map:
        squeezed = self.number(2, 6)
        s = Map(self.op("GlobalAveragePool", m.name), m.channels, 1)
        s = self.conv(s, squeezed, kernel=1)
        s = self.conv(Map(self.op("Relu", s.name), squeezed, 1), m.channels, kernel=1)
        return Map(self.op("Mul", m.name, self.op("Sigmoid", s.name)), m.channels, m.size)

    def layer_norm_2d(self, m: Map) -> Map:
        y = self.op("Transpose", m.name, perm=[0, 2, 3, 1])
        y = self.op(
            "LayerNormalization", y, self.weight(m.channels, scale=0.2, shift=1.0), self.weight(m.channels)
        )
        return Map(self.op("Transpose", y, perm=[0, 3, 1, 2]), m.channels, m.size)

    def group_norm(self, m: Map) -> Map:
        divisors = [g for g in range(2, m.channels + 1) if m.channels % g == 0] or [1]
        g = int(str(self.pick(*divisors)))
        y = self.op("Reshape", m.name, self.ints(0, g, -1))
        y = self.op(
            "InstanceNormalization", y, self.weight(g, scale=0.1, shift=1.0), self.weight(g, scale=0.1)
        )
        y = self.op("Reshape", y, self.ints(0, m.channels, m.size, m.size))
        y = self.op("Mul", y, self.weight(m.channels, 1, 1, scale=0.3, shift=1.0))
        return Map(self.op("Add", y, self.weight(m.channels, 1, 1, scale=0.3)), m.channels, m.size)

    def channel_softmax(self, m: Map) -> Map:
        return Map(self.op("Mul", m.name, self.op("Softmax", m.name, axis=1)), m.channels, m.size)

    def spatial_attention(self, m: Map) -> Map:
        kind = str(self.pick("ReduceMean", "ReduceMax"))
        return Map(self.op("Mul", m.name, self.op(kind, m.name, axes=[1], keepdims=1)), m.channels, m.size)

    def pixels(self, m: Map) -> Map:
        y = self.op("SpaceToDepth", m.name, blocksize=2)
        low = self.conv(Map(y, m.channels * 4, m.size // 2), 4 * self.number(2, 5), kernel=1)
        mode = str(self.pick("DCR", "CRD"))
        return Map(self.op("DepthToSpace", low.name, blocksize=2, mode=mode), low.channels // 4, m.size)

    def transposed(self, m: Map) -> Map:
        channels = self.number(3, 10)
        y = self.op("ConvTranspose", m.name, self.weight(m.channels, channels, 3, 3), pads=[1] * 4)
        return Map(y, channels, m.size)

    # -- tokens -----------------------------------------------------------------------------------

    def to_tokens(self, m: Map) -> Tokens:
        y = self.op("Reshape", m.name, self.ints(0, m.channels, -1))
        return Tokens(self.op("Transpose", y, perm=[0, 2, 1]), m.size**2, m.channels)

    def to_map(self, t: Tokens) -> Map:
        size = int(t.length**0.5)
        y = self.op("Transpose", t.name, perm=[0, 2, 1])
        return Map(self.op("Reshape", y, self._shape(y, t.features, size, size)), t.features, size)

    def _shape(self, like: str, *last: int) -> str:
        """[N, ...]: with 0 or -1 for the batch, or from shape arithmetic."""
        way = self.number(0, 2)
        if way < 2:
            return self.ints(-way, *last)
        batch = self.op("Slice", self.op("Shape", like), self.ints(0), self.ints(1), self.ints(0))
        return self.op("Concat", batch, *(self.ints(n) for n in last), axis=0)

    def linear(self, t: Tokens, features: int) -> Tokens:
        y = self.op("MatMul", t.name, self._matrix(t.features, features))
        if self.rng.random() < 0.6:
            y = self.op("Add", y, self.weight(features, scale=0.2))
        return Tokens(y, t.length, features)

    def _matrix(self, rows: int, columns: int) -> str:
        """A weight, at times one that has users already: as it is, or transposed, or the transposed one."""
        if self.rng.random() < 0.3:
            for shape in ((rows, columns), (columns, rows)):
                known = self.shared.get(shape)
                if known is not None:
                    turned = f"{known}_turned"
                    if shape == (rows, columns):
                        return known
                    if not any(turned in node.output for node in self.b.nodes):
                        self.b.op("Transpose", turned, known, outputs=[turned])
                    return turned
        return self.shared.setdefault((rows, columns), self.weight(rows, columns))

    def token_norm(self, t: Tokens) -> Tokens:
        scale = self.weight(t.features, scale=0.2, shift=1.0)
        if self.rng.random() < 0.5:
            y = self.op("LayerNormalization", t.name, scale, self.weight(t.features, scale=0.2))
        else:  # RMS, in pieces
            squares = self.op("ReduceMean", self.op("Mul", t.name, t.name), axes=[-1], keepdims=1)
            root = self.op("Sqrt", self.op("Add", squares, self.b.const(self.name("eps"), np.float32(1e-5))))
            y = self.op("Mul", self.op("Div", t.name, root), scale)
        return Tokens(y, t.length, t.features)

    def mlp(self, t: Tokens) -> Tokens:
        width = self.number(3, 12)
        y = self.linear(t, width)
        if self.rng.random() < 0.5:
            gate = self.linear(t, width)
            y = Tokens(self.op("Mul", y.name, self.op("Sigmoid", gate.name)), t.length, width)
        else:
            y = Tokens(self.op("Relu", y.name), t.length, width)
        y = self.linear(y, t.features)
        return Tokens(self.op("Add", y.name, t.name), t.length, t.features)

    def attention(self, t: Tokens) -> Tokens:
        heads, dim = self.number(2, 4), self.number(2, 4)
        if self.rng.random() < 0.4:
            q, k, v = self._packed(t, heads, dim)
        else:
            q, k, v = (self._heads(self.linear(t, heads * dim), heads, dim) for _ in range(3))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.b.const(self.name("scale"), np.float32(dim**-0.5)))
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        y = self.op("Transpose", y, perm=[0, 2, 1, 3])
        y = self.op("Reshape", y, self._shape(y, t.length, heads * dim))
        out = self.linear(Tokens(y, t.length, heads * dim), t.features)
        return Tokens(self.op("Add", out.name, t.name), t.length, t.features)

    def _heads(self, t: Tokens, heads: int, dim: int) -> str:
        y = self.op("Reshape", t.name, self._shape(t.name, t.length, heads, dim))
        return self.op("Transpose", y, perm=[0, 2, 1, 3])

    def _packed(self, t: Tokens, heads: int, dim: int) -> tuple[str, ...]:
        qkv = self.linear(t, 3 * heads * dim)
        y = self.op("Reshape", qkv.name, self._shape(qkv.name, t.length, 3, heads, dim))
        y = self.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        zero = [self.b.const(self.name("index"), np.int64(i)) for i in range(3)]
        return tuple(self.op("Gather", y, index, axis=0) for index in zero)

    # -- growing ----------------------------------------------------------------------------------

    def grow(self, steps: int) -> None:
        on_maps: list[Callable[[Map], Map]] = [
            self.conv, self.conv, self.grouped, self.norm, self.activation, self.activation, self.residual,
            self.residual, self.concat, self.split, self.shuffle, self.permute, self.pad, self.gate,
            self.layer_norm_2d, self.group_norm, self.channel_softmax, self.spatial_attention, self.pixels,
            self.transposed, self.instance_norm, lambda m: random_bodies.branches(self, m),
        ]  # fmt: skip
        on_tokens: list[Callable[[Tokens], Tokens]] = [
            self.token_norm, self.mlp, self.attention, self.token_norm, self.mlp, self.attention,
            lambda t: random_bodies.loop(self, t), lambda t: random_bodies.scan(self, t),
        ]  # fmt: skip
        for _ in range(steps):
            if self.tokens and self.rng.random() < 0.3:
                t = self.tokens[int(self.rng.integers(len(self.tokens)))]
                if self.rng.random() < 0.3:
                    self.maps.append(self.to_map(t))
                else:
                    self.tokens.append(on_tokens[int(self.rng.integers(len(on_tokens)))](t))
                continue
            recent = self.maps[-3:]
            m = recent[int(self.rng.integers(len(recent)))]
            if self.rng.random() < 0.12:
                self.tokens.append(self.to_tokens(m))
            else:
                self.maps.append(on_maps[int(self.rng.integers(len(on_maps)))](m))

    def finish(self) -> onnx.ModelProto:
        """Everything that nobody uses comes together in the outputs, so that no mistake stays unseen."""
        used = {name for node in self.b.nodes for name in node.input}
        ends = [e for e in (*self.maps, *self.tokens) if e.name not in used]
        ends = list({e.name: e for e in ends}.values())
        parts: list[str] = []
        for end in ends:
            if isinstance(end, Tokens):
                y = self.linear(end, 2)
            else:
                y = self.conv(end, 2, kernel=1) if self.rng.random() < 0.7 else end
                if y is end or self.rng.random() < 0.3:
                    y = self.conv(Map(self.op("GlobalAveragePool", end.name), end.channels, 1), 4, kernel=1)
            parts.append(self.op("Flatten", y.name, axis=1))
        self.b.op("Concat", "join", *parts, outputs=["joined"], axis=1)
        outputs = [helper.make_tensor_value_info("joined", TensorProto.FLOAT, None)]
        if self.rng.random() < 0.3:  # a second output freezes what it shows
            self.b.op("Identity", "features", self.maps[0].name, outputs=["stem"])
            outputs.append(helper.make_tensor_value_info("stem", TensorProto.FLOAT, None))
        graph = helper.make_graph(self.b.nodes, "random", self.b.inputs, outputs, self.b.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model


def random_model(seed: int, steps: int | None = None) -> onnx.ModelProto:
    """The model of a seed: input `input` [N, 3, 6, 6], output `joined` [N, anything]."""
    model = RandomModel(seed)
    start = Map(model.b.input("input", ["N", 3, 6, 6]), 3, 6)
    model.maps.append(model.conv(start, 2 * model.number(3, 7), kernel=3))
    model.grow(steps or model.number(3, 14))
    return model.finish()
