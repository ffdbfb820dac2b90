"""One tiny graph an operator family: each has something to cut on both sides of the operator."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from cutting import tiny
from onnx import TensorProto

IMAGE = ["N", 3, 6, 6]
MS = ("com.microsoft",)


def between(
    operator: str, weights: dict[str, object] | None = None, channels: int = 6, **options: object
) -> onnx.ModelProto:
    """Conv, the operator on ``a`` -> ``b``, Conv."""
    nodes = f"a = Conv<pads=[1,1,1,1]>(x, w1, b1) {operator} y = Conv(b, w2)"
    every = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, channels, 1, 1), **(weights or {})}
    return tiny(nodes, x=IMAGE, weights=every, **options)  # type: ignore[arg-type]


def tokens(
    operator: str, weights: dict[str, object] | None = None, features: int = 6, **options: object
) -> onnx.ModelProto:
    """Linear to ``a`` [N, 5, 6], the operator to ``b``, Linear."""
    nodes = f"m = MatMul(x, w1) a = Add(m, b1) {operator} y = MatMul(b, w2)"
    every = {"w1": (4, 6), "b1": (6,), "w2": (features, 3), **(weights or {})}
    return tiny(nodes, x=["N", 5, 4], weights=every, **options)  # type: ignore[arg-type]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def quantized(rng: np.random.Generator, *shape: int, dtype: type = np.int8) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min // 2, info.max // 2, shape).astype(dtype)


CASES: dict[str, Callable[[], onnx.ModelProto]] = {}


def case(name: str) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    def register(function: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        assert name not in CASES
        CASES[name] = function
        return function

    return register


def simple(name: str, operator: str, weights: dict[str, object] | None = None, **options: object) -> None:
    CASES[name] = lambda: between(operator, weights, **options)  # type: ignore[arg-type]


def simple_tokens(
    name: str, operator: str, weights: dict[str, object] | None = None, **options: object
) -> None:
    CASES[name] = lambda: tokens(operator, weights, **options)  # type: ignore[arg-type]


# -- convolutions ---------------------------------------------------------------------------------------
simple("conv", "b = Relu(a)")
simple("conv dilated", "c = Conv<dilations=[2,2], pads=[2,2,2,2]>(a, wd) b = Relu(c)", {"wd": (6, 6, 3, 3)})
simple("conv depthwise", "b = Conv<group=6, pads=[1,1,1,1]>(a, wd)", {"wd": (6, 1, 3, 3)})
simple("conv depthwise x2", "b = Conv<group=6>(a, wd)", {"wd": (12, 1, 1, 1)}, channels=12)
simple("conv grouped", "b = Conv<group=2>(a, wd, bd)", {"wd": (8, 3, 1, 1), "bd": (8,)}, channels=8)
simple(
    "conv transposed",
    "b = ConvTranspose<strides=[2,2]>(a, wd, bd)",
    {"wd": (6, 5, 2, 2), "bd": (5,)},
    channels=5,
)
simple("conv transposed grouped", "b = ConvTranspose<group=2>(a, wd)", {"wd": (6, 2, 2, 2)}, channels=4)
simple(
    "fused conv",
    'b = com.microsoft.FusedConv<activation="Relu">(a, wd, bd)',
    {"wd": (5, 6, 1, 1), "bd": (5,)},
    channels=5,
    domains=MS,
)
simple(
    "deform conv",
    "o = Conv(a, wo) b = DeformConv(a, wd, o)",
    {"wo": (2, 6, 1, 1), "wd": (5, 6, 1, 1)},
    channels=5,
    opset=19,
)
CASES["conv 1d"] = lambda: tiny(
    "a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)", x=["N", 3, 9], weights={"w1": (6, 3, 3), "w2": (4, 6, 2)}
)
CASES["conv 3d"] = lambda: tiny(
    "a = Conv(x, w1) b = Relu(a) y = Conv(b, w2)",
    x=["N", 2, 4, 4, 4],
    weights={"w1": (6, 2, 2, 2, 2), "w2": (4, 6, 1, 1, 1)},
)

# -- products ---------------------------------------------------------------------------------------------
CASES["gemm"] = lambda: tiny(
    "a = Gemm(x, w1, b1) b = Relu(a) y = Gemm<transB=1>(b, w2, b2)",
    x=["N", 4],
    weights={"w1": (4, 6), "b1": (6,), "w2": (3, 6), "b2": (3,)},
)
simple_tokens(
    "matmul weight on the left",
    "t = Transpose<perm=[0,2,1]>(a) l = MatMul(wl, t) b = Transpose<perm=[0,2,1]>(l)",
    {"wl": (7, 6)},
    features=7,
)
simple_tokens(
    "matmul batched",
    "s = Softmax(a) t = Transpose<perm=[0,2,1]>(a) p = MatMul(s, t) q = MatMul(p, a) b = Relu(q)",
)
simple_tokens(
    "fused matmul",
    "p = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(a, wt) b = Relu(p)",
    {"wt": (7, 6)},
    features=7,
    domains=MS,
)
simple_tokens("einsum linear", 'b = Einsum<equation="bsi,oi->bso">(a, we)', {"we": (7, 6)}, features=7)
simple_tokens("einsum ellipsis", 'b = Einsum<equation="...i,io->...o">(a, we)', {"we": (6, 7)}, features=7)
simple_tokens(
    "einsum of activations",
    'p = Einsum<equation="bsi,bti->bst">(a, a) b = Einsum<equation="bst,bti->bsi">(p, a)',
)
simple_tokens(
    "contraction of sigmoids",
    "s = Sigmoid(a) t = Transpose<perm=[0,2,1]>(s) p = MatMul(s, t) b = MatMul(p, a)",
)
simple_tokens(
    "weight behind transpose and identity",
    "i = Identity(wt) t = Transpose(i) p = MatMul(a, t) b = Relu(p)",
    {"wt": (7, 6)},
    features=7,
)

simple_tokens(
    "weight behind cast",
    "i = Cast<to=1>(wt) p = MatMul(a, i) b = Relu(p)",
    {"wt": np.random.default_rng(9).normal(size=(6, 7)).astype(np.float16)},
    features=7,
)
simple_tokens(
    "weight behind reshape",
    "i = Reshape(wt, z) p = MatMul(a, i) b = Relu(p)",
    {"wt": (6, 7, 1), "z": ints(6, 7)},
    features=7,
)
simple_tokens(
    "weights sliced from one",
    "i = Slice(wt, z, n, o) j = Slice(wt, n, e, o) p = MatMul(a, i) q = MatMul(a, j) r = Sigmoid(p) b = Mul(q, r)",
    {"wt": (6, 14), "z": ints(0), "n": ints(7), "e": ints(14), "o": ints(1)},
    features=7,
)
simple_tokens(
    "weights joined from two",
    "i = Concat<axis=1>(wt, wu) p = MatMul(a, i) b = Relu(p)",
    {"wt": (6, 4), "wu": (6, 3)},
    features=7,
)
simple(
    "weight standardized",
    "m = ReduceMean<axes=[1,2,3]>(wd) d = Sub(wd, m) b = Conv(a, d)",
    {"wd": (5, 6, 3, 3)},
    channels=5,
)

# -- norms ----------------------------------------------------------------------------------------------
PAIR = {"s": (6,), "t": (6,)}
simple(
    "batch norm",
    "b = BatchNormalization(a, s, t, m, v)",
    {**PAIR, "m": (6,), "v": np.linspace(0.5, 1.5, 6, dtype=np.float32)},
)
simple("instance norm", "b = InstanceNormalization(a, s, t)", PAIR)
simple("group norm 21", "b = GroupNormalization<num_groups=3>(a, s, t)", PAIR, opset=21)
simple_tokens("layer norm", "b = LayerNormalization(a, s, t)", PAIR)
simple_tokens("rms norm", "b = RMSNormalization(a, s)", {"s": (6,)}, opset=23)
simple_tokens("simplified layer norm", "b = SimplifiedLayerNormalization(a, s)", {"s": (6,)})
simple_tokens("lp norm", "b = LpNormalization<axis=-1, p=2>(a)")
simple("mean variance norm", "b = MeanVarianceNormalization<axes=[1,2,3]>(a)")
simple_tokens(
    "decomposed norm",
    "u = ReduceMean<axes=[-1]>(a) c = Sub(a, u) q = Mul(c, c) v = ReduceMean<axes=[-1]>(q) r = Sqrt(v) d = Div(c, r) e = Mul(d, s) b = Add(e, t)",
    PAIR,
)
simple_tokens(
    "skip layer norm",
    "n, n1, n2, k = com.microsoft.SkipLayerNormalization(a, a2, s, t, bias) b = Add(n, k) a2 = Relu(a)".replace(
        "a2 = Relu(a)", ""
    ).replace("n, n1", "a2 = Relu(a) n, n1"),
    {**PAIR, "bias": (6,)},
    domains=MS,
)
simple_tokens(
    "skip simplified norm",
    "b = com.microsoft.SkipSimplifiedLayerNormalization(a, a, s)",
    {"s": (6,)},
    domains=MS,
)


@case("embed layer norm")
def _embed() -> onnx.ModelProto:
    weights = {"words": (9, 6), "places": (5, 6), "s": (6,), "t": (6,), "w2": (6, 3)}
    nodes = "b, m = com.microsoft.EmbedLayerNormalization(x, , words, places, , s, t) y = MatMul(b, w2)"
    return tiny(nodes, x=["N", 5], weights=weights, domains=MS, dtypes={"x": TensorProto.INT32})


# -- elementwise ------------------------------------------------------------------------------------------
for _op in ("Sigmoid", "HardSwish", "Softplus", "Tanh", "Erf", "LeakyRelu", "Elu", "Exp", "Abs", "Mish"):
    simple(_op.lower(), f"b = {_op}(a)", opset=18)
simple("gelu", "b = Gelu(a)", opset=20)
simple("clip", "b = Clip(a, lo, hi)", {"lo": np.float32(-0.1), "hi": np.float32(0.3)})
simple("prelu", "b = PRelu(a, p)", {"p": (6, 1, 1)})
simple("add and mul with vectors", "c = Mul(a, k) b = Add(c, d)", {"k": (1, 6, 1, 1), "d": (6, 1, 1)})
simple("where", "z = Greater(a, k) b = Where(z, a, k)", {"k": (6, 1, 1)})
simple("cast", "c = Cast<to=11>(a) d = Relu(c) b = Cast<to=1>(d)")
simple("residual", "c = Conv(a, wd) d = Add(a, c) b = Relu(d)", {"wd": (6, 6, 1, 1)})
simple("max of branches", "c = Conv(a, wd) b = Max(a, c)", {"wd": (6, 6, 1, 1)})
simple(
    "squeeze-excite",
    "g = GlobalAveragePool(a) h = Conv(g, wr, br) r = Relu(h) i = Conv(r, we) k = HardSigmoid(i) b = Mul(a, k)",
    {"wr": (4, 6, 1, 1), "br": (4,), "we": (6, 4, 1, 1)},
)
simple_tokens("bias gelu", "b = com.microsoft.BiasGelu(a, k)", {"k": (6,)}, domains=MS)
simple_tokens("fast gelu", "b = com.microsoft.FastGelu(a, k)", {"k": (6,)}, domains=MS)
simple_tokens("quick gelu", "b = com.microsoft.QuickGelu(a)", domains=MS)

# -- movement -----------------------------------------------------------------------------------------------
simple("concat", "c = Relu(a) d = Sigmoid(a) b = Concat<axis=1>(c, a, d)", channels=18)
simple("split", "p, q = Split<axis=1>(a, z) c = Sigmoid(q) b = Concat<axis=1>(c, p)", {"z": ints(2, 4)})
simple("split equal", "p, q = Split<axis=1>(a) c = Sigmoid(q) b = Mul(c, p)", channels=3)
simple(
    "split num_outputs",
    "p, q, r = Split<axis=1, num_outputs=3>(a) c = Mul(q, p) b = Add(c, r)",
    channels=2,
    opset=18,
)
simple(
    "slice",
    "p = Slice(a, z, e, o) q = Slice(a, e, n, o) b = Concat<axis=1>(q, p)",
    {"z": ints(0), "e": ints(2), "n": ints(99), "o": ints(1)},
)
simple("slice negative", "b = Slice(a, z, e, o)", {"z": ints(-5), "e": ints(-1), "o": ints(1)}, channels=4)
simple(
    "slice strided",
    "b = Slice(a, z, e, o, k)",
    {"z": ints(1), "e": ints(99), "o": ints(1), "k": ints(2)},
    channels=3,
)
simple("gather permutation", "b = Gather<axis=1>(a, z)", {"z": ints(3, 1, 0, 5, 4, 2)})
simple("gather part", "b = Gather<axis=1>(a, z)", {"z": ints(4, 5, 1)}, channels=3)
simple("gather negative", "b = Gather<axis=1>(a, z)", {"z": ints(-1, -2, 0, 0)}, channels=4)
simple("pad channels", "b = Pad(a, z)", {"z": ints(0, 1, 0, 0, 0, 2, 0, 0)}, channels=9)
simple(
    "pad with a number",
    "b = Pad(a, z, k)",
    {"z": ints(0, 2, 1, 1, 0, 0, 1, 1), "k": np.float32(0.7)},
    channels=8,
)
simple("pad space", 'b = Pad<mode="reflect">(a, z)', {"z": ints(0, 0, 1, 1, 0, 0, 1, 1)})
simple(
    "channel shuffle",
    "c = Reshape(a, r) d = Transpose<perm=[0,2,1,3,4]>(c) b = Reshape(d, q)",
    {"r": ints(0, 2, 3, 6, 6), "q": ints(0, 6, 6, 6)},
)
simple(
    "flatten",
    "c = Flatten(a) e = MatMul(c, wf) b = Reshape(e, r)",
    {"wf": (216, 12), "r": ints(0, 3, 2, 2)},
    channels=3,
)
simple(
    "squeeze",
    "g = GlobalAveragePool(a) q = Squeeze(g, o) r = MatMul(q, wq) b = Unsqueeze(r, o)",
    {"o": ints(2, 3), "wq": (6, 5)},
    channels=5,
)
simple(
    "depth to space", "c = Conv(a, wd) b = DepthToSpace<blocksize=2>(c)", {"wd": (12, 6, 1, 1)}, channels=3
)
simple(
    "depth to space crd",
    'c = Conv(a, wd) b = DepthToSpace<blocksize=2, mode="CRD">(c)',
    {"wd": (12, 6, 1, 1)},
    channels=3,
)
simple("space to depth", "b = SpaceToDepth<blocksize=2>(a)", channels=24)
simple("tile", "b = Tile(a, z)", {"z": ints(1, 3, 1, 1)}, channels=18)
simple("expand", "g = GlobalAveragePool(a) e = Expand(g, z) b = Mul(a, e)", {"z": ints(1, 6, 6, 6)})
simple("resize", "b = Resize(a, , k)", {"k": np.array([1, 1, 2, 2], np.float32)})
simple("resize to sizes", "b = Resize(a, , , z)", {"z": ints(2, 6, 9, 9)})
simple("upsample", "b = Upsample(a, k)", {"k": np.array([1, 1, 2, 2], np.float32)}, opset=9)

# -- reductions -----------------------------------------------------------------------------------------------
for _op in ("MaxPool", "AveragePool", "LpPool"):
    simple(_op.lower(), f"b = {_op}<kernel_shape=[2,2]>(a)")
simple("global max pool", "b = GlobalMaxPool(a)")
simple("reduce over space", "b = ReduceMean<axes=[2,3]>(a)")
simple("reduce over channels", "m = ReduceMax<axes=[1]>(a) b = Mul(a, m)")
simple("softmax over channels", "b = Softmax<axis=1>(a)")
simple("softmax old", "b = Softmax<axis=1>(a)", opset=11)
simple("log softmax", "b = LogSoftmax<axis=1>(a)")
simple(
    "spatial attention",
    "m = ReduceMean<axes=[1]>(a) n = ReduceMax<axes=[1]>(a) c = Concat<axis=1>(m, n) d = Conv<pads=[1,1,1,1]>(c, wd) g = Sigmoid(d) b = Mul(a, g)",
    {"wd": (1, 2, 3, 3)},
)
simple("cumsum over space", "b = CumSum(a, o)", {"o": np.int64(2)})
simple("gather elements", "b = GatherElements<axis=2>(a, z)", {"z": np.zeros((2, 6, 3, 6), np.int64)})


# -- recurrent ------------------------------------------------------------------------------------------------
def recurrent(
    kind: str, gates: int, directions: int = 1, peephole: bool = False, state: str = ""
) -> onnx.ModelProto:
    hidden, way = 6, "bidirectional" if directions == 2 else "forward"
    weights: dict[str, object] = {
        "w1": (4, 5), "b1": (5,), "w": (directions, gates * hidden, 5), "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden), "w2": (directions * hidden, 3), "z": ints(0, 0, -1),
    }  # fmt: skip
    extra = ", , , , p" if peephole else ""
    if peephole:
        weights["p"] = (directions, 3 * hidden)
    rng = np.random.default_rng(0)
    weights["b"] = rng.normal(size=(directions, 2 * gates * hidden)).astype(np.float32)
    if state:
        weights |= {"one": ints(1), "two": ints(2), "wide": ints(hidden), "ways": ints(directions)}
        extra = ", , s, s" if kind == "LSTM" else ", , s"
    nodes = f"""m = MatMul(x, w1) a = Add(m, b1) {state}
        o, h = {kind}<hidden_size={hidden}, direction="{way}">(a, w, r, b{extra})
        t = Transpose<perm=[0,2,1,3]>(o) f = Reshape(t, z) y = MatMul(f, w2)"""
    return tiny(nodes, x=[5, "N", 4], weights=weights)  # type: ignore[arg-type]


CASES["lstm"] = lambda: recurrent("LSTM", 4)
CASES["lstm bidirectional"] = lambda: recurrent("LSTM", 4, 2)
CASES["lstm with peepholes"] = lambda: recurrent("LSTM", 4, peephole=True)
CASES["gru"] = lambda: recurrent("GRU", 3)
CASES["gru bidirectional"] = lambda: recurrent("GRU", 3, 2)
CASES["rnn"] = lambda: recurrent("RNN", 1)
ZEROS = """sh = Shape(x) n = Slice(sh, one, two) t0 = Concat<axis=0>(ways, n, wide) z0 = ConstantOfShape(t0)
        s = Identity(z0)"""
CASES["lstm that starts from zeros in a shape"] = lambda: recurrent("LSTM", 4, 2, state=ZEROS)
CASES["gru that starts from zeros in a shape"] = lambda: recurrent("GRU", 3, state=ZEROS)


# -- attention --------------------------------------------------------------------------------------------------
def _qkv(
    call: str,
    widths: tuple[int, int, int],
    out: int,
    extra: dict[str, object] | None = None,
    **options: object,
) -> onnx.ModelProto:
    """Linear q, k, v [N, 5, width] with biases, attention to ``o``, Linear."""
    lines = [f"m{n} = MatMul(x, w{n}) {n} = Add(m{n}, b{n})" for n in "qkv"]
    weights: dict[str, object] = {"wo": (out, 3), **(extra or {})}
    for n, width in zip("qkv", widths, strict=True):
        weights |= {f"w{n}": (4, width), f"b{n}": (width,)}
    return tiny(f"{' '.join(lines)} {call} y = MatMul(o, wo)", x=["N", 5, 4], weights=weights, **options)  # type: ignore[arg-type]


CACHE = {
    "c": np.cos(np.outer(np.arange(8), [1, 0.3, 0.1])).astype(np.float32),
    "s": np.sin(np.outer(np.arange(8), [1, 0.3, 0.1])).astype(np.float32),
}
POSITIONS = {"p": np.tile(np.arange(5), (2, 1)).astype(np.int64)}

CASES["attention 3d"] = lambda: _qkv(
    "o = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)", (12, 12, 6), 6, opset=23
)
CASES["attention grouped"] = lambda: _qkv(
    "o = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)", (16, 8, 8), 16, opset=23
)
CASES["attention 4d"] = lambda: _qkv(
    " ".join(f"r{n} = Reshape({n}, z) t{n} = Transpose<perm=[0,2,1,3]>(r{n})" for n in "qkv")
    + " u = Attention(tq, tk, tv) w = Transpose<perm=[0,2,1,3]>(u) o = Reshape(w, f)",
    (12, 12, 12), 12, {"z": ints(0, 5, 3, 4), "f": ints(0, 5, 12)}, opset=23,
)  # fmt: skip
CASES["rotary embedding"] = lambda: _qkv(
    "rq = RotaryEmbedding<num_heads=2>(q, c, s, p) rk = RotaryEmbedding<num_heads=2>(k, c, s, p)"
    " o = Attention<q_num_heads=2, kv_num_heads=2>(rq, rk, v)", (12, 12, 12), 12, {**CACHE, **POSITIONS}, opset=23,
)  # fmt: skip
CASES["rotary embedding interleaved"] = lambda: _qkv(
    "rq = RotaryEmbedding<num_heads=2, interleaved=1>(q, c, s, p) rk = RotaryEmbedding<num_heads=2, interleaved=1>(k, c, s, p)"
    " o = Attention<q_num_heads=2, kv_num_heads=2>(rq, rk, v)", (12, 12, 12), 12, {**CACHE, **POSITIONS}, opset=23,
)  # fmt: skip
CASES["rotary embedding partial"] = lambda: _qkv(
    "rq = RotaryEmbedding<num_heads=2, rotary_embedding_dim=6>(q, c, s, p) rk = RotaryEmbedding<num_heads=2, rotary_embedding_dim=6>(k, c, s, p)"
    " o = Attention<q_num_heads=2, kv_num_heads=2>(rq, rk, v)", (20, 20, 20), 20, {**CACHE, **POSITIONS}, opset=23,
)  # fmt: skip
CASES["rotary embedding of onnxruntime"] = lambda: _qkv(
    "rq = com.microsoft.RotaryEmbedding(q, p, c, s) rk = com.microsoft.RotaryEmbedding(k, p, c, s)"
    " o = com.microsoft.MultiHeadAttention<num_heads=2>(rq, rk, v)", (12, 12, 12), 12, {**CACHE, **POSITIONS}, domains=MS,
)  # fmt: skip
CASES["multi-head attention"] = lambda: _qkv(
    "o = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, bias)",
    (12, 12, 12),
    12,
    {"bias": (36,)},
    domains=MS,
)
CASES["packed attention"] = lambda: tiny(
    "m = MatMul(x, w1) a = Add(m, b1) o = com.microsoft.Attention<num_heads=3>(a, wp, bp) y = MatMul(o, w2)",
    x=["N", 5, 4], weights={"w1": (4, 6), "b1": (6,), "wp": (6, 36), "bp": (36,), "w2": (12, 3)}, domains=MS,
)  # fmt: skip
CASES["grouped-query attention"] = lambda: _qkv(
    "o, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , lengths, total)",
    (32, 16, 16), 32, {"lengths": np.full(2, 4, np.int32), "total": np.array(5, np.int32)}, domains=MS,
)  # fmt: skip


@case("multi-head attention in pieces, with a computed scale")
def _pieces() -> onnx.ModelProto:
    heads = " ".join(f"r{n} = Reshape({n}, z) h{n} = Transpose<perm=[0,2,1,3]>(r{n})" for n in "qkv")
    call = f"""{heads} sh = Shape(hq) d = Slice(sh, three, four) df = Cast<to=1>(d) root = Sqrt(df)
        t = Transpose<perm=[0,1,3,2]>(hk) sc = MatMul(hq, t) sd = Div(sc, root) p = Softmax(sd)
        u = MatMul(p, hv) w = Transpose<perm=[0,2,1,3]>(u) o = Reshape(w, f)"""
    extra = {"z": ints(0, 0, 3, 4), "f": ints(0, 0, -1), "three": ints(3), "four": ints(4)}
    return _qkv(call, (12, 12, 12), 12, extra)  # type: ignore[arg-type]


# -- quantized ------------------------------------------------------------------------------------------------------
SCALES = {"xs": np.float32(0.02), "xz": np.uint8(120), "ws": np.float32(0.01)}


@case("weights behind DequantizeLinear")
def _dequantized() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "q1": quantized(rng, 6, 3, 3, 3, dtype=np.uint8), "s1": np.float32(0.01), "z1": np.uint8(60),
        "q2": quantized(rng, 4, 6, 1, 1), "s2": rng.uniform(0.01, 0.02, 4).astype(np.float32), "z2": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = """w1 = DequantizeLinear(q1, s1, z1) w2 = DequantizeLinear<axis=0>(q2, s2, z2)
        a = Conv(x, w1) b = Relu(a) c = QuantizeLinear(b, s1, z1) d = DequantizeLinear(c, s1, z1)
        y = Conv(d, w2)"""
    return tiny(nodes, x=IMAGE, weights=weights)  # type: ignore[arg-type]


@case("qlinear conv")
def _qlinear() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = {
        "q1": quantized(rng, 6, 3, 3, 3), "q2": quantized(rng, 4, 6, 1, 1), "wz": np.int8(3), "b1": quantized(rng, 6, dtype=np.int32) // 2**20,
        "w2s": rng.uniform(0.01, 0.02, 4).astype(np.float32), "w2z": np.zeros(4, np.int8), **SCALES,
    }  # fmt: skip
    nodes = """q = QuantizeLinear(x, xs, xz) a = QLinearConv(q, xs, xz, q1, ws, wz, xs, xz, b1)
        c = QLinearConv(a, xs, xz, q2, w2s, w2z, xs, xz) y = DequantizeLinear(c, xs, xz)"""
    return tiny(nodes, x=IMAGE, weights=weights)  # type: ignore[arg-type]


@case("qlinear matmul")
def _qlinear_matmul() -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    weights = {"q1": quantized(rng, 4, 6), "q2": quantized(rng, 6, 3), "wz": np.int8(-2), **SCALES}
    nodes = """q = QuantizeLinear(x, xs, xz) a = QLinearMatMul(q, xs, xz, q1, ws, wz, xs, xz)
        c = QLinearMatMul(a, xs, xz, q2, ws, wz, xs, xz) y = DequantizeLinear(c, xs, xz)"""
    return tiny(nodes, x=["N", 4], weights=weights)  # type: ignore[arg-type]


@case("integer matmul and convolution")
def _integer() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        "q1": quantized(rng, 6, 3, 1, 1),
        "q2": quantized(rng, 6, 4),
        "z": np.int8(1),
        "k": (6,),
        "r": ints(0, 6),
    }
    nodes = """q, s, z0 = DynamicQuantizeLinear(x) a = ConvInteger(q, q1, z0, z) f = Cast<to=1>(a)
        g = Mul(f, s)
        h = GlobalAveragePool(g) i = Reshape(h, r) j = Relu(i) l = Mul(j, k)
        q2_, s2, z2 = DynamicQuantizeLinear(l) m = MatMulInteger(q2_, q2, z2, z) n = Cast<to=1>(m)
        y = Mul(n, s2)"""
    return tiny(nodes, x=IMAGE, weights=weights)  # type: ignore[arg-type]


@case("qlinear add and concat")
def _qlinear_add() -> onnx.ModelProto:
    rng = np.random.default_rng(4)
    weights = {
        "q1": quantized(rng, 6, 3, 1, 1),
        "q3": quantized(rng, 6, 6, 1, 1),
        "q2": quantized(rng, 4, 12, 1, 1),
        "wz": np.int8(0),
        **SCALES,
    }
    nodes = """q = QuantizeLinear(x, xs, xz) a = QLinearConv(q, xs, xz, q1, ws, wz, xs, xz)
        b = QLinearConv(a, xs, xz, q3, ws, wz, xs, xz)
        c = com.microsoft.QLinearAdd(a, xs, xz, b, xs, xz, xs, xz)
        d = com.microsoft.QLinearConcat<axis=1>(xs, xz, c, xs, xz, b, xs, xz)
        e = QLinearConv(d, xs, xz, q2, ws, wz, xs, xz) y = DequantizeLinear(e, xs, xz)"""
    return tiny(nodes, x=IMAGE, weights=weights, domains=MS)  # type: ignore[arg-type]


# -- experts, embeddings ------------------------------------------------------------------------------------------------
@case("dense mixture of experts")
def _experts() -> onnx.ModelProto:
    nodes = """m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr) g = Softmax(r)
        gt = Transpose<perm=[2,0,1]>(g)
        gu = Unsqueeze(gt, last) u = Unsqueeze(a, zero) e = MatMul(u, we1) f = Relu(e)
        h = MatMul(f, we2) k = Mul(h, gu)
        s = ReduceSum<keepdims=0>(k, zero) y = MatMul(s, w2)"""
    weights = {
        "w1": (4, 6), "b1": (6,), "wr": (6, 4), "we1": np.random.default_rng(5).normal(size=(4, 1, 6, 8)).astype(np.float32) / 3,
        "we2": np.random.default_rng(6).normal(size=(4, 1, 8, 6)).astype(np.float32) / 3, "w2": (6, 3), "zero": ints(0), "last": ints(3),
    }  # fmt: skip
    return tiny(nodes, x=["N", 5, 4], weights=weights)  # type: ignore[arg-type]


@case("fused mixture of experts")
def _fused_experts() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    shapes = {"e1": (4, 8, 6), "f1": (4, 8), "e2": (4, 6, 8), "f2": (4, 6)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = """m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr)
        h = com.microsoft.MoE<k=2, activation_type="gelu">(a, r, e1, f1, e2, f2) y = MatMul(h, w2)"""
    return tiny(
        nodes,
        x=["N", 4],
        weights={**weights, "w1": (4, 6), "b1": (6,), "wr": (6, 4), "w2": (6, 3)},
        domains=MS,
    )


@case("routed mixture of experts")
def _routed_experts() -> onnx.ModelProto:
    """Each token goes to the expert its router likes best; results are added back where the tokens were."""
    lines = [
        "m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr) g = Softmax(r) v, i = TopK(g, one) s0 = Mul(a, zero)"
    ]
    weights: dict[str, object] = {
        "w1": (4, 6), "b1": (6,), "wr": (6, 2), "w2": (6, 3), "one": ints(1), "zero": np.float32(0), "last": ints(-1), "first": ints(0),
    }  # fmt: skip
    for e in range(2):
        lines.append(
            f"q{e} = Equal(i, n{e}) f{e} = Squeeze(q{e}, last) z{e} = NonZero(f{e}) p{e} = Squeeze(z{e}, first) t{e} = Gather(a, p{e})"
            f" u{e} = MatMul(t{e}, k{e}) c{e} = Relu(u{e}) d{e} = MatMul(c{e}, l{e}) x{e} = Gather(v, p{e}) h{e} = Mul(d{e}, x{e})"
            f' j{e} = Unsqueeze(p{e}, last) s{e + 1} = ScatterND<reduction="add">(s{e}, j{e}, h{e})'
        )
        weights |= {f"n{e}": np.int64(e), f"k{e}": (6, 8), f"l{e}": (8, 6)}
    return tiny(" ".join([*lines, "y = MatMul(s2, w2)"]), x=["N", 4], weights=weights, opset=18)  # type: ignore[arg-type]


@case("tied embedding")
def _tied() -> onnx.ModelProto:
    nodes = "e = Gather(emb, x) m = MatMul(e, w1) r = Relu(m) n = MatMul(r, w2) a = Add(e, n) t = Transpose(emb) y = MatMul(a, t)"
    weights = {"emb": (9, 6), "w1": (6, 8), "w2": (8, 6)}
    return tiny(nodes, x=["N", 5], weights=weights, dtypes={"x": TensorProto.INT64})
