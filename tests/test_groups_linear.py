"""Finding groups and cutting take time in proportion to the number of nodes, counted in calls."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graph_builder import Builder
from models import _attention, _gelu, _layer_norm
from onnx import TensorProto, helper

from condensec.passes.groups import analyze
from condensec.passes.prune import prune


def finished(b: Builder, output: str) -> ir.Model:
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    graph = helper.make_graph(b.nodes, "grown", b.inputs, outputs, b.initializers)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def convolutions(blocks: int) -> ir.Model:
    b = Builder(0)
    x = b.conv("stem", b.input("x", ["N", 3, 8, 8]), 3, 8)
    for k in range(blocks):
        y = b.bn(f"n{k}", b.conv(f"b{k}", b.conv_bn_relu(f"a{k}", x, 8, 8), 8, 8), 8)
        x = b.op("Relu", f"relu{k}", b.op("Add", f"add{k}", y, x))
    return finished(b, b.conv("head", x, 8, 4, 1))


def transformer(blocks: int) -> ir.Model:
    b = Builder(0)
    x = b.input("x", ["N", "S", 16])
    bias = b.const("no_mask", np.zeros(1, np.float32))
    for k in range(blocks):
        y = _attention(b, f"l{k}.a", x, bias, 16, 4, True)
        x = _layer_norm(b, f"l{k}.n", b.op("Add", f"l{k}.s", y, x), 16, True)
        y = _gelu(b, f"l{k}.g", b.linear(f"l{k}.f", x, 16, 32))
        x = b.op("Add", f"l{k}.t", b.linear(f"l{k}.h", y, 32, 16), x)
    return finished(b, b.linear("head", x, 16, 4))


def shared(blocks: int) -> ir.Model:
    """One weight for all layers."""
    b = Builder(0)
    x = b.linear("stem", b.input("x", ["N", 3, 4]), 4, 6)
    first, second = b.normal("first", (6, 8), 0.3), b.normal("second", (8, 6), 0.3)
    for k in range(blocks):
        y = b.op("Relu", f"r{k}", b.op("MatMul", f"m{k}", x, first))
        x = b.op("Add", f"s{k}", x, b.op("MatMul", f"n{k}", y, second))
    return finished(b, b.linear("head", x, 6, 4))


def calls(work: Callable[..., object], *arguments: object) -> int:
    profile = cProfile.Profile()
    profile.runcall(work, *arguments)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def cut(model: ir.Model) -> None:
    analysis = analyze(model)
    prune(analysis, {g.id: range(g.share(0.5)) for g in analysis.groups})


@pytest.mark.parametrize(("build", "blocks"), [(convolutions, 12), (transformer, 2), (shared, 20)])
def test_four_times_the_nodes_take_four_times_the_calls(
    build: Callable[[int], ir.Model], blocks: int
) -> None:
    cut(build(1))  # what is imported or cached at first
    few, many = (calls(cut, build(n)) for n in (blocks, 4 * blocks))
    assert many < 4.2 * few


def test_the_measure_sees_what_is_not_linear() -> None:
    def pairs(count: int) -> int:
        return sum(len(str(a + b)) for a in range(count) for b in range(count))

    assert calls(pairs, 40) > 10 * calls(pairs, 10)
