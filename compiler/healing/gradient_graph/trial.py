"""Small models that tell the worker how its onnxruntime blocks channels, and whether it does so as assumed.

The blocked operators are onnxruntime's own affair: their block depends on the processor, and nothing
promises their layout. So the worker runs these first, and does without if anything fails or differs.
"""

from __future__ import annotations

from copy import deepcopy
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from condensec.healing.gradient_graph.blocked import Blocked
from condensec.healing.gradient_graph.layout import DOMAIN
from condensec.healing.gradient_graph.writing import Shape, Writer
from condensec.healing.graph import IR, OPSET

BLOCKS = (8, 16)
SIZE = "size"


def write(folder: Path) -> dict[str, str]:
    """Write the trials.

    Returns:
        "size" -> a model whose output has one block of channels; block -> a model that gives the largest
        difference between plain and blocked convolutions.
    """
    trials = {SIZE: _size(), **{str(block): difference(block) for block in BLOCKS}}
    paths = {name: folder / f"trial-{name}.onnx" for name in trials}
    for name, model in trials.items():
        paths[name].write_bytes(model.SerializeToString())
    return {name: str(path) for name, path in paths.items()}


def difference(block: int) -> onnx.ModelProto:
    """Dense, depthwise and strided convolutions of uneven widths, with one and with few channels read."""
    rng = np.random.default_rng(0)
    shapes: dict[str, Shape] = {
        "x": (2, 28, 7, 9), "w1": (30, 28, 3, 3), "b1": (30,), "w2": (30, 1, 3, 3), "w3": (46, 30, 1, 1),
        "y": (2, 3, 7, 9), "w4": (13, 3, 3, 3), "b4": (13,),
    }  # fmt: skip
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"], group=30, pads=[1, 0, 0, 1]),
        helper.make_node("Conv", ["c", "w3"], ["first"]),
        helper.make_node("Conv", ["y", "w4", "b4"], ["second"], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    shapes |= {"a": (2, 30, 7, 9), "r": (2, 30, 7, 9), "c": (2, 30, 6, 8)}
    shapes |= {"first": (2, 46, 6, 8), "second": (2, 13, 4, 5)}
    writer = Writer(shapes)
    rewritten = Blocked(writer, block).rewrite(deepcopy(nodes), ["first", "second"])
    for node in rewritten:  # beside the plain ones
        node.input[:] = [f"blocked.{n}" if n in shapes and n not in weights else n for n in node.input]
        node.output[:] = [f"blocked.{n}" if n in shapes else n for n in node.output]
    nodes += rewritten
    for name in ("first", "second"):
        nodes.append(helper.make_node("Sub", [name, f"blocked.{name}"], [f"{name}.off"]))
        nodes.append(helper.make_node("Abs", [f"{name}.off"], [f"{name}.error"]))
        nodes.append(helper.make_node("ReduceMax", [f"{name}.error"], [f"{name}.worst"], keepdims=0))
    nodes.append(helper.make_node("Max", ["first.worst", "second.worst"], ["worst"]))
    constants = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    return _model(nodes, "worst", [*constants, *writer.constants.values()])


def _size() -> onnx.ModelProto:
    four = numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "x")
    nodes = [helper.make_node("ReorderInput", ["x"], ["blocks"], domain=DOMAIN)]
    return _model(nodes, "blocks", [four])


def _model(nodes: list[onnx.NodeProto], output: str, constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "trial", [], [out], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="condensec")
