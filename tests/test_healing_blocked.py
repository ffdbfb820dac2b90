"""Convolutions in blocks of channels: the same gradients, and none of it where the machine does otherwise."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from condensec.healing import client, environment, gradient_graph, static
from condensec.healing.graph import IR, OPSET
from condensec.healing.losses import LOSS
from condensec.healing.normalized import normalize

# What is asked: the block; and for each graph the plain gradients and those of the rewritten graph, through
# the engine, which compares them and says so where it doesn't use the faster one.
_SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
from heal_worker import blocks
from heal_worker.engine import Engine, gradient_model
request = json.load(open(sys.argv[2]))
answers = {"sizes": [blocks.size(t) for t in request["trials"]]}
for name, case in request.get("cases", {}).items():
    stored = np.load(case["arrays"])
    weights = {n: stored[n] for n in case["weights"]}
    feeds = {n: stored[n] for n in stored.files if n not in weights}
    gradients = {n: np.zeros_like(w) for n, w in weights.items()}
    told = []
    def improve(model):
        Path(case["plain"]).write_bytes(model)
        return Path(case["faster"]).read_bytes() if os.path.exists(case["faster"]) else model
    size = next(iter(feeds.values())).shape[0]
    engine = Engine({"model": Path(case["model"])}, weights, gradients, 1, size, size, improve, told.append)
    loss = engine.step(feeds)
    np.savez(case["result"], loss=loss, **gradients)
    answers[name] = told
json.dump(answers, open(sys.argv[3], "w"))
"""


def ask(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's answers."""
    (folder / "request.json").write_text(json.dumps(request))
    command = [str(environment.ensure()), "-I", "-c", client._BOOT + "\n" + _SCRIPT]
    command += [str(Path(client.__file__).parent / "worker"), str(folder / "request.json")]
    subprocess.run([*command, str(folder / "answers.json")], check=True, capture_output=True, timeout=120)
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return answers


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("trial")
    [found] = ask(folder, {"trials": [gradient_graph.trial.write(folder)]})["sizes"]
    return int(found)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


PADS = {"pads": [1, 1, 1, 1]}
Network = tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]]]


