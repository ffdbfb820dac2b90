"""Bias correction: what rounding the weights adds to outputs on average is taken off again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.hardware import bias, sensitive
from condensec.hardware.calibration import observe, ranges
from condensec.hardware.quantize import Scheme, quantize
from condensec.runner import Session

KINDS = ("conv", "no bias", "depthwise", "grouped", "gemm", "gemm transB")


def layer(kind: str) -> tuple[onnx.ModelProto, Samples]:
    """One layer whose inputs are all positive, so that rounding errors add up."""
    rng = np.random.default_rng(3)
    conv = not kind.startswith("gemm")
    groups = {"depthwise": 16, "grouped": 4}.get(kind, 1)
    shape = (16, 16 // groups, 3, 3) if conv else (16, 16)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight.reshape(16, -1)[:, 0] *= 40  # what sets the scale leaves few steps for the others
    if kind == "gemm":
        weight = weight.T.copy()
    values = {"w": weight, "b": rng.standard_normal(16).astype(np.float32)}
    names = ["x", "w"] if kind == "no bias" else ["x", "w", "b"]
    given = {"group": groups} if conv else {"transB": int(kind == "gemm transB"), "alpha": 0.5}
    node = helper.make_node("Conv" if conv else "Gemm", names, ["y"], name="layer", **given)
    size = ["N", 16, 8, 8] if conv else ["N", 16]
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 6, 6] if conv else ["N", 16])],
        [numpy_helper.from_array(values[name], name) for name in names[1:]],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.uniform(0, 1, (64, 16, 8, 8) if conv else (512, 16)) * np.linspace(0.2, 1, 16).reshape(
        (1, -1, 1, 1) if conv else (1, -1)
    )
    return model, Samples({"x": x.astype(np.float32)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_every_output_stays_what_it_was(tmp_path: Path, kind: str) -> None:
    model, samples = layer(kind)
    onnx.save(model, tmp_path / "m.onnx")
    values = observe(tmp_path / "m.onnx", samples)
    found = ranges(values, "minmax")
    means = {name: one.means for name, one in values.items() if one.means is not None}
    x = samples.inputs["x"]
    np.testing.assert_allclose(means["x"], np.moveaxis(x, 1, 0).reshape(16, -1).mean(axis=1), rtol=0.1)
    shifts = bias.shifts(model, means, True)
    wanted = Session(model).run_samples(samples)["y"]
    moved = {}
    for name, given in (("plain", None), ("corrected", shifts)):
        quantize(tmp_path / "m.onnx", tmp_path / f"{name}.onnx", found, Scheme(), given)
        got = Session(tmp_path / f"{name}.onnx", optimize=False).run_samples(samples)["y"]
        axes = (0, 2, 3) if wanted.ndim > 2 else (0,)
        moved[name] = np.abs((got - wanted).mean(axis=axes)).mean()
    assert shifts["layer"].shape == (16,)
    assert moved["corrected"] < 0.3 * moved["plain"]


def test_layers_in_fp32_keep_their_bias_and_shared_ones_stay_for_others() -> None:
    model, _ = layer("conv")
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name, second.output[0] = "other", "z"
    shifts = {"layer": np.ones(16), "other": np.ones(16)}
    bias.correct(model, shifts, exclude=("other",))
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert model.graph.node[1].input[2] == "b"
    np.testing.assert_allclose(tensors[model.graph.node[0].input[2]], tensors["b"] - 1, rtol=1e-6)


def test_the_sensitivity_of_a_layer_counts_with_its_correction(tmp_path: Path) -> None:
    model, samples = layer("depthwise")
    onnx.save(model, tmp_path / "m.onnx")
    values = observe(tmp_path / "m.onnx", samples)
    means = {name: one.means for name, one in values.items() if one.means is not None}
    shifts = bias.shifts(model, means, True)
    source, found = tmp_path / "m.onnx", ranges(values, "minmax")
    plain = sensitive.layer_errors(source, found, samples)[0]
    better = sensitive.layer_errors(source, found, samples, shifts=shifts)[0]
    assert better.error < 0.7 * plain.error


def test_what_has_no_constant_bias_is_left_alone() -> None:
    model, _ = layer("gemm")
    model.graph.node[0].attribute.append(helper.make_attribute("beta", 2.0))
    assert bias.shifts(model, {"x": np.ones(16)}, True) == {}
    model, _ = layer("gemm")
    assert bias.shifts(model, {"x": np.ones(8)}, True) == {}
    assert bias.shifts(model, {}, True) == {}
