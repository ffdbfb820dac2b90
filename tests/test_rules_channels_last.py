"""Fused operators that onnxruntime has no CPU kernel for: cut as they are, proved in standard operators."""

# ruff: noqa: E501  (a table: one graph a line)

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import feeds_of, half, tiny
from onnx import helper, numpy_helper

from condensec.masked import masked
from condensec.passes.groups import analyze
from condensec.passes.prune import Cut, prune, set_weight
from condensec.runner import Session

MS = ("com.microsoft",)
IMAGE = ["N", 6, 6, 3]
FEEDS = {"x": np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)}


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else found.i or found.f


def lowered(model: ir.Model) -> onnx.ModelProto:
    """The same model in standard operators, as the operators' definitions in onnxruntime say."""
    proto = ir.to_proto(model)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for number, node in enumerate(nodes):
        proto.graph.node.extend([node] if node.domain != "com.microsoft" else _standard(proto, node, number))
    return proto


def _standard(proto: onnx.ModelProto, node: onnx.NodeProto, number: int) -> list[onnx.NodeProto]:
    def name(text: str) -> str:
        return f"lowered{number}.{text}"

    made: list[onnx.NodeProto] = []
    source = node.input[0]
    if node.op_type == "SkipGroupNorm":
        skip = node.input[3]
        made.append(helper.make_node("Add", [source, skip], [name("sum")]))
        source = name("sum")
        if len(node.input) > 4:
            made.append(helper.make_node("Add", [source, node.input[4]], [name("biased")]))
            source = name("biased")
        if len(node.output) > 1:
            made.append(helper.make_node("Identity", [source], [node.output[1]]))
    made.append(helper.make_node("Transpose", [source], [name("in")], perm=[0, 3, 1, 2]))
    if node.op_type == "NhwcConv":
        kept = [a for a in node.attribute if a.name in ("group", "pads", "strides", "kernel_shape")]
        made.append(helper.make_node("Conv", [name("in"), *node.input[1:]], [name("out")]))
        made[-1].attribute.extend(kept)
    else:
        groups = int(attribute(node, "groups", 1))
        made.append(
            helper.make_node(
                "GroupNormalization", [name("in"), *node.input[1:3]], [name("normed")], num_groups=groups
            )
        )
        if attribute(node, "activation", 0):  # SiLU
            made.append(helper.make_node("Sigmoid", [name("normed")], [name("gate")]))
            made.append(helper.make_node("Mul", [name("normed"), name("gate")], [name("out")]))
        else:
            made.append(helper.make_node("Identity", [name("normed")], [name("out")]))
    made.append(helper.make_node("Transpose", [name("out")], [node.output[0]], perm=[0, 2, 3, 1]))
    return made


def model(operator: str, channels: int = 6, **weights: object) -> onnx.ModelProto:
    """Features last: MatMul, the operator on ``a`` -> ``b``, MatMul."""
    every = {"w1": (3, 6), "k1": (6,), "w2": (channels, 4), **weights}
    nodes = f"m = MatMul(x, w1) a = Add(m, k1) {operator} y = MatMul(b, w2)"
    return tiny(nodes, x=IMAGE, weights=every, domains=MS, opset=21)  # type: ignore[arg-type]


PAIR = {"s": (6,), "t": (6,)}
MODELS = {
    "group norm": lambda: model("b = com.microsoft.GroupNorm<groups=2, activation=0>(a, s, t)", **PAIR),
    "group norm with silu": lambda: model("b = com.microsoft.GroupNorm<groups=3, activation=1>(a, s, t)", **PAIR),
    "skip group norm": lambda: model(
        "c = Relu(a) n, z = com.microsoft.SkipGroupNorm<groups=2, activation=1>(a, s, t, c) b = Add(n, z)", **PAIR
    ),
    "skip group norm with bias": lambda: model(
        "c = Relu(a) b = com.microsoft.SkipGroupNorm<groups=3, activation=0>(a, s, t, c, k)", k=(6,), **PAIR
    ),
    "conv": lambda: model("b = com.microsoft.NhwcConv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, w, k)", 5, w=(5, 6, 3, 3), k=(5,)),
    "grouped conv": lambda: model("b = com.microsoft.NhwcConv<kernel_shape=[1,1], group=2>(a, w)", 8, w=(8, 3, 1, 1)),
}  # fmt: skip


def error(original: onnx.ModelProto, cut: Cut) -> float:
    """The largest difference to the masked original, relative to the largest output."""
    reference = Session(lowered(masked(ir.from_proto(original), cut.plan)), threads=1, optimize=False)
    found = Session(lowered(cut.model), threads=1, optimize=False)
    a, b = reference.run(FEEDS)["y"], found.run(FEEDS)["y"]
    return float(np.abs(a - b).max() / np.abs(a).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep", [0.5, 0.7])
def test_channels_are_cut_on_both_sides(name: str, keep: float) -> None:
    original = MODELS[name]()
    analysis = analyze(ir.from_proto(original))
    cut = prune(analysis, half(analysis, 1, keep))
    assert sum(g.size - len(g.kept) for g in cut.plan.groups) > 0
    assert cut.plan.slices["w1"] != {}
    assert cut.plan.slices["w2"] != {}
    assert error(original, cut) < 2e-6


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_index_is_caught(name: str) -> None:
    original = MODELS[name]()
    analysis = analyze(ir.from_proto(original))
    cut = prune(analysis, half(analysis, 1, 0.7))
    for weight in ("w1", "w2"):
        value = cut.model.graph.initializers[weight]
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        set_weight(value, np.roll(array, 1, 1 if weight == "w1" else 0), tensor.dtype)
        assert error(original, cut) > 1e-3
        set_weight(value, array, tensor.dtype)


def test_groups_of_a_norm_and_the_channels_inside_them_are_cut_apart() -> None:
    analysis = analyze(ir.from_proto(MODELS["group norm"]()))
    sizes = {(g.size, g.exact) for g in analysis.groups}
    assert sizes == {(2, True), (3, False)}


def test_the_standard_norm_is_the_reference_for_itself() -> None:
    """The lowering, held against numpy: mean and variance over a group's channels and all positions."""
    original = MODELS["group norm"]()
    feeds = feeds_of(original, analyze(ir.from_proto(original)))
    weights = {w.name: numpy_helper.to_array(w) for w in original.graph.initializer}
    a = (feeds["x"] @ weights["w1"] + weights["k1"]).reshape(2, 36, 2, 3)
    mean, variance = a.mean(axis=(1, 3), keepdims=True), a.var(axis=(1, 3), keepdims=True)
    normed = ((a - mean) / np.sqrt(variance + 1e-5)).reshape(2, 6, 6, 6) * weights["s"] + weights["t"]
    found = Session(lowered(ir.from_proto(original)), threads=1).run(feeds)["y"]
    assert np.abs(found - normed @ weights["w2"]).max() < 1e-4
