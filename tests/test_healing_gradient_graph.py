"""The rewritten gradient graph gives the same gradients."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from healing_tools import Case, write_case

from condensec.healing import client, environment, gradient_graph
from condensec.healing.gradient_graph import selection
from condensec.healing.gradient_graph.activation import clip_masks, relu_gradient
from condensec.healing.gradient_graph.gelu import erf_products
from condensec.healing.gradient_graph.writing import Writer
from condensec.runner import Session

_BUILD = """
import os, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
from pathlib import Path
from heal_worker.engine import gradient_model
for line in sys.stdin.read().splitlines():
    source, target, names = line.split("|")
    Path(target).write_bytes(gradient_model(Path(source).read_bytes(), names.split(",")))
"""
_RUN = """
import sys
import numpy as np
import onnxruntime as ort
ort.set_default_logger_severity(4)
for line in sys.stdin.read().splitlines():
    model, feeds, names, target = line.split("|")
    stored = np.load(feeds)
    given = {n: stored[f"a{i}"] for i, n in enumerate(names.split(","))}
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = [n + "_grad" for n in given]
    np.savez(target, **dict(zip(given, session.run(wanted, given))))
"""

CONV = {"ConvGrad": 1}
# id: operator, inputs, attributes, what is changed
CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], dict[str, int]]] = {
    "same": ("Conv", ((2, 3, 6, 7), (4, 3, 3, 3)), {"pads": [1, 1, 1, 1]}, CONV),
    "pointwise": ("Conv", ((2, 3, 5, 5), (4, 3, 1, 1)), {}, CONV),
    "no-pads": ("Conv", ((2, 3, 6, 6), (4, 3, 3, 2)), {}, CONV),
    "uneven-pads": ("Conv", ((2, 3, 6, 6), (4, 3, 3, 3)), {"pads": [0, 2, 1, 0]}, CONV),
    "dilated": ("Conv", ((1, 2, 9, 9), (3, 2, 3, 3)), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}, CONV),
    "grouped": ("Conv", ((2, 4, 5, 5), (6, 2, 3, 3)), {"group": 2, "pads": [1, 1, 1, 1]}, CONV),
    "depthwise": ("Conv", ((2, 4, 5, 5), (4, 1, 3, 3)), {"group": 4, "pads": [1, 1, 1, 1]}, CONV),
    "multiplied": ("Conv", ((2, 4, 5, 5), (8, 1, 3, 3)), {"group": 4, "pads": [1, 1, 1, 1]}, CONV),
    "line": ("Conv", ((2, 3, 9), (4, 3, 3)), {"pads": [1, 1]}, CONV),
    "volume": ("Conv", ((1, 2, 4, 4, 4), (3, 2, 3, 3, 3)), {"pads": [1] * 6}, CONV),
    "strided": ("Conv", ((2, 3, 6, 6), (4, 3, 3, 3)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {}),
    "padded-beyond": ("Conv", ((2, 3, 4, 4), (4, 3, 1, 1)), {"pads": [1, 1, 1, 1]}, {}),
    "relu": ("Relu", ((2, 3, 5, 7),), {}, {"ReluGrad": 1}),
    "clip": ("Clip", ((2, 3, 5, 7), np.array(-0.5, np.float32), np.array(0.75, np.float32)), {}, {"Clip": 1}),
    "relu6": ("Clip", ((2, 3, 5, 7), np.array(0, np.float32), np.array(1.5, np.float32)), {}, {"Clip": 1}),
    "clip-below": ("Clip", ((2, 3, 5, 7), np.array(0.25, np.float32)), {}, {}),
    "gelu": ("Gelu", ((2, 3, 5, 7),), {}, {"GeluGrad": 1}),
    # of which the builder takes the exact one's gradient
    "gelu-tanh": ("Gelu", ((2, 3, 5, 7),), {"approximate": "tanh"}, {"GeluGrad": 1}),
    "layer-norm": ("LayerNormalization", ((2, 5, 6), (6,), (6,)), {}, {"LayerNormalizationGrad": 1}),
    "layer-norm-flat": (
        "LayerNormalization",
        ((7, 6), (6,), (6,)),
        {"axis": 1},
        {"LayerNormalizationGrad": 1},
    ),
    "layer-norm-bare": ("LayerNormalization", ((2, 5, 6), (6,)), {}, {"LayerNormalizationGrad": 1}),
    "layer-norm-wide": ("LayerNormalization", ((2, 5, 6), (5, 6), (5, 6)), {"axis": 1}, {}),
    "pick": ("Gather", ((2, 3, 5), np.array(2)), {"axis": 1}, {"GatherGrad": 1}),
    "pick-last": ("Gather", ((2, 3, 5), np.array(-1)), {"axis": -1}, {"GatherGrad": 1}),
    "pick-several": ("Gather", ((2, 3, 5), np.array([2, 0])), {"axis": 1}, {}),
}


def _worker(script: str, lines: list[str]) -> None:
    command = [str(environment.ensure()), "-I", "-c", client._BOOT + "\n" + script]
    command.append(str(Path(client.__file__).parent / "worker"))
    subprocess.run(command, input="\n".join(lines), text=True, check=True, capture_output=True)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, int], Any, Any]]:
    """Case -> what was changed, gradients as built, gradients as rewritten."""
    folder = tmp_path_factory.mktemp("gradients")
    built, runs, changed = [], [], {}
    for name, (op, inputs, attributes, _) in CASES.items():
        case = write_case(Case(op, inputs, attributes, label=name), folder)
        names = ",".join(case.request["names"])
        built.append(f"{case.request['model']}|{folder / name}.plain.onnx|{names}")
        runs += [
            f"{folder / name}.{kind}.onnx|{case.request['feeds']}|{names}|{folder / name}.{kind}.npz"
            for kind in ("plain", "faster")
        ]
    _worker(_BUILD, built)
    for name in CASES:
        shutil.copy(folder / f"{name}.plain.onnx", folder / f"{name}.faster.onnx")
        changed[name] = gradient_graph.improve(folder / f"{name}.faster.onnx")
    _worker(_RUN, runs)
    return {
        name: (changed[name], np.load(folder / f"{name}.plain.npz"), np.load(folder / f"{name}.faster.npz"))
        for name in CASES
    }


@pytest.mark.parametrize("name", CASES)
def test_gradients_stay_the_same(name: str, gradients: dict[str, tuple[dict[str, int], Any, Any]]) -> None:
    changed, plain, faster = gradients[name]
    assert changed == CASES[name][3]
    assert len(plain.files) == sum(isinstance(given, tuple) for given in CASES[name][1])
    for key in plain.files:
        scale = float(np.abs(plain[key]).max())
        assert scale > 0
        np.testing.assert_allclose(faster[key], plain[key], rtol=1e-4, atol=1e-5 * scale, err_msg=key)


def test_a_kernel_not_turned_round_would_be_noticed(
    gradients: dict[str, tuple[dict[str, int], Any, Any]], tmp_path: Path
) -> None:
    """The comparison sees the mistake one makes first: correlation in place of convolution."""
    case = write_case(Case(*CASES["same"][:3]), tmp_path)
    names = ",".join(case.request["names"])
    path = tmp_path / "wrong.onnx"
    _worker(_BUILD, [f"{case.request['model']}|{path}|{names}"])
    gradient_graph.improve(path)
    model = onnx.load(str(path))
    turn = next(n for n in model.graph.node if n.op_type == "Gather")
    back = next(t for t in model.graph.initializer if t.name == turn.input[1])
    back.CopyFrom(onnx.numpy_helper.from_array(np.arange(9), back.name))
    onnx.save(model, str(path))
    _worker(_RUN, [f"{path}|{case.request['feeds']}|{names}|{tmp_path / 'wrong.npz'}"])
    wrong, right = np.load(tmp_path / "wrong.npz"), gradients["same"][1]
    data = case.request["names"][0]
    assert np.abs(wrong[data] - right[data]).max() > 0.1 * np.abs(right[data]).max()


def test_the_mask_of_relu_is_exact_for_all_normal_numbers() -> None:
    y = np.array([0, np.finfo(np.float32).tiny, 1e-20, 1, 1e20, np.finfo(np.float32).max, np.inf], np.float32)
    node = onnx.helper.make_node("ReluGrad", ["d", "y"], ["x"], domain="com.microsoft")
    writer = Writer()
    nodes = relu_gradient(node, writer)
    assert nodes is not None
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, y.shape) for n in "dyx"]
    graph = onnx.helper.make_graph(nodes, "g", infos[:2], infos[2:], list(writer.constants.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    d = np.full(y.shape, -3.5, np.float32)
    [x] = Session(model).run({"d": d, "y": y}).values()
    np.testing.assert_array_equal(x, np.where(y > 0, d, 0))


def picked(indices: tuple[int, ...]) -> dict[str, int]:
    """Operators left of the gradients of some positions of an axis of three, which the builder sums."""
    shape = (3, 2, 4)
    nodes = [onnx.helper.make_node("Shape", ["x"], ["s"])]
    for i, index in enumerate(indices):
        nodes.append(
            onnx.helper.make_node(
                "GatherGrad", ["s", f"i{index}", f"d{i}"], [f"g{i}"], domain="com.microsoft"
            )
        )
    nodes.append(onnx.helper.make_node("Sum", [f"g{i}" for i in range(len(indices))], ["x_grad"]))
    writer = Writer({"x": shape}, {f"i{i}": float(i) for i in range(3)}, {"s": "x"})
    rewritten, count = selection.rewrite(nodes, writer)
    assert count == len(indices)
    kinds = [n.op_type for n in rewritten if n.op_type != "Shape"]
    info = onnx.helper.make_tensor_value_info
    inputs = [info(f"d{i}", onnx.TensorProto.FLOAT, shape[1:]) for i in range(len(indices))]
    graph = onnx.helper.make_graph(
        [n for n in rewritten if n.op_type != "Shape"], "g", inputs,
        [info("x_grad", onnx.TensorProto.FLOAT, shape)], list(writer.constants.values()),
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    feeds = {
        f"d{i}": np.random.default_rng(i).standard_normal(shape[1:]).astype(np.float32) for i in range(4)
    }
    [found] = Session(model).run({k: v for k, v in feeds.items() if k in {i.name for i in inputs}}).values()
    wanted = np.zeros(shape, np.float32)
    for i, index in enumerate(indices):
        wanted[index] += feeds[f"d{i}"]
    np.testing.assert_array_equal(found, wanted)
    return {kind: kinds.count(kind) for kind in kinds}


def test_gradients_of_all_positions_are_joined() -> None:
    assert picked((2, 0, 1)) == {"Unsqueeze": 3, "Concat": 1}


def test_gradients_of_some_positions_or_of_one_twice_are_summed() -> None:
    assert picked((2, 0)) == {"Unsqueeze": 2, "Pad": 2, "Sum": 1}
    assert picked((1, 0, 2, 0)) == {"Unsqueeze": 4, "Pad": 4, "Sum": 1}


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-0.5, 0.75), (1.0, 2.0)])
def test_the_mask_of_clip_is_exact_on_and_beside_its_bounds(low: float, high: float) -> None:
    bounds = np.array([low, high], np.float32)
    near = [np.nextafter(bounds, np.float32(s) * np.inf, dtype=np.float32) for s in (-1, 1)]
    near = [np.where(np.abs(n) < np.finfo(np.float32).tiny, np.sign(n) * np.float32(2e-38), n) for n in near]
    far = [-np.inf, -1e30, -1, (low + high) / 2, 1e30, np.inf]
    x = np.concatenate([bounds, *near, far]).astype(np.float32)
    make = onnx.helper.make_node
    nodes = [
        make("GreaterOrEqual", ["x", "low"], ["a"]), make("LessOrEqual", ["x", "high"], ["b"]),
        make("And", ["a", "b"], ["c"]), make("Cast", ["c"], ["mask"], to=onnx.TensorProto.FLOAT),
    ]  # fmt: skip
    writer = Writer({}, {"low": low, "high": high})
    rewritten, count = clip_masks(nodes, writer)
    assert count == 1
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, x.shape) for n in ("x", "mask")]
    constants = [onnx.numpy_helper.from_array(b, n) for b, n in zip(bounds, ("low", "high"), strict=True)]
    graph = onnx.helper.make_graph(
        rewritten, "g", infos[:1], infos[1:], [*constants, *writer.constants.values()]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    [mask] = Session(model).run({"x": x}).values()
    np.testing.assert_array_equal(mask, ((x >= bounds[0]) & (x <= bounds[1])).astype(np.float32))


def gelu_products(other: bool) -> tuple[int, np.ndarray, np.ndarray]:
    """The builder's operators for Gelu: how many were replaced, the gradient and its finite difference."""
    make, rng = onnx.helper.make_node, np.random.default_rng(3)
    x, d = (rng.standard_normal(50).astype(np.float32) for _ in range(2))
    scalars = {"r": 2**0.5, "one": 1.0, "half": 0.5, "c": 2 / np.pi**0.5, "r2": 1.7 if other else 2**0.5}
    nodes = [
        make("Div", ["x", "r"], ["a"]), make("Erf", ["a"], ["e"]), make("Add", ["e", "one"], ["f"]),
        make("Mul", ["d", "half"], ["t"]), make("Mul", ["t", "f"], ["u"]), make("Identity", ["t"], ["t1"]),
        make("Mul", ["x", "t1"], ["g"]), make("Mul", ["a", "a"], ["s"]), make("Neg", ["s"], ["n"]),
        make("Exp", ["n"], ["ex"]), make("Mul", ["c", "ex"], ["k"]), make("Mul", ["g", "k"], ["m"]),
        make("Div", ["m", "r2"], ["v"]), make("Sum", ["v", "u"], ["y"]),
    ]  # fmt: skip
    writer = Writer({}, scalars)
    rewritten, count = erf_products(nodes, writer)
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, x.shape) for n in "xdy"]
    constants = [onnx.numpy_helper.from_array(np.float32(v), k) for k, v in scalars.items()]
    graph = onnx.helper.make_graph(
        rewritten, "g", infos[:2], infos[2:], [*constants, *writer.constants.values()]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    [y] = Session(model).run({"x": x, "d": d}).values()

    def gelu(values: np.ndarray) -> np.ndarray:
        return np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in values])

    wide, step = x.astype(float), 1e-5
    return count, y, d * (gelu(wide + step) - gelu(wide - step)) / (2 * step)


def test_the_gradient_of_gelu_is_its_finite_difference() -> None:
    count, found, wanted = gelu_products(other=False)
    assert count == 1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_operators_that_only_look_like_gelu_are_left_alone() -> None:
    count, found, wanted = gelu_products(other=True)
    assert count == 0
    assert np.abs(found - wanted).max() > 0.01
