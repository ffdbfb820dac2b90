"""What can't be cut is frozen, with a reason; and every rule has a test of its own."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import operator_cases_experts  # noqa: F401  (each adds cases)
import operator_cases_more  # noqa: F401
import operator_cases_versions  # noqa: F401
import pytest
from cutting import tiny, trial
from operator_cases import CASES, IMAGE, ints

from condensec.passes.normalize import normalize
from condensec.passes.rules import load_all

# operator on ``a`` -> ``b``, its weights, and the reason that its channels get
FROZEN = {
    "LRN": ("b = LRN<size=3>(a)", {}, "LRN scales each channel by its neighbours"),
    "ArgMax over channels": ("i = ArgMax<axis=1>(a) b = Cast<to=1>(i)", {}, "ArgMax runs along this axis"),
    "CumSum over channels": ("b = CumSum(a, one)", {"one": np.int64(1)}, "CumSum runs along this axis"),
    "Compress over channels": ("b = Compress<axis=1>(a, keep)", {"keep": np.array([True, False] * 3)}, "Compress takes pieces"),
    "Compress of everything": ("c = Compress(a, keep) b = Unsqueeze(c, one)", {"keep": np.array([True, False] * 3), "one": ints(1)}, "Compress indexes this axis"),
    "NonZero": ("n = NonZero(a) b = Cast<to=1>(n)", {}, "NonZero depends on every position"),
    "scattered channels": ("b = ScatterElements<axis=1>(a, z, u)", {"z": np.zeros((2, 1, 6, 6), np.int64), "u": np.ones((2, 1, 6, 6), np.float32)}, "ScatterElements indexes this axis"),
    "Scatter of old": ("b = Scatter<axis=1>(a, z, u)", {"z": np.zeros((2, 1, 6, 6), np.int64), "u": np.ones((2, 1, 6, 6), np.float32)}, "Scatter indexes this axis"),
    "OneHot": ("i = ArgMax<axis=2>(a) o = OneHot(i, depth, values) b = ReduceSum<keepdims=0>(o, last)", {"depth": ints(6), "values": np.array([0, 1], np.float32), "last": ints(-1)}, "OneHot indexes this axis"),
    "EyeLike": ("f = Flatten(a) e = EyeLike(f) b = Add(e, f)", {}, "EyeLike depends on every position"),
    "Trilu over channels": ("t = Transpose<perm=[0,2,1,3]>(a) b = Trilu(t)", {}, "under a triangular mask"),
    "NonMaxSuppression": ("s = ReduceMean<axes=[3], keepdims=0>(a) n = NonMaxSuppression(boxes, s, most) b = Cast<to=1>(n)", {"boxes": np.random.default_rng(0).uniform(0, 9, (2, 6, 4)).astype(np.float32), "most": ints(3)}, "NonMaxSuppression indexes this axis"),
    "quantized softmax": ("q = QuantizeLinear(a, h, z) r = com.microsoft.QLinearSoftmax<axis=1, opset=13>(q, h, z, h, z) b = DequantizeLinear(r, h, z)", {"h": np.float32(0.01), "z": np.uint8(0)}, "softmax of quantized numbers"),
    "no rule": ("b = Det(a)", {}, "operator Det has no rule"),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_the_channels_an_operator_needs_are_frozen_with_a_reason(name: str) -> None:
    operator, weights, reason = FROZEN[name]
    every = {"w1": (6, 3, 3, 3), **weights}
    nodes = f"a0 = Conv<pads=[1,1,1,1]>(x, w1) a = Relu(a0) {operator} y = Abs(b)"
    opset = 10 if name == "Scatter of old" else 17
    found = trial(tiny(nodes, x=IMAGE, weights=every, opset=opset, domains=("com.microsoft",)))
    assert any(reason in f.reason for f in found.analysis.frozen), [f.reason for f in found.analysis.frozen]
    assert found.removed == 0


def test_the_same_graph_without_the_operator_is_cut() -> None:
    """The control: nothing but the operator freezes those channels."""
    nodes = "a0 = Conv<pads=[1,1,1,1]>(x, w1) a = Relu(a0) y = Conv(a, w2)"
    assert trial(tiny(nodes, x=IMAGE, weights={"w1": (6, 3, 3, 3), "w2": (4, 6, 1, 1)})).removed == 3


# Rules whose operators can't be run here; why.
NOT_RUN = {
    "com.microsoft::BiasAdd": "has a kernel for CUDA only",
    "com.microsoft::BiasSoftmax": "has a kernel for CUDA only",
    "com.microsoft::NhwcFusedConv": "has kernels for half precision on some processors only; NhwcConv is like it",
    "com.microsoft::LayerNormalization": "an old name: no version of onnxruntime in use has it",
    "com.microsoft::MatMulInteger16": "16 bits: MatMulInteger is like it",
    "com.microsoft::MulInteger": "has no kernel at all",
    "com.microsoft::QLinearReduceMean": "has no kernel at all",
    "com.microsoft::ReduceSumInteger": "has no kernel at all",
    "com.microsoft::QLinearMatMul": "an old name of the standard's operator",
    "com.microsoft::SimplifiedLayerNormalization": "an old name: SimplifiedLayerNormalization",
    "com.microsoft::SplitTraining": "is of the training build: Split is like it",
    "RandomNormalLike": "gives other numbers each time",
    "RandomUniformLike": "gives other numbers each time",
    "SpatialBN": "an old name of BatchNormalization",
    "Swish": "opset 24, which this onnxruntime can't run yet",
}  # fmt: skip


def _operators(model: onnx.ModelProto) -> set[str]:
    return {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node}


def test_every_rule_has_a_case_with_its_negative_control() -> None:
    from test_rules_channels_last import MODELS
    from test_subgraph_cuts import MODELS as BODIES

    tested = {op for make in (*CASES.values(), *MODELS.values()) for op in _operators(make())}
    for operator, _, _ in FROZEN.values():
        nodes = f"a = Relu(x) {operator} y = Abs(b)"
        tested |= _operators(tiny(nodes, x=IMAGE, domains=("com.microsoft",)))
    for make_body, _ in BODIES.values():
        opened = normalize(ir.from_proto(make_body())).model
        tested |= {f"{n.domain}::{n.op_type}" for n in opened.graph if n.domain}
    assert set(load_all()) - tested == set(NOT_RUN)
