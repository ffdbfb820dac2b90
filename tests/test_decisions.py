"""Models that answer with decisions alone: their scores are seen inside, and nowhere in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny
from models import save
from onnx import TensorProto, numpy_helper

import condensec
from condensec.data import Samples, Signature, TensorSpec
from condensec.decisions import scores, with_scores, without_scores
from condensec.fidelity import sample_errors
from condensec.metrics import METRICS, resolve
from condensec.runner import Session

DENSE = "a = MatMul(x, p)\n h = Relu(a)\n s = MatMul(h, c)\n"
X = np.random.default_rng(0).standard_normal((160, 8)).astype(np.float32)


def deciding(ending: str, dtype: int, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    shapes = {"p": (8, 32), "c": (32, 5)}
    return tiny(DENSE + ending, x=["N", 8], weights={**shapes, **(weights or {})}, y_type=dtype)


TABLE = {"table": np.array([7, 3, 9, 4, 1])}
HALF = {"half": np.float32(0.5)}


@pytest.mark.parametrize(
    ("ending", "dtype", "weights", "found"),
    [
        ("y = ArgMax<axis=1, keepdims=0>(s)", TensorProto.INT64, {}, ("s",)),
        ("k = ArgMax<axis=1>(s)\n y = Cast<to=2>(k)", TensorProto.UINT8, {}, ("s",)),
        ("q = Sigmoid(s)\n y = Greater(q, half)", TensorProto.BOOL, HALF, ("q",)),
        ("k = ArgMax<axis=1>(s)\n y = Gather(table, k)", TensorProto.INT64, TABLE, ("s",)),
        ("q = Sigmoid(s)\n r = Round(q)\n y = Cast<to=2>(r)", TensorProto.UINT8, {}, ("q",)),
        ("y = Identity(s)", TensorProto.FLOAT, {}, ()),
        ("y = Shape(s)", TensorProto.INT64, {}, ()),
    ],
)
def test_the_scores_behind_a_decision(
    ending: str, dtype: int, weights: dict[str, np.ndarray], found: tuple[str, ...]
) -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(deciding(ending, dtype, weights)))
    assert scores(model) == found
    more = with_scores(model)
    assert [v.name for v in more.graph.outputs] == ["y", *found]
    assert [v.name for v in model.graph.outputs] == ["y"], "the original is left as it was"
    back = without_scores(more, frozenset(("y",)))
    assert [v.name for v in back.graph.outputs] == ["y"]
    given = [Session(m).run({"x": X}, ["y"])["y"] for m in (model, more, back)]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], given[2])


def test_a_cut_is_chosen_and_trained_by_the_scores(tmp_path: Path) -> None:
    """Half of the units are the other half once more: choice and training can see that, labels are blind."""
    rng = np.random.default_rng(1)
    p, c = rng.standard_normal((8, 16)).astype(np.float32), rng.standard_normal((16, 5)).astype(np.float32)
    weights = {"p": np.hstack([p, 0.1 * p]), "c": np.vstack([c, 0.1 * c])}
    save(deciding("y = ArgMax<axis=1, keepdims=0>(s)", TensorProto.INT64, weights), tmp_path)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((800, 8)).astype(np.float32))
    report = condensec.compress(
        tmp_path / "model.onnx", data=str(tmp_path / "d.npz"), keep=0.5, align=1,
        heal="epochs=4,closed-form=off", max_drop="inf", criterion="random", output=tmp_path / "out",
    )  # fmt: skip
    assert report.healing is not None
    assert report.healing.steps > 0
    assert report.after.metric is not None
    assert report.after.metric.name == "agreement"
    assert all(curve.loss[-1] > 0 for curve in report.sensitivity.values()) if report.sensitivity else True
    cut = onnx.load(tmp_path / "out" / "model.onnx")
    assert [v.name for v in cut.graph.output] == ["y"]
    before, after = report.cycles[-1].metric_pruned, report.cycles[-1].metric_healed
    assert after > before


@pytest.mark.parametrize("quantize", ["int8", "auto"])
@pytest.mark.parametrize(
    "ending", ["y = ArgMax<axis=1, keepdims=0>(s)", "k = Cast<to=7>(s)\n y = Mod(k, k3)"]
)
def test_layers_are_quantized_by_what_they_do_to_the_scores(
    tmp_path: Path, quantize: str, ending: str
) -> None:
    """Where no scores are found either, no layer is the worst, and quantizing goes on."""
    save(deciding(ending, TensorProto.INT64, {"k3": np.array(3)}), tmp_path)
    np.savez(tmp_path / "d.npz", x=X)
    report = condensec.compress(
        tmp_path / "model.onnx", data=str(tmp_path / "d.npz"), budget="macs<=1x", heal="off",
        quantize=quantize, output=tmp_path / "out",
    )  # fmt: skip
    cut = onnx.load(tmp_path / "out" / "host" / "model.onnx")
    assert [v.name for v in cut.graph.output] == ["y"]
    assert report.targets["host"].precision in ("int8", "fp32")


def _signature(dtype: str, *dims: int | str) -> Signature:
    return Signature(
        (TensorSpec("x", np.dtype(np.float32), ("N", 8)),), (TensorSpec("y", np.dtype(dtype), ("N", *dims)),)
    )


def test_metrics_of_decisions() -> None:
    labels = np.array([[0, 1, 1, 2], [3, 3, 0, 0]])
    given = {"y": np.array([[0, 1, 2, 2], [3, 0, 0, 1]])}
    samples = Samples({"x": X[:2]}, labels)
    assert METRICS["top1"].per_sample(given, samples).tolist() == [0.75, 0.5]
    assert METRICS["agreement"].per_sample(given, samples, {"y": labels}).tolist() == [0.75, 0.5]
    assert resolve(None, samples, _signature("int64", 4)).name == "top1"
    assert resolve(None, Samples({"x": X[:2]}), _signature("int64", 4)).name == "agreement"
    assert resolve(None, Samples({"x": X[:2]}, labels[:, 0]), _signature("int64")).name == "top1"
    assert resolve(None, samples, _signature("float32", 7, 4)).name == "cosine"


def test_a_training_that_fails_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSEC_HEAL_PYTHON", str(tmp_path / "none"))
    save(deciding("y = ArgMax<axis=1, keepdims=0>(s)", TensorProto.INT64), tmp_path)
    np.savez(tmp_path / "d.npz", x=X)
    report = condensec.compress(
        tmp_path / "model.onnx", data=str(tmp_path / "d.npz"), keep=0.5, heal="epochs=1", max_drop="inf"
    )
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("healing failed: CONDENSEC_HEAL_PYTHON")
    assert report.after.params < report.before.params


def test_quantized_scores_are_no_decisions() -> None:
    reference = np.array([[9, 200, 3], [7, 8, 90]], np.uint8)
    given = np.array([[9, 190, 3], [90, 8, 7]], np.uint8)
    samples = Samples({"x": X[:2]}, np.array([1, 2]))
    assert resolve(None, samples, _signature("uint8", 3)).name == "top1"
    assert METRICS["top1"].per_sample({"y": given}, samples).tolist() == [1, 0]
    assert METRICS["agreement"].per_sample({"y": given}, samples, {"y": reference}).tolist() == [1, 0]
    errors = sample_errors({"y": reference}, {"y": given})
    variance = ((reference - reference.astype(float).mean(axis=0)) ** 2).mean()
    np.testing.assert_allclose(errors, [100 / 3 / variance, 2 * 83**2 / 3 / variance])
    assert sample_errors({"y": reference.astype(np.int64)}, {"y": given}).tolist() == [0]


def test_a_student_of_the_users_own_learns_by_the_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = deciding("y = ArgMax<axis=1, keepdims=0>(s)", TensorProto.INT64)
    save(given, tmp_path)
    for tensor in given.graph.initializer:
        array = numpy_helper.to_array(tensor)
        noise = rng.normal(scale=0.5 * array.std(), size=array.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array + noise, tensor.name))
    onnx.save(given, tmp_path / "student.onnx")
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((1600, 8)).astype(np.float32))
    result = condensec.heal(
        tmp_path / "student.onnx", tmp_path / "model.onnx", str(tmp_path / "d.npz"), tmp_path / "healed.onnx",
        heal="epochs=5",
    )  # fmt: skip
    assert result.after > result.before + 0.03
    assert [v.name for v in onnx.load(tmp_path / "healed.onnx").graph.output] == ["y"]
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "student.onnx", "d.npz", "healed.onnx"}
