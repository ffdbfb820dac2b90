"""Training of int8 graphs: floats rounded in every step, gradients straight through, integers at the end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny
from healing_tools import Case
from models import mlp, random_feeds, residual_cnn, save, save_samples
from quantizing import int8, integers

from condensec import api
from condensec.healing import client, environment
from condensec.healing.client import _BOOT
from condensec.healing.graph import Emitter
from condensec.healing.losses import LOSS
from condensec.healing.qdq import as_stored, grids, with_float_weights
from condensec.healing.static import infer, run
from condensec.healing.training import differentiable_copy
from condensec.runner import Session

_GRADIENTS = """
import os, sys
import numpy as np
import onnxruntime as ort
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
from heal_worker.engine import gradient_model
raw = open(sys.argv[2], "rb").read()
stored = np.load(sys.argv[3])
session = ort.InferenceSession(gradient_model(raw, list(stored.files)), providers=["CPUExecutionProvider"])
names = [n + "_grad" for n in stored.files]
np.savez(sys.argv[4], **dict(zip(stored.files, session.run(names, dict(stored)))))
"""


def gradients(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """Gradients of a random weighted sum of ``y`` towards inputs and weights, and the weighting."""
    graph, weights, barriers = differentiable_copy(model, feeds)
    assert not barriers
    y = run(graph, feeds)["y"]
    mix = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    e = Emitter(graph, "loss")
    e.op("ReduceSum", e.op("Mul", "y", e.const(mix)), keepdims=0, out=LOSS)
    graph.nodes += e.nodes
    graph.outputs = [LOSS]
    graph.shapes[LOSS], graph.types[LOSS] = (), onnx.TensorProto.FLOAT
    infer(graph)
    (folder / "m.onnx").write_bytes(graph.model(as_inputs=weights).SerializeToString())
    np.savez(folder / "f.npz", **feeds, **{w: graph.constants[w] for w in weights})
    subprocess.run(
        [
            str(environment.ensure()), "-I", "-c", _BOOT + _GRADIENTS,
            str(Path(client.__file__).parent / "worker"),
            *(str(folder / name) for name in ("m.onnx", "f.npz", "g.npz")),
        ],
        check=True, timeout=120,
    )  # fmt: skip
    with np.load(folder / "g.npz") as found:
        return {**found, "mix": mix, "value": y}


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_gradients_pass_rounding_and_stop_where_it_saturates(kind: Any, tmp_path: Path) -> None:
    scale, zero = np.float32(0.1), kind(20)
    model = tiny(
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        x=["N", 6], weights={"s": scale, "z": zero}, opset=13,
    )  # fmt: skip
    x = np.array([[0.123, -0.456, 99.0, -99.0, 3.21, 0.0]], np.float32)
    found = gradients(model, {"x": x}, tmp_path)
    low, high = (np.iinfo(kind).min - 20) * 0.1, (np.iinfo(kind).max - 20) * 0.1
    inside = (x > low) & (x < high)
    assert np.allclose(found["x"], np.where(inside, found["mix"], 0.0), atol=1e-6)
    assert inside.any()
    assert not inside.all()
    assert np.array_equal(found["value"], Session(model).run({"x": x})["y"])
    assert np.abs(found["value"] - np.clip(x, low, high)).max() > 1e-3  # the control: it does round


def test_scales_for_each_channel_have_their_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 0.1, 0.5], np.float32)
    model = tiny(
        """q = QuantizeLinear<axis=0>(w, s, z) d = DequantizeLinear<axis=0>(q, s, z)
        y = Gemm<transB=1>(x, d)""",
        x=["N", 4], opset=13,
        weights={"w": rng.standard_normal((3, 4)).astype(np.float32), "s": scale, "z": np.zeros(3, np.int8)},
    )  # fmt: skip
    x = rng.standard_normal((5, 4)).astype(np.float32)
    found = gradients(model, {"x": x}, tmp_path)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    inside = (np.round(weight / scale[:, None]) >= -128) & (np.round(weight / scale[:, None]) <= 127)
    assert np.allclose(found["w"], (found["mix"].T @ x) * inside, atol=1e-4)
    assert inside.all(axis=1).sum() >= 2


def test_a_rounding_of_the_users_own_has_no_gradient() -> None:
    model, feeds = Case("Round", ((2, 3),)).model()
    _, _, barriers = differentiable_copy(model, feeds)
    assert "piecewise constant" in next(iter(barriers.values()))


@pytest.mark.parametrize("make", [mlp, residual_cnn])
def test_floats_in_place_of_integers_compute_the_same_and_come_back(make: Any) -> None:
    model = ir.from_proto(int8(make(), "qdq"))
    floats, found = with_float_weights(model)
    feeds = random_feeds(make(), 4)
    a, b = (Session(m, optimize=False).run(feeds)["logits"] for m in (model, floats))
    assert np.allclose(a, b, atol=1e-5)
    stored = integers(ir.to_proto(model))
    assert set(found) == set(grids(model)) >= {n for n, w in stored.items() if w.ndim > 1}
    trained = {name: floats.graph.initializers[name].const_value.numpy() for name in found}  # type: ignore[union-attr]
    assert all(w.dtype == np.float32 for w in trained.values())
    back = as_stored(trained, found)
    assert all(np.array_equal(back[n], stored[n]) and back[n].dtype == stored[n].dtype for n in found)
    moved = as_stored({n: w * 1.5 + 0.05 for n, w in trained.items()}, found)
    assert all(not np.array_equal(moved[n], stored[n]) for n in found if stored[n].ndim > 1)
    assert max(np.abs(moved[n]).max() for n in found if stored[n].dtype == np.int8) <= 128  # saturated


def test_a_quantized_model_is_cut_and_trained_in_integers(tmp_path: Path) -> None:
    plain = mlp()
    path = tmp_path / "int8.onnx"
    onnx.save(int8(plain, "qdq"), path)
    data = save_samples(plain, tmp_path / "d.npz", count=256)
    report = api.compress(
        path, output=tmp_path / "o", data=data, keep=0.5, max_drop=float("inf"), target="mobile-cpu",
        heal="epochs=3,closed-form=off,lr=0.02,batch=16", jobs=1, align=1,
    )  # fmt: skip
    assert report.healing.steps > 0
    cut = integers(onnx.load(tmp_path / "o" / "model.onnx"))
    assert {w.dtype for w in cut.values()} == {np.dtype(np.int8), np.dtype(np.int32)}
    assert report.cycles[-1].metric_healed > report.cycles[-1].metric_pruned


def test_integers_that_no_healing_reaches_are_said(tmp_path: Path) -> None:
    plain = mlp()
    data = save_samples(plain, tmp_path / "d.npz", count=96)
    options: dict[str, Any] = {"keep": 0.5, "max_drop": float("inf"), "target": "mobile-cpu", "align": 1}
    for form, said in (("qoperator", True), ("qdq", False)):
        path = tmp_path / f"{form}.onnx"
        onnx.save(int8(plain, form), path)
        report = api.compress(path, output=tmp_path / form, data=data, heal="closed-form", jobs=1, **options)
        assert any("stored as integers" in note for note in report.notes) == said
        assert report.after.params < 0.8 * report.before.params


def test_what_is_emitted_in_int8_is_trained_where_asked(tmp_path: Path) -> None:
    plain = mlp()
    path, data = save(plain, tmp_path), save_samples(plain, tmp_path / "d.npz", count=256)
    options: dict[str, Any] = {
        "data": data, "patterns": "none", "quantize": "int8", "target": "mobile-cpu", "metric": "cosine",
        "max_drop": 50.0, "jobs": 1,
    }  # fmt: skip
    notes = {}
    for qat in ("on", "off"):
        heal = f"epochs=2,lr=0.002,qat={qat}"
        report = api.compress(path, output=tmp_path / qat, heal=heal, **options)
        notes[qat] = " ".join(report.targets["mobile-cpu"].notes)
        assert report.targets["mobile-cpu"].precision == "int8"
    assert "in int8" in notes["on"].replace("int8 (QDQ", "")
    assert "training in int8" not in notes["off"]
    assert "trained in int8" not in notes["off"]


def test_a_student_of_ones_own_in_int8_learns_too(tmp_path: Path) -> None:
    from condensec.config import configure
    from condensec.stages.graphs import heal

    plain = mlp()
    teacher, data = save(plain, tmp_path), save_samples(plain, tmp_path / "d.npz", count=256)
    student, out = tmp_path / "int8.onnx", tmp_path / "out.onnx"
    model = int8(plain, "qdq")
    for tensor in model.graph.initializer:  # something to learn: the last layer's weights are half gone
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim > 1:
            halved = np.where(np.arange(array.size).reshape(array.shape) % 2, array, array // 2)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved.astype(np.int8), tensor.name))
    onnx.save(model, student)
    config = configure(
        model=student, data=data, heal="epochs=3,lr=0.02,batch=16", max_drop="inf", jobs=1, seed=0,
    )  # fmt: skip
    result = heal(config, teacher, out)
    assert result.steps > 0
    assert result.after > result.before
    before, after = integers(model), integers(onnx.load(out))
    assert {n: w.dtype for n, w in after.items()} == {n: w.dtype for n, w in before.items()}
    assert any(not np.array_equal(after[n], w) for n, w in before.items())
    assert not list(tmp_path.glob(".*.onnx"))