def residual() -> Network:
    """Few channels, even and uneven widths, stride, a shortcut, pooling, values not in blocks."""
    nodes = [
        node("Conv", "x w1 b1", "a", **PADS), node("Relu", "a", "ar"),
        node("Conv", "ar w2 b2", "c", **PADS), node("Relu", "c", "cr"),
        node("Conv", "cr w3", "d", **PADS), node("Add", "d ar", "e"), node("Relu", "e", "er"),
        node("Conv", "er w4 b4", "f", strides=[2, 2], **PADS), node("Sigmoid", "f", "fs"),
        node("Conv", "fs w5", "g", dilations=[2, 1], pads=[2, 0, 1, 1]), node("Mul", "g half", "h"),
        node("MaxPool", "h", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p w6", "y", pads=[0, 1, 1, 0]),
    ]  # fmt: skip
    weights = {
        "w1": (16, 3, 3, 3), "b1": (16,), "w2": (30, 16, 3, 3), "b2": (30,), "w3": (16, 30, 3, 3),
        "w4": (32, 16, 3, 3), "b4": (32,), "w5": (29, 32, 3, 3), "w6": (31, 29, 2, 3),
    }  # fmt: skip
    return nodes, weights


def depthwise() -> Network:
    """Expand, depthwise, project, with and without stride, uneven widths; ReLU6."""
    nodes = [
        node("Conv", "x w1 b1", "a", **PADS), node("Clip", "a zero six", "ac"),
        node("Conv", "ac w2 b2", "c", group=27, **PADS), node("Clip", "c zero six", "cc"),
        node("Conv", "cc w3", "d"),
        node("Conv", "d w4", "e"), node("Tanh", "e", "et"),
        node("Conv", "et w5", "f", group=32, strides=[2, 2], pads=[2, 2, 2, 2]),
        node("Conv", "f w6 b6", "y"),
    ]  # fmt: skip
    weights = {
        "w1": (27, 3, 3, 3), "b1": (27,), "w2": (27, 1, 3, 3), "b2": (27,), "w3": (16, 27, 1, 1),
        "w4": (32, 16, 1, 1), "w5": (32, 1, 5, 5), "w6": (16, 32, 1, 1), "b6": (16,),
    }  # fmt: skip
    return nodes, weights


def uneven() -> Network:
    """Depthwise, of uneven strides, kernels and pads; pixels that no kernel reaches; dilated."""
    nodes = [
        node("Conv", "x w1", "a", **PADS), node("Relu", "a", "ar"),
        node("Conv", "ar w2 b2", "c", group=30, strides=[2, 2], pads=[1, 0, 1, 2]), node("Tanh", "c", "ct"),
        node("Conv", "ct w3", "d", group=30, dilations=[2, 1], pads=[1, 1, 3, 1]), node("Relu", "d", "dr"),
        node("Conv", "ar w4", "e", group=30, strides=[3, 3]), node("Add", "dr f", "g"),
        node("Conv", "g w5", "y"), node("ReduceMean", "e axes", "f", keepdims=1),
    ]  # fmt: skip
    nodes = [*nodes[:7], nodes[9], *nodes[7:9]]
    weights = {
        "w1": (30, 3, 3, 3), "w2": (30, 1, 3, 4), "b2": (30,), "w3": (30, 1, 3, 3), "w4": (30, 1, 2, 2),
        "w5": (16, 30, 1, 1),
    }  # fmt: skip
    return nodes, weights


def edges() -> Network:
    """First convolutions whose kernels don't reach every pixel, uneven pads, even kernels."""
    nodes = [
        node("Conv", "x w1 b1", "a", strides=[2, 3]), node("Relu", "a", "ar"),
        node("Conv", "x w2", "c", strides=[2, 3], pads=[1, 0, 2, 3]), node("Relu", "c", "cr"),
        node("Conv", "ar w3 b3", "d", pads=[0, 1, 2, 1]), node("Tanh", "d", "dt"),
        node("Conv", "dt w4", "e", pads=[1, 1, 0, 2]), node("Conv", "cr w5", "f", **PADS),
        node("ReduceMean", "e axes", "em", keepdims=1), node("Mul", "f em", "y"),
    ]  # fmt: skip
    weights = {
        "w1": (32, 3, 3, 3), "b1": (32,), "w2": (15, 3, 4, 5), "w3": (45, 32, 3, 2), "b3": (45,),
        "w4": (30, 45, 2, 4), "w5": (30, 15, 3, 3),
    }  # fmt: skip
    return nodes, weights


def linear() -> Network:
    """Matrices of which some have gradients large enough to be computed in blocks, one turned; Gelu."""
    nodes = [
        node("MatMul", "x w1", "a"), node("Div", "a root", "ar"), node("Erf", "ar", "e"),
        node("Add", "e one", "f"), node("Mul", "a f", "af"), node("Mul", "af half", "at"),
        node("MatMul", "at w2", "b"),
        node("Add", "b b2", "c"), node("Tanh", "c", "ct"), node("MatMul", "ct w3", "y"),
    ]  # fmt: skip
    return nodes, {"w1": (14, 256), "w2": (256, 272), "b2": (272,), "w3": (272, 256)}


def normalized() -> Network:
    """Convolutions with biases, of even and uneven widths, a shortcut, one that nothing blocked reads."""
    nodes = [
        node("Conv", "x w1 b1", "a", **PADS), node("Relu", "a", "ar"),
        node("Conv", "ar w2 b2", "c", **PADS), node("Relu", "c", "cr"),
        node("Conv", "cr w3 b3", "d", **PADS), node("Add", "d ar", "e"), node("Relu", "e", "er"),
        node("Conv", "er w4 b4", "f", strides=[2, 2], **PADS), node("Tanh", "f", "ft"),
        node("Conv", "ft w5 b5", "g"), node("Sigmoid", "g", "y"),
    ]  # fmt: skip
    weights = {
        "w1": (16, 3, 3, 3), "b1": (16,), "w2": (30, 16, 3, 3), "b2": (30,), "w3": (16, 30, 3, 3),
        "b3": (16,), "w4": (27, 16, 3, 3), "b4": (27,), "w5": (7, 27, 1, 1), "b5": (7,),
    }  # fmt: skip
    return nodes, weights


# network and samples of a part: none, less than, exactly and twice what a block of samples takes
NETWORKS = {
    "residual": (residual, 3), "residual-4": (residual, 4), "residual-16": (residual, 16),
    "residual-32": (residual, 32), "residual-24": (residual, 24), "depthwise": (depthwise, 3),
    "depthwise-16": (depthwise, 16), "uneven": (uneven, 5),
    "normalized-16": (normalized, 16), "normalized-24": (normalized, 24),
    "edges-8": (edges, 8), "edges-32": (edges, 32), "linear-32": (linear, 32), "linear-20": (linear, 20),
}  # fmt: skip
CHANGED = {
    "residual": 10,
    "residual-4": 13,
    "depthwise": 13,
    "depthwise-16": 17,
    "uneven": 8,
    "edges-8": 13,
    "edges-32": 13,
    "linear-32": 3,
    "linear-20": 1,
    "normalized-16": 17,
    "normalized-24": 17,
}


def written(name: str, folder: Path) -> dict[str, Any]:
    """A network with a loss, its weights and inputs, as files."""
    network, samples = NETWORKS[name]
    nodes, shapes = network()
    rng = np.random.default_rng(5)
    arrays = {
        n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()
    }
    arrays["x"] = rng.standard_normal((samples, 3, 12, 14)).astype(np.float32)
    scalars = {"half": 0.5, "zero": 0.0, "six": 0.3, "root": 2**0.5, "one": 1.0}
    nodes = [*nodes, node("Mul", "y y", "square"), node("ReduceMean", "square", LOSS, keepdims=0)]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in arrays.items()]
    loss = helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, ())
    constants = [numpy_helper.from_array(np.float32(v), k) for k, v in scalars.items()]
    constants.append(numpy_helper.from_array(np.array([0, 2, 3]), "axes"))
    graph = helper.make_graph(nodes, name, inputs, [loss], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model = onnx.shape_inference.infer_shapes(model)
    if network is normalized:
        copy, _ = static.read(model, arrays)
        with_norms = normalize(copy, list(shapes))
        assert with_norms is not None
        assert len(with_norms.sites) == 5
        model = with_norms.model
        for site in with_norms.sites:
            shapes[site.scale] = (site.channels,)
            arrays[site.scale] = rng.uniform(0.5, 2, site.channels).astype(np.float32)
    onnx.save(model, str(folder / f"{name}.onnx"))
    np.savez(folder / f"{name}.npz", **arrays)
    case = {"model": f"{name}.onnx", "arrays": f"{name}.npz", "plain": f"{name}.plain.onnx",
            "faster": f"{name}.faster.onnx", "result": f"{name}.result.npz"}  # fmt: skip
    return {"weights": list(shapes), **{k: str(folder / v) for k, v in case.items()}}


def results(cases: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(case["result"])) for name, case in cases.items()}


