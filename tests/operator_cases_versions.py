"""Operators in other dimensions, and in the forms that older and newer opsets gave them."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

import numpy as np
from cutting import tiny
from operator_cases import CASES, MS, between, ints, simple, simple_tokens

# -- other numbers of dimensions --------------------------------------------------------------------------
CASES["conv 1d grouped and dilated"] = lambda: tiny(
    "a = Conv(x, w1) b = Conv<group=3, dilations=[2]>(a, wd) y = Conv(b, w2)",
    x=["N", 3, 12], weights={"w1": (6, 3, 3), "wd": (9, 2, 3), "w2": (4, 9, 1)},
)  # fmt: skip
CASES["conv 3d depthwise, pooled"] = lambda: tiny(
    "a = Conv(x, w1) b = Conv<group=6>(a, wd) c = MaxPool<kernel_shape=[2,2,2]>(b) d = GlobalAveragePool(c) y = Conv(d, w2)",
    x=["N", 2, 5, 5, 5], weights={"w1": (6, 2, 2, 2, 2), "wd": (6, 1, 2, 2, 2), "w2": (4, 6, 1, 1, 1)},
)  # fmt: skip
CASES["conv transposed 1d"] = lambda: tiny(
    "a = Conv(x, w1) b = ConvTranspose<strides=[2]>(a, wd, bd) c = AveragePool<kernel_shape=[2]>(b) y = Conv(c, w2)",
    x=["N", 3, 7], weights={"w1": (6, 3, 3), "wd": (6, 5, 2), "bd": (5,), "w2": (4, 5, 1)},
)  # fmt: skip
CASES["conv transposed 3d"] = lambda: tiny(
    "a = Conv(x, w1) b = ConvTranspose<strides=[2,2,2]>(a, wd) y = Conv(b, w2)",
    x=["N", 2, 3, 3, 3], weights={"w1": (6, 2, 2, 2, 2), "wd": (6, 5, 2, 2, 2), "w2": (4, 5, 1, 1, 1)},
)  # fmt: skip
CASES["instance norm 1d"] = lambda: tiny(
    "a = Conv(x, w1) b = InstanceNormalization(a, s, t) c = Relu(b) y = Conv(c, w2)",
    x=["N", 3, 9], weights={"w1": (6, 3, 3), "s": (6,), "t": (6,), "w2": (4, 6, 1)},
)  # fmt: skip
simple("fused conv with a residual", 'c = Relu(a) b = com.microsoft.FusedConv<activation="Relu">(a, wd, bd, c)', {"wd": (6, 6, 1, 1), "bd": (6,)}, domains=MS)  # fmt: skip
CASES["gemm transposed"] = lambda: tiny(
    "a = MatMul(x, w1) b = Transpose(a) c = Gemm<transA=1, alpha=0.5, beta=2.0>(b, w2, k) d = Relu(c) y = MatMul(d, w3)",
    x=["N", 4], weights={"w1": (4, 6), "w2": (6, 5), "k": (1, 5), "w3": (5, 3)},
)  # fmt: skip
simple_tokens("prelu over features", "b = PRelu(a, p)", {"p": (6,)})
simple_tokens("expand to more axes", "u = Expand(k, z) b = Mul(a, u)", {"k": (6,), "z": ints(2, 5, 6)})
simple_tokens("concat counted from behind", "c = Relu(a) b = Concat<axis=-1>(a, c)", features=12)
simple_tokens("flatten of tokens", "c = Flatten<axis=2>(a) d = Relu(c) b = Reshape(d, z)", {"z": ints(-1, 5, 6)})  # fmt: skip
simple_tokens("tile of tokens", "b = Tile(a, z)", {"z": ints(1, 1, 2)}, features=12)
simple_tokens("layer norm over two axes", "t = Reshape(a, z) n = LayerNormalization<axis=-2>(t, s) b = Reshape(n, q)", {"z": ints(0, 0, 2, 3), "s": (2, 3), "q": ints(0, 0, 6)})  # fmt: skip
simple_tokens("einsum of an outer product", 'c = Relu(a) g = Einsum<equation="bsi,bsj->bsij">(a, c) h = Einsum<equation="bsij,ij->bsi">(g, wk) b = Relu(h)', {"wk": (6, 6)})  # fmt: skip

# -- attributes that became inputs, and the other way round ------------------------------------------------
simple("split by attribute", "p, q = Split<axis=1, split=[2,4]>(a) c = Sigmoid(q) b = Concat<axis=1>(c, p)", opset=11)  # fmt: skip
simple("slice by attributes", "p = Slice<axes=[1], starts=[1], ends=[5]>(a) b = Relu(p)", channels=4, opset=9)
simple("squeeze by attribute", "g = GlobalAveragePool(a) q = Squeeze<axes=[2,3]>(g) r = MatMul(q, wq) b = Unsqueeze<axes=[2,3]>(r)", {"wq": (6, 5)}, channels=5, opset=11)  # fmt: skip
simple("pad by attribute", "b = Pad<pads=[0,1,0,0,0,2,0,0]>(a)", channels=9, opset=10)
simple("pad of some axes", "b = Pad(a, z, , o)", {"z": ints(1, 2), "o": ints(1)}, channels=9, opset=18)
simple("reduce over axes from an input", "m = ReduceMean(a, o) b = Mul(a, m)", {"o": ints(2, 3)}, opset=18)
simple("clip by attributes", "b = Clip<min=-0.1, max=0.4>(a)", opset=10)
simple_tokens("contraction of values clipped above zero", "s = Clip(a, lo) t = Transpose<perm=[0,2,1]>(s) p = MatMul(s, t) b = MatMul(p, a)", {"lo": np.float32(0.5)})  # fmt: skip
simple("resize of old", "b = Resize(a, k)", {"k": np.array([1, 1, 2, 2], np.float32)}, opset=10)
simple("resize of some axes", "b = Resize<axes=[2,3]>(a, , , z)", {"z": ints(9, 9)}, opset=18)
simple("batch norm of old", "b = BatchNormalization<epsilon=0.001>(a, s, t, m, v)", {"s": (6,), "t": (6,), "m": (6,), "v": np.linspace(0.5, 1.5, 6, dtype=np.float32)}, opset=9)  # fmt: skip
simple("dropout of old", "b = Dropout<ratio=0.5>(a)", opset=11)
simple("cumulated over space, reversed", "b = CumSum<reverse=1>(a, o)", {"o": np.int64(3)})
CASES["quantized along another axis"] = lambda: between(
    "q = QuantizeLinear<axis=1>(a, s, z) b = DequantizeLinear<axis=1>(q, s, z)",
    {"s": np.linspace(0.01, 0.02, 6, dtype=np.float32), "z": np.arange(120, 126).astype(np.uint8)},
)  # fmt: skip
