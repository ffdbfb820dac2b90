"""Mixtures of experts, and attention whose kernels take features in blocks: one tiny graph each."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

import numpy as np
import onnx
from cutting import tiny
from operator_cases import CASES, MS, _qkv, case, ints

EXPERTS = 6
_RNG = np.random.default_rng(0)
STACKED: dict[str, object] = {
    "w1": (4, 6), "b1": (6,), "wr": (6, EXPERTS), "w2": (6, 3), "k": ints(2), "zero": np.float32(0), "first": ints(0), "two": ints(2), "last": ints(-1),
    "e1": _RNG.normal(size=(EXPERTS, 6, 8)).astype(np.float32) / 3, "e2": _RNG.normal(size=(EXPERTS, 8, 6)).astype(np.float32) / 3,
    "f1": _RNG.normal(size=(EXPERTS, 1, 6, 8)).astype(np.float32) / 3, "f2": _RNG.normal(size=(EXPERTS, 1, 8, 6)).astype(np.float32) / 3,
    "depth": ints(EXPERTS), "onoff": np.array([0, 1], np.float32),
}  # fmt: skip
ROUTED = "m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr) v, i = TopK(r, k) p = Softmax(v)"
GATED = """gt = Transpose<perm=[2,0,1]>(g) gu = Unsqueeze(gt, last) u = Unsqueeze(a, first) h = MatMul(u, f1) c = Relu(h)
    d = MatMul(c, f2) q = Mul(d, gu) s = ReduceSum<keepdims=0>(q, first) y = MatMul(s, w2)"""


def stacked(nodes: str) -> onnx.ModelProto:
    return tiny(nodes, x=["N", 5, 4], weights=STACKED)  # type: ignore[arg-type]


CASES["experts gathered by a router"] = lambda: stacked(
    f"""{ROUTED} g1 = Gather<axis=0>(e1, i) g2 = Gather<axis=0>(e2, i) u0 = Unsqueeze(a, two) u = Unsqueeze(u0, two)
    h = MatMul(u, g1) c = Relu(h) d = MatMul(c, g2) q0 = Unsqueeze(p, last) q1 = Unsqueeze(q0, last) q = Mul(d, q1)
    s = ReduceSum<keepdims=0>(q, two) t = Squeeze(s, two) y = MatMul(t, w2)"""
)
CASES["gates scattered by a router"] = lambda: stacked(
    f"{ROUTED} sh = Shape(r) z = Expand(zero, sh) g = ScatterElements<axis=-1>(z, i, p) {GATED}"
)
CASES["gates scattered into zeros of a shape"] = lambda: stacked(
    f"{ROUTED} sh = Shape(r) z = ConstantOfShape(sh) g = ScatterElements<axis=-1>(z, i, p) {GATED}"
)
CASES["gates from one-hot positions"] = lambda: stacked(
    f"{ROUTED} o = OneHot<axis=-1>(i, depth, onoff) pu = Unsqueeze(p, last) op = Mul(o, pu) g = ReduceSum<keepdims=0>(op, two) {GATED}"
)
CASES["gates gathered after a softmax over all experts"] = lambda: stacked(
    f"""m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr) sm = Softmax(r) v, i = TopK(sm, k) p = GatherElements<axis=-1>(sm, i)
    sh = Shape(r) z = Expand(zero, sh) g = ScatterElements<axis=-1>(z, i, p) {GATED}"""
)


@case("fused mixture of quantized experts")
def _quantized_experts() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = {
        "w1": (4, 32), "b1": (32,), "wr": (32, 4), "w2": (32, 3),
        "e1": rng.integers(0, 255, (4, 64, 16)).astype(np.uint8), "s1": rng.uniform(0.01, 0.02, (4, 64)).astype(np.float32),
        "e2": rng.integers(0, 255, (4, 32, 32)).astype(np.uint8), "s2": rng.uniform(0.01, 0.02, (4, 32)).astype(np.float32),
    }  # fmt: skip
    nodes = """m = MatMul(x, w1) a = Add(m, b1) r = MatMul(a, wr)
        h = com.microsoft.QMoE<k=1, expert_weight_bits=4, activation_type="gelu">(a, r, e1, s1, , e2, s2) y = MatMul(h, w2)"""
    return tiny(nodes, x=["N", 4], weights=weights, domains=MS)  # type: ignore[arg-type]


# -- grouped-query attention of onnxruntime: heads of a multiple of 8 features, under rotary embedding of 16 -----------
def _gqa(
    size: int, rotary: int = 0, interleaved: int = 0, packed: bool = False, sink: bool = False
) -> onnx.ModelProto:
    extra: dict[str, object] = {"lengths": np.full(2, 4, np.int32), "total": np.array(5, np.int32)}
    attributes, caches = "num_heads=4, kv_num_heads=2", ", , "
    if rotary:
        angles = np.outer(np.arange(8), 0.7 ** np.arange(rotary // 2))
        extra |= {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)}
        attributes, caches = attributes + f", do_rotary=1, rotary_interleaved={interleaved}", ", c, s"
    if sink:
        extra["sink"] = (4,)
        caches += ", , , sink"
    inputs, before = ("q, k, v", "") if not packed else ("qkv, , ", "qkv = Concat<axis=-1>(q, k, v) ")
    call = f"{before}o, pk, pv = com.microsoft.GroupQueryAttention<{attributes}>({inputs}, , , lengths, total{caches})"
    return _qkv(call, (4 * size, 2 * size, 2 * size), 4 * size, extra, domains=MS)


CASES["grouped-query attention, features in blocks"] = lambda: _gqa(32)
CASES["grouped-query attention, rotary"] = lambda: _gqa(64, 64)
CASES["grouped-query attention, rotary neighbours"] = lambda: _gqa(48, 48, 1)
CASES["grouped-query attention, partly rotary"] = lambda: _gqa(64, 32)
CASES["grouped-query attention, packed and rotary"] = lambda: _gqa(32, 32, packed=True)
CASES["grouped-query attention with sinks"] = lambda: _gqa(16, sink=True)
