"""Blocks of random graphs that have bodies: If, Loop and Scan, nested at times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from random_models import Map, RandomModel, Tokens


@contextmanager
def body(model: RandomModel) -> Iterator[list[onnx.NodeProto]]:
    """What is built inside goes into a body; its weights too, or they are captured."""
    outside, weights, shared = model.b.nodes, model.b.initializers, model.shared
    maps, tokens = model.maps, model.tokens
    model.b.nodes, model.shared = [], {}
    model.maps, model.tokens = list(maps), list(tokens)
    if model.rng.random() < 0.5:
        model.b.initializers = []
    elif model.rng.random() < 0.5:  # weights that are used outside as well
        model.shared = {s: w for s, w in shared.items() if len(s) == 4}
    try:
        yield model.b.nodes
    finally:
        model.b.nodes, model.shared = outside, shared
        model.maps, model.tokens = maps, tokens
        model.inner = [] if model.b.initializers is weights else model.b.initializers
        model.b.initializers = weights


def graph(
    model: RandomModel,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    shape: Sequence[str | int] = (),
) -> onnx.GraphProto:
    """A body of nodes; the weights that were built with them are its own."""
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    if shape:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs]
    return helper.make_graph(nodes, model.name("body"), inputs, ends, model.inner)


def taken(model: RandomModel, like: str) -> str:
    """A condition: constant, or decided by the data."""
    if model.rng.random() < 0.5:
        return model.b.const(model.name("flag"), np.array(model.rng.random() < 0.5))
    total = model.op("ReduceSum", like, keepdims=0)
    return model.op("Greater", total, model.b.const(model.name("bound"), np.float32(0)))


def branches(model: RandomModel, m: Map) -> Map:
    """An If with other blocks in either branch."""
    channels = 2 * model.number(2, 6)
    flag = taken(model, "input")
    blocks: list[Callable[[Map], Map]] = [
        model.norm, model.activation, model.grouped, model.residual, model.gate,
    ]  # fmt: skip
    bodies = []
    for _ in range(2):
        with body(model) as nodes:
            y = m
            for _ in range(model.number(0, 2)):
                y = blocks[int(model.rng.integers(len(blocks)))](y)
            if model.rng.random() < 0.2:
                y = branches(model, y)
            y = model.conv(y, channels) if y.channels != channels or model.rng.random() < 0.7 else y
            end = model.op("Identity", y.name)
        bodies.append(graph(model, nodes, [], [end]))
    out = model.op("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    return type(m)(out, channels, m.size)


def loop(model: RandomModel, t: Tokens) -> Tokens:
    """A Loop that carries tokens through a few blocks, and puts some of what it makes together."""
    again = model.b.const(model.name("flag"), np.array(True))
    steps = model.ints(model.number(1, 3))
    i, c, h = (model.name(k) for k in ("i", "c", "h"))
    blocks = [model.token_norm, model.mlp, model.attention]
    with body(model) as nodes:
        y = type(t)(h, t.length, t.features)
        for _ in range(model.number(1, 2)):
            y = blocks[int(model.rng.integers(len(blocks)))](y)
        side = model.linear(y, model.number(2, 5))
        ends = [model.op("Identity", c), model.op("Identity", y.name), side.name]
    inputs = [
        helper.make_tensor_value_info(i, TensorProto.INT64, []),
        helper.make_tensor_value_info(c, TensorProto.BOOL, []),
        helper.make_tensor_value_info(h, TensorProto.FLOAT, None),
    ]
    name = model.name("loop")
    outs = [f"{name}_carried", f"{name}_stacked"]
    model.b.op("Loop", name, steps, again, t.name, outputs=outs, body=graph(model, nodes, inputs, ends))
    last = model.op("ReduceMax", outs[1], axes=[0], keepdims=0)
    model.tokens.append(type(t)(last, t.length, side.features))
    return type(t)(outs[0], t.length, t.features)


def scan(model: RandomModel, t: Tokens) -> Tokens:
    """A Scan over tokens: a recurrent cell."""
    width = model.number(2, 6)
    h, e = model.name("h"), model.name("e")
    start = model.op("ReduceMean", t.name, axes=[1], keepdims=0)
    start = model.op("MatMul", start, model.weight(t.features, width))
    with body(model) as nodes:
        a = model.op("MatMul", h, model.weight(width, width))
        b = model.op("MatMul", e, model.weight(t.features, width))
        y = model.op(str(model.pick("Tanh", "Relu", "Sigmoid")), model.op("Add", a, b))
        ends = [y, model.op("Identity", y)]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in (h, e)]
    name = model.name("scan")
    model.b.op(
        "Scan", name, start, t.name, outputs=[f"{name}_state", f"{name}_out"], num_scan_inputs=1,
        scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=[model.number(0, 1)],
        body=graph(model, nodes, inputs, ends, ["N", width]),  # a Scan has to know them
    )  # fmt: skip
    return type(t)(f"{name}_out", t.length, width)