@pytest.fixture(scope="module")
def answers(
    block: int, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, int], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Convolutions in blocks; plain gradients; the rewritten graphs'; what the engine said of them."""
    folder = tmp_path_factory.mktemp("blocked")
    cases = {name: written(name, folder) for name in NETWORKS}
    ask(folder, {"trials": [], "cases": cases})
    plain, changed = results(cases), {}
    for name, case in cases.items():
        Path(case["faster"]).write_bytes(Path(case["plain"]).read_bytes())
        done = gradient_graph.improve(Path(case["faster"]), block)
        changed[name] = sum(done.get(kind, 0) for kind in ("blocked", "Gemm", "Erf"))
    told = ask(folder, {"trials": [], "cases": cases})
    return changed, plain, results(cases), told


def test_this_processor_has_blocked_convolutions(block: int) -> None:
    """On x86-64 with AVX and on 64-bit ARM; the other tests of this file say little without."""
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"nothing is known of {platform.machine()}")
    assert block in gradient_graph.trial.BLOCKS


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_in_blocks_are_the_plain_ones(name: str, answers: Any, block: int) -> None:
    changed, plain, blocked, told = answers
    assert told[name] == []
    if block == 16:
        assert changed[name] == CHANGED.get(name, 14)
    for key, value in plain[name].items():
        scale = float(np.abs(value).max())
        assert scale > 0, key
        np.testing.assert_allclose(blocked[name][key], value, rtol=1e-3, atol=1e-5 * scale, err_msg=key)


