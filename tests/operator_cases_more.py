"""The rest of the operators that have rules: one tiny graph each."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

import numpy as np
import onnx
from cutting import tiny
from operator_cases import CASES, IMAGE, MS, SCALES, case, ints, quantized, simple, simple_tokens

# -- elementwise ----------------------------------------------------------------------------------------
for _op in ("Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Floor", "Neg", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Tan", "ThresholdedRelu", "Identity", "Dropout"):  # fmt: skip
    simple(_op.lower(), f"e = Mul(a, ten) b = {_op}(e)", {"ten": np.float32(1.3)})
for _op in ("Acos", "Asin", "Atanh"):
    simple(_op.lower(), f"e = Tanh(a) f = Mul(e, h) b = {_op}(f)", {"h": np.float32(0.9)})
for _op in ("Acosh", "Log", "Reciprocal", "Sqrt"):
    simple(_op.lower(), f"e = Abs(a) f = Add(e, h) b = {_op}(f)", {"h": np.float32(1.1)})
for _op in ("Less", "LessOrEqual", "GreaterOrEqual", "Equal"):
    simple(_op.lower(), f"z = {_op}(a, k) b = Where(z, a, k)", {"k": (6, 1, 1)})
for _op in ("Min", "Mean", "Sum"):
    simple(f"{_op.lower()} of branches", f"c = Conv(a, wd) b = {_op}(a, c, k)", {"wd": (6, 6, 1, 1), "k": (6, 1, 1)})  # fmt: skip
for _op in ("And", "Or", "Xor"):
    simple(_op.lower(), f"z = Greater(a, k) l = Less(a, zero) m = Not(l) n = {_op}(z, m) b = Where(n, a, k)", {"k": (6, 1, 1), "zero": np.float32(0.1)})  # fmt: skip
simple("mod", "b = Mod<fmod=1>(a, k)", {"k": np.float32(0.3)})
simple("pow", "e = Abs(a) b = Pow(e, k)", {"k": np.linspace(1, 2, 6, dtype=np.float32).reshape(6, 1, 1)})
simple("not a number", "n = IsNaN(a) i = IsInf(a) o = Or(n, i) b = Where(o, k, a)", {"k": (6, 1, 1)})
simple("cast like", "b = CastLike(a, k)", {"k": np.float32(0)}, opset=18)
for _op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    simple(_op.lower(), f"e = Mul(a, ten) i = Cast<to=6>(e) j = {_op}(i, k) l = BitwiseNot(j) b = Cast<to=1>(l)", {"ten": np.float32(9), "k": np.arange(6, dtype=np.int32).reshape(6, 1, 1)}, opset=18)  # fmt: skip
simple("bit shift", 'r = Relu(a) e = Mul(r, ten) i = Cast<to=12>(e) j = BitShift<direction="LEFT">(i, k) b = Cast<to=1>(j)', {"ten": np.float32(9), "k": np.uint32(1)})  # fmt: skip
simple_tokens("gelu of onnxruntime", "b = com.microsoft.Gelu(a)", domains=MS)

# -- reductions -----------------------------------------------------------------------------------------
for _op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceMax"):  # fmt: skip
    simple(f"{_op.lower()} over space", f"e = Abs(a) f = Add(e, h) b = {_op}<axes=[2,3]>(f)", {"h": np.float32(0.5)})  # fmt: skip
for _op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean"):
    simple(f"{_op.lower()} over channels", f"m = {_op}<axes=[1]>(a) b = Mul(a, m)")
simple("global lp pool", "b = GlobalLpPool(a)")
simple("hardmax over space", "b = Hardmax<axis=3>(a)")
simple("argmax over space", "i = ArgMax<axis=2>(a) j = ArgMin<axis=3, keepdims=1>(a) f = Cast<to=1>(i) g = Cast<to=1>(j) h = Add(f, a) b = Add(h, g)")  # fmt: skip
simple("topk over space", "v, i = TopK<axis=2>(a, k) f = Cast<to=1>(i) b = Add(v, f)", {"k": ints(2)})
simple("group norm 18", "b = GroupNormalization<num_groups=3>(a, s, t)", {"s": (3,), "t": (3,)}, opset=18)
simple("group norm of more channels a group", "c = Conv(a, wd) b = GroupNormalization<num_groups=2>(c, s, t)", {"wd": (8, 6, 1, 1), "s": (8,), "t": (8,)}, channels=8, opset=21)  # fmt: skip
simple_tokens("gated rms norm", "g = Relu(a) b = com.microsoft.GatedRMSNorm(a, s, g)", {"s": (6,)}, domains=MS)  # fmt: skip

# -- weights made of weights -------------------------------------------------------------------------------
_K = {"wd": (6, 6, 3, 3)}
simple("standardized weights", "m = ReduceMean<axes=[1,2,3]>(wd) z = Sub(wd, m) q = ReduceL2<axes=[1,2,3]>(z) n = Div(z, q) b = Conv<pads=[1,1,1,1]>(a, n)", _K)  # fmt: skip
simple("standardized by a norm in training mode", "r = Reshape(wd, rows) n, u, v = BatchNormalization<training_mode=1>(r, s, t, e, o) w = Reshape(n, back) b = Conv<pads=[1,1,1,1]>(a, w)", {**_K, "rows": ints(1, 6, -1), "back": ints(6, 6, 3, 3), "s": (6,), "t": (6,), "e": np.zeros(6, np.float32), "o": np.ones(6, np.float32)})  # fmt: skip
simple_tokens("weight norm", "q = ReduceL2<axes=[0]>(wd) d = Div(wd, q) n = Mul(d, g) b = MatMul(a, n)", {"wd": (6, 6), "g": (6,)})  # fmt: skip
simple_tokens("divided by a constant through a view", "u = Unsqueeze(k, zero) c = Div(a, u) b = Sin(c)", {"k": np.linspace(1, 2, 6, dtype=np.float32), "zero": ints(0)})  # fmt: skip

simple("one unit of which only the sizes are read", "g = Gather<axis=1>(a, last) s = Shape(g) n = Gather(s, two) f = Cast<to=1>(n) b = Mul(a, f)", {"last": np.int64(-1), "two": np.int64(2)})  # fmt: skip

# -- movement -------------------------------------------------------------------------------------------
simple("grid sample", "b = GridSample(a, grid)", {"grid": np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32)})  # fmt: skip
simple("regions aligned", "b = RoiAlign<output_height=2, output_width=2>(a, boxes, batch)", {"boxes": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32), "batch": ints(0, 1)})  # fmt: skip
simple("regions pooled", "b = MaxRoiPool<pooled_shape=[2,2]>(a, rois)", {"rois": np.array([[0, 0, 0, 4, 4], [1, 1, 1, 5, 5]], np.float32)})  # fmt: skip
simple("scatter elements", "b = ScatterElements<axis=2>(a, z, u)", {"z": np.ones((2, 6, 1, 6), np.int64), "u": np.random.default_rng(0).normal(size=(2, 6, 1, 6)).astype(np.float32)})  # fmt: skip
simple_tokens("gather nd", "t = Transpose<perm=[1,0,2]>(a) g = GatherND(t, z) b = Transpose<perm=[1,0,2]>(g)", {"z": np.array([[0], [3], [1]])})  # fmt: skip
simple_tokens("scatter nd", "t = Transpose<perm=[1,0,2]>(a) s = Gather<axis=0>(t, p) r = Relu(s) g = ScatterND(t, z, r) b = Transpose<perm=[1,0,2]>(g)", {"z": np.array([[0], [3]]), "p": ints(1, 2)})  # fmt: skip
simple_tokens("compress", "c = Compress<axis=1>(a, keep) b = Relu(c)", {"keep": np.array([True, False, True, True, False])})  # fmt: skip
simple_tokens("triangle", "s = MatMul(a, wt) q = Transpose<perm=[0,2,1]>(s) p = MatMul(a, q) t = Trilu<upper=0>(p) b = MatMul(t, a)", {"wt": (6, 6)})  # fmt: skip
simple("zeros of a shape", "s = Shape(a) z = ConstantOfShape(s) b = Add(a, z)")
simple("a number for every element", "s = Shape(a) z = Expand(h, s) b = Mul(a, z)", {"h": np.float32(0.7)})  # fmt: skip
simple("a number for every channel", "z = ConstantOfShape<value = float[1] {0.5}>(six) b = Add(a, z)", {"six": ints(6, 1, 1)})  # fmt: skip
simple("size of the data", "n = Size(x) m = Cast<to=1>(n) d = Mul(a, m) b = Div(d, h)", {"h": np.float32(99)})  # fmt: skip
simple("heads in the batch, counted by a scalar", "s = Shape(a) n = Gather<axis=0>(s, first) m = Mul(n, heads) u = Unsqueeze(m, zero) t = Concat<axis=0>(u, two, rest) r = Reshape(a, t) q = Softmax<axis=-1>(r) b = Reshape(q, back)", {"first": np.int64(0), "heads": np.int64(3), "zero": ints(0), "two": ints(2), "rest": ints(-1), "back": ints(-1, 6, 6, 6)})  # fmt: skip
simple("range of positions", "s = Shape(a) w = Gather<axis=0>(s, three) r = Range(zero, w, one) f = Cast<to=1>(r) b = Add(a, f)", {"three": np.int64(3), "zero": np.int64(0), "one": np.int64(1)})  # fmt: skip

# -- fused ----------------------------------------------------------------------------------------------
CASES["fused gemm"] = lambda: tiny(
    'a = com.microsoft.FusedGemm<transB=1, activation="Relu">(x, w1, b1) y = Gemm(a, w2)',
    x=["N", 4], weights={"w1": (6, 4), "b1": (6,), "w2": (6, 3)}, domains=MS,
)  # fmt: skip
simple_tokens("transposed matmul of onnxruntime", "p = com.microsoft.TransposeMatMul<transB=1>(a, wt) b = Relu(p)", {"wt": (7, 6)}, features=7, domains=MS)  # fmt: skip
simple_tokens("triangle of onnxruntime", "q = Transpose<perm=[0,2,1]>(a) p = MatMul(a, q) t = com.microsoft.Trilu<upper=1>(p) b = MatMul(t, a)", domains=MS)  # fmt: skip


# -- quantized ------------------------------------------------------------------------------------------
def _q_between(operator: str, channels: int = 6, **extra: object) -> onnx.ModelProto:
    """QLinearConv, the operator on ``a`` -> ``b``, QLinearConv."""
    rng = np.random.default_rng(5)
    weights = {
        "q1": quantized(rng, 6, 3, 1, 1),
        "q2": quantized(rng, 4, channels, 1, 1),
        "wz": np.int8(2),
        **SCALES,
        **extra,
    }
    nodes = f"""q = QuantizeLinear(x, xs, xz) a = QLinearConv(q, xs, xz, q1, ws, wz, xs, xz) {operator}
        c = QLinearConv(b, xs, xz, q2, ws, wz, xs, xz) y = DequantizeLinear(c, xs, xz)"""
    return tiny(nodes, x=IMAGE, weights=weights, domains=MS)  # type: ignore[arg-type]


CASES["qlinear leaky relu and sigmoid"] = lambda: _q_between("d = com.microsoft.QLinearLeakyRelu<alpha=0.1>(a, xs, xz, xs, xz) b = com.microsoft.QLinearSigmoid(d, xs, xz, xs, xz)")  # fmt: skip
CASES["qlinear average pool"] = lambda: _q_between("b = com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(a, xs, xz, xs, xz)")  # fmt: skip
CASES["qlinear global average pool"] = lambda: _q_between("b = com.microsoft.QLinearGlobalAveragePool(a, xs, xz, xs, xz)")  # fmt: skip
CASES["qlinear mul and where"] = lambda: _q_between(
    "d = com.microsoft.QLinearMul(a, xs, xz, a, xs, xz, xs, xz) f = DequantizeLinear(a, xs, xz) g = Greater(f, zero) b = com.microsoft.QLinearWhere(g, a, xs, xz, d, xs, xz, xs, xz)",
    zero=np.float32(0.1),
)  # fmt: skip
CASES["qlinear conv with channels last"] = lambda: _q_between(
    "t = Transpose<perm=[0,2,3,1]>(a) u = com.microsoft.QLinearConv<channels_last=1>(t, xs, xz, qd, ws, wz, xs, xz) n = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(u) b = Transpose<perm=[0,3,1,2]>(n)",
    channels=5, qd=quantized(np.random.default_rng(6), 5, 6, 1, 1),
)  # fmt: skip


@case("qgemm")
def _qgemm() -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    weights = {
        "q1": quantized(rng, 4, 6, dtype=np.uint8),
        "q2": quantized(rng, 3, 6, dtype=np.uint8),
        "wz": np.uint8(100),
        "b1": quantized(rng, 6, dtype=np.int32) // 2**21,
        **SCALES,
    }
    nodes = """q = QuantizeLinear(x, xs, xz) a = com.microsoft.QGemm(q, xs, xz, q1, ws, wz, b1, xs, xz)
        c = com.microsoft.QGemm<transB=1>(a, xs, xz, q2, ws, wz, , xs, xz) y = DequantizeLinear(c, xs, xz)"""
    return tiny(nodes, x=["N", 4], weights=weights, domains=MS)  # type: ignore[arg-type]


@case("dynamically quantized matmul")
def _dynamic() -> onnx.ModelProto:
    rng = np.random.default_rng(8)
    weights = {
        "q1": quantized(rng, 6, 7),
        "s1": rng.uniform(0.01, 0.02, 7).astype(np.float32),
        "z1": np.zeros(7, np.int8),
        "k1": (7,),
        "w1": (4, 6),
        "w2": (7, 3),
    }
    nodes = """m = MatMul(x, w1) a = Relu(m) b = com.microsoft.DynamicQuantizeMatMul(a, q1, s1, z1, k1) c = Relu(b) y = MatMul(c, w2)"""
    return tiny(nodes, x=["N", 5, 4], weights=weights, domains=MS)  # type: ignore[arg-type]


@case("integer matmul to float")
def _to_float() -> onnx.ModelProto:
    rng = np.random.default_rng(9)
    weights = {
        "q1": quantized(rng, 6, 7),
        "s1": np.float32(0.01),
        "z1": np.int8(3),
        "k1": (7,),
        "w1": (4, 6),
        "w2": (7, 3),
    }
    nodes = """m = MatMul(x, w1) a = Relu(m) q, s, z = DynamicQuantizeLinear(a)
        b = com.microsoft.MatMulIntegerToFloat(q, q1, s, s1, z, z1, k1) c = Relu(b) y = MatMul(c, w2)"""
    return tiny(nodes, x=["N", 5, 4], weights=weights, domains=MS)  # type: ignore[arg-type]


@case("matmul of packed bits")
def _bits() -> onnx.ModelProto:
    rng = np.random.default_rng(10)
    weights = {
        "w1": (4, 32),
        "q1": quantized(rng, 7, 1, 16, dtype=np.uint8),
        "s1": rng.uniform(0.01, 0.02, 7).astype(np.float32),
        "w2": (7, 3),
    }
    nodes = """m = MatMul(x, w1) a = Relu(m) b = com.microsoft.MatMulNBits<K=32, N=7, bits=4, block_size=32>(a, q1, s1)
        c = Relu(b) y = MatMul(c, w2)"""
    return tiny(nodes, x=["N", 5, 4], weights=weights, domains=MS)  # type: ignore[arg-type]


@case("weights quantized by onnxruntime's operators")
def _ms_quantize() -> onnx.ModelProto:
    rng = np.random.default_rng(11)
    weights = {
        "q1": quantized(rng, 6, 3, 1, 1),
        "s1": np.float32(0.01),
        "z1": np.int8(3),
        "w2": (4, 6, 1, 1),
        "s2": np.float32(0.02),
        "z2": np.uint8(9),
    }
    nodes = """w1 = com.microsoft.DequantizeLinear(q1, s1, z1) a = Conv(x, w1) r = Relu(a)
        q = com.microsoft.QuantizeLinear(r, s2, z2) d = com.microsoft.DequantizeLinear(q, s2, z2) y = Conv(d, w2)"""
    return tiny(nodes, x=IMAGE, weights=weights, domains=MS)  # type: ignore[arg-type]


@case("quantized attention that projects by itself")
def _q_attention() -> onnx.ModelProto:
    rng = np.random.default_rng(12)
    weights = {
        "w1": (4, 6), "b1": (6,), "w2": (12, 3), "qp": quantized(rng, 6, 36), "bp": (36,), "sx": np.float32(0.02), "zx": np.uint8(128),
        "sp": rng.uniform(0.01, 0.02, 36).astype(np.float32), "zp": np.zeros(36, np.int8),
    }  # fmt: skip
    nodes = """m = MatMul(x, w1) a = Add(m, b1) q = QuantizeLinear(a, sx, zx)
        o = com.microsoft.QAttention<num_heads=3>(q, qp, bp, sx, sp, , zx, zp) y = MatMul(o, w2)"""
    return tiny(nodes, x=["N", 5, 4], weights=weights, domains=MS)  # type: ignore[arg-type]


def _q_lstm(directions: int, per_column: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(13)
    shape = (directions, 24) if per_column else (directions,)
    weights = {
        "w1": (4, 5), "w": quantized(rng, directions, 5, 24), "r": quantized(rng, directions, 6, 24),
        "b": rng.normal(size=(directions, 48)).astype(np.float32), "w2": (6 * directions, 3), "z": ints(0, 0, -1),
        "s": rng.uniform(0.004, 0.006, shape).astype(np.float32), "t": np.zeros(shape, np.int8),
    }  # fmt: skip
    way = "bidirectional" if directions == 2 else "forward"
    nodes = f"""m = MatMul(x, w1) a = Relu(m) o, h, c = com.microsoft.DynamicQuantizeLSTM<hidden_size=6, direction="{way}">(a, w, r, b, , , , , s, t, s, t)
        u = Transpose<perm=[0,2,1,3]>(o) f = Reshape(u, z) y = MatMul(f, w2)"""
    return tiny(nodes, x=[5, "N", 4], weights=weights, domains=MS)  # type: ignore[arg-type]


CASES["quantized lstm"] = lambda: _q_lstm(1, False)
CASES["quantized lstm, a scale a column"] = lambda: _q_lstm(1, True)
CASES["quantized lstm bidirectional"] = lambda: _q_lstm(2, False)


# -- a first state of a size that is computed, as PyTorch exports recurrent layers ------------------------
def _first_state(zeros: str) -> onnx.ModelProto:
    weights: dict[str, object] = {
        "w1": (4, 5), "w": (1, 24, 5), "r": (1, 24, 6), "b": np.random.default_rng(0).normal(size=(1, 48)).astype(np.float32), "w2": (6, 3),
        "one": ints(1), "two": ints(2), "rows": ints(1), "six": ints(6), "axis": ints(1), "zero": np.float32(0.1),
    }  # fmt: skip
    nodes = f"""m = MatMul(x, w1) s = Shape(m) n = Slice(s, one, two) t = Concat<axis=0>(rows, n, six) {zeros}
        o, h, c = LSTM<hidden_size=6>(m, w, r, b, , z, z) f = Squeeze(o, axis) y = MatMul(f, w2)"""
    return tiny(nodes, x=[5, "N", 4], weights=weights)  # type: ignore[arg-type]


CASES["lstm with a first state of zeros"] = lambda: _first_state("z = ConstantOfShape(t)")
CASES["lstm with a first state of a number"] = lambda: _first_state("z = Expand(zero, t)")
