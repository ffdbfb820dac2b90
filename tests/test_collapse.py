"""Collapse: dead layers, exploding values and constant outputs are found, and the cut is rolled back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cutting import tiny
from models import residual_cnn, save, save_samples
from onnx import TensorProto

import condensec
from condensec.collapse import Collapse, Place, Watch
from condensec.data import Samples
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.stages import collapse as stage
from condensec.stages import cycles

N = 6


def network(**changes: np.ndarray) -> ir.Model:
    """``y = Relu(x p + q) c``; the units of the middle by group g0."""
    rng = np.random.default_rng(0)
    weights = {
        "p": rng.normal(size=(4, N)).astype(np.float32),
        "q": np.full(N, 0.1, np.float32),
        "c": rng.normal(size=(N, 3)).astype(np.float32),
    }
    return ir.from_proto(
        tiny(
            "a = MatMul(x, p)\n b = Add(a, q)\n h = Relu(b)\n y = MatMul(h, c)",
            x=["N", 4],
            weights=weights | changes,
        )
    )


def watch(model: ir.Model | None = None) -> Watch:
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    return Watch(model or network(), [Place("g0", "h", -1)], Samples(inputs={"x": x}))


def weight(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()


def test_an_untouched_model_has_not_collapsed() -> None:
    assert watch().check(network()) == ()


def test_dead_units_are_named_in_the_original_numbering_and_are_no_reason_to_stop() -> None:
    analysis = analyze(network())
    kept = [0, 2, 3, 5]
    cut = prune(analysis, {"g0": kept}).model
    assert watch().check(cut, {"h": kept}) == ()
    q = weight(cut, "q")
    q[2] = -100  # the original's unit 3
    cut.graph.initializers["q"].const_value = ir.tensor(q, name="q")
    (found,) = watch().check(cut, {"h": kept})
    assert (found.kind, found.group, found.units) == ("dead units", "g0", (3,))
    assert "1 of 4 units are zero" in found.detail
    assert not found.fatal


def test_a_layer_of_dead_or_constant_units_is_fatal() -> None:
    dead = network(q=np.array([-100] * 4 + [0.1] * 2, np.float32))
    (found,) = watch().check(dead)
    assert (found.kind, found.units, found.fatal) == ("dead layer", (0, 1, 2, 3), True)
    p = weight(network(), "p")
    p[:, :5] = 0
    (found,) = watch().check(network(p=p))
    assert found.kind == "dead layer"
    assert "constant" in found.detail


def test_units_that_were_dead_before_are_nobodys_fault() -> None:
    original = network(q=np.array([-100] * 4 + [0.1] * 2, np.float32))
    assert watch(original).check(original) == ()
    cut = prune(analyze(original), {"g0": [0, 1, 2, 5]}).model
    assert watch(original).check(cut, {"h": [0, 1, 2, 5]}) == ()
    assert watch().check(cut, {"h": [0, 1, 2, 5]})[0].kind == "dead layer"


def test_outputs_that_ignore_the_input_explode_or_are_no_numbers() -> None:
    kinds = [c.kind for c in watch().check(network(c=np.zeros((N, 3), np.float32)))]
    assert kinds == ["constant output"]
    kinds = [c.kind for c in watch().check(network(p=weight(network(), "p") * 1e5))]
    assert kinds == ["exploded"]
    kinds = [c.kind for c in watch().check(network(p=weight(network(), "p") * np.float32(np.nan)))]
    assert "not finite" in kinds
    assert watch().check(network(p=weight(network(), "p") * 100)) == ()


def test_findings_are_sorted_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [
        Collapse(k, "h", "g0", (), f"{k} {i}")
        for i, k in enumerate(("dead layer", "dead units", "exploded", "not finite"))
    ]
    assert stage.note(some) == "dead layer 0; exploded 2; and 1 more"
    assert stage.note(some[1:2]) == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = residual_cnn()
    save(model, tmp_path)
    save_samples(model, tmp_path / "d.npz", 200)
    return tmp_path


def compiled(folder: Path, max_drop: float) -> condensec.Report:
    return condensec.compress(
        folder / "model.onnx",
        target="mobile-cpu",
        data=str(folder / "d.npz"),
        output=str(folder / "out"),
        keep=0.75,
        heal="closed-form",
        max_drop=max_drop,
    )


def test_a_collapsed_candidate_is_rolled_back_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cycles._heal

    def dying(job: Any, *given: Any, **options: Any) -> Any:
        healed, pruned = real(job, *given, **options)
        cut = given[2]
        name = next(i.name for n in cut.model.graph if n.op_type == "Conv" for i in n.inputs[1:2])
        gone = np.zeros(cut.model.graph.initializers[name].shape.numpy(), np.float32)
        # a metric that sees nothing: only the watch can
        return replace(healed, weights={**healed.weights, name: gone}, metric=job.baseline), pruned

    untouched = compiled(folder, 100)
    assert untouched.cycles[0].accepted
    monkeypatch.setattr(cycles, "_heal", dying)
    report = compiled(folder, 100)
    assert not any(c.accepted for c in report.cycles)
    assert report.cycles[0].note.startswith("rolled back: output 'logits' is the same for all")
    assert "12 of 12 units are constant on all samples" in report.cycles[0].note
    assert report.after.params == report.before.params


def test_without_a_guard_a_collapse_is_only_named() -> None:
    found = [Collapse("dead layer", "h", "g0", (), "all gone")]
    for max_drop, forbidden in ((1.0, True), (float("inf"), False)):
        job: Any = SimpleNamespace(config=SimpleNamespace(max_drop=max_drop))
        assert stage.forbids(job, found) is forbidden
        assert not stage.forbids(job, [Collapse("dead units", "h", "g0", (1,), "one gone")])


@pytest.mark.parametrize("outputs", [["k"], ["y", "k"]])
def test_a_model_that_answers_with_a_class_goes_the_whole_line(tmp_path: Path, outputs: list[str]) -> None:
    lines = "a = MatMul(x, p)\n h = Relu(a)\n y = MatMul(h, c)\n k = ArgMax<axis=1, keepdims=0>(y)"
    model = tiny(lines, x=["N", 4], weights={"p": (4, 16), "c": (16, 3)}, y=outputs)
    model.graph.output[-1].type.tensor_type.elem_type = TensorProto.INT64
    save(model, tmp_path)
    report = condensec.compress(tmp_path / "model.onnx", keep=0.5, heal="closed-form", max_drop="inf")
    assert report.after.params == report.before.params / 2