def test_a_wrong_layout_is_noticed_and_not_used(answers: Any, block: int, tmp_path: Path) -> None:
    """The engine's own comparison: kernels that aren't turned round."""
    if not block:
        pytest.skip("this machine has no blocked convolutions")
    case = written("residual", tmp_path)
    ask(tmp_path, {"trials": [], "cases": {"residual": case}})
    Path(case["faster"]).write_bytes(Path(case["plain"]).read_bytes())
    gradient_graph.improve(Path(case["faster"]), block)
    model = onnx.load(case["faster"])
    turns = {n.input[1] for n in model.graph.node if n.op_type == "Gather"}
    for tensor in model.graph.initializer:
        if tensor.name in turns:
            tensor.CopyFrom(numpy_helper.from_array(np.sort(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, case["faster"])
    told = ask(tmp_path, {"trials": [], "cases": {"residual": case}})["residual"]
    assert len(told) == 1
    assert "of the gradient" in told[0]
    plain, found = answers[1]["residual"], np.load(case["result"])
    for key, value in plain.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_an_image_that_is_shifted_is_noticed_and_not_used(answers: Any, block: int, tmp_path: Path) -> None:
    """The same for gradients of kernels: one pixel too many on the left, one too few on the right."""
    if not block:
        pytest.skip("this machine has no blocked convolutions")
    case = written("edges-32", tmp_path)
    ask(tmp_path, {"trials": [], "cases": {"edges": case}})
    Path(case["faster"]).write_bytes(Path(case["plain"]).read_bytes())
    gradient_graph.improve(Path(case["faster"]), block)
    model = onnx.load(case["faster"])
    sizes = {t.name: t for t in model.graph.initializer}
    pads = [n.input[1] for n in model.graph.node if n.op_type == "Pad"]
    values = {name: numpy_helper.to_array(sizes[name]) for name in pads}
    pads = [name for name, v in values.items() if len(v) == 8 and v[3] == block]  # of [N, G, H, W b]
    assert pads
    for name in set(pads):
        shifted = numpy_helper.to_array(sizes[name]) + np.array([0, 0, 0, block, 0, 0, 0, -block])
        sizes[name].CopyFrom(numpy_helper.from_array(shifted, name))
    onnx.save(model, case["faster"])
    told = ask(tmp_path, {"trials": [], "cases": {"edges": case}})["edges"]
    assert len(told) == 1
    assert "of the gradient" in told[0]
    plain, found = answers[1]["edges-32"], np.load(case["result"])
    for key, value in plain.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_graph_that_cannot_be_opened_is_not_used(answers: Any, tmp_path: Path) -> None:
    case = written("depthwise", tmp_path)
    Path(case["faster"]).write_bytes(b"nothing of the kind")
    told = ask(tmp_path, {"trials": [], "cases": {"depthwise": case}})["depthwise"]
    assert len(told) == 1
    assert "can't be opened" in told[0]
    for key, value in answers[1]["depthwise"].items():
        np.testing.assert_array_equal(np.load(case["result"])[key], value, err_msg=key)


def test_without_a_working_trial_there_are_no_blocks(block: int, tmp_path: Path) -> None:
    """No trials, missing files, and blocked convolutions that compute something else."""
    other = gradient_graph.trial.write(tmp_path)
    wrong = onnx.load(other[str(block or 16)])
    weight = next(t for t in wrong.graph.initializer if t.name == "b1")
    changed = numpy_helper.to_array(weight) + 1
    for n in wrong.graph.node:  # only the blocked one reads the changed bias
        if n.op_type != "Conv" or n.domain:
            n.input[:] = ["wrong" if i == "b1" else i for i in n.input]
    wrong.graph.initializer.append(numpy_helper.from_array(changed, "wrong"))
    onnx.save(wrong, str(tmp_path / "wrong.onnx"))
    trials = [
        {},
        {"size": str(tmp_path / "none.onnx")},
        {**other, str(block or 16): str(tmp_path / "wrong.onnx")},
    ]
    assert ask(tmp_path, {"trials": [*trials, other]})["sizes"] == [0, 0, 0, block]
