"""Padded samples: which lengths they are cut to, when that is right, and that training gives the same."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import half
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.healing import HealOptions, HealResult, closed_form, heal, lengths
from condensec.healing.batches import batches
from condensec.healing.worker.data import Batches, Kinds
from condensec.passes.groups import analyze
from condensec.passes.prune import prune

LONGEST = 16


def padded(filled: np.ndarray, seed: int = 0) -> Samples:
    """Random tokens, with a mask that says so many of them count."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(LONGEST) < filled[:, None]).astype(np.int64)
    ids = rng.integers(1, models.VOCABULARY, mask.shape)
    return Samples({"input_ids": ids * mask, "attention_mask": mask})


def mixed(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.where(rng.random(count) < 0.1, LONGEST, rng.integers(2, 6, count))


def unmasked() -> onnx.ModelProto:
    """Takes a mask, and lets the padding count all the same."""
    rng = np.random.default_rng(0)
    weights = {"table": (models.VOCABULARY, 8), "fc": (8, 10)}
    stored = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    stored.append(numpy_helper.from_array(np.array([1]), "one"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("ReduceMean", ["x", "one"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "fc"], ["y"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
        helper.make_node("ReduceMax", ["m", "one"], ["kept"], keepdims=1),
        helper.make_node("Mul", ["y", "kept"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "S"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "unmasked", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_other_lengths_leave_fewer_positions(given_lengths: list[int]) -> None:
    filled = np.array(given_lengths)
    sizes = lengths.choose(filled, LONGEST)

    def left(tried: tuple[int, ...]) -> int:
        return sum(min(size for size in tried if size >= n) for n in given_lengths)

    fewest = min(
        left((*short, LONGEST))
        for count in range(1, lengths.MOST)
        for short in combinations(range(1, LONGEST), count)
    )
    if fewest < lengths.WORTH * LONGEST * len(filled):
        assert left(sizes) == fewest
    else:
        assert sizes == (LONGEST,)
    assert sizes[-1] == LONGEST
    assert all(any(a < n <= b for n in given_lengths) for a, b in zip((0, *sizes), sizes[:-1], strict=False))


def test_padding_is_found_by_its_mask() -> None:
    model, filled = models.transformer_encoder(), mixed(50)
    samples = padded(filled)
    found = lengths.find(model, samples)
    assert found is not None
    assert found.axes == {"input_ids": 1, "attention_mask": 1}
    at = np.asarray(found.sizes)[found.kinds(samples)]
    assert (at >= filled).all()
    short = found.cut(samples, found.sizes[0])
    np.testing.assert_array_equal(short.inputs["input_ids"], samples.inputs["input_ids"][:, : found.sizes[0]])


def renamed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    for node in model.graph.node:
        node.input[:] = [name if value == "attention_mask" else value for value in node.input]
    model.graph.input[1].name = name
    return model


def test_nothing_is_cut_off_where_it_could_matter() -> None:
    model, samples = models.transformer_encoder(), padded(mixed(50))
    left = samples.inputs["attention_mask"][:, ::-1]
    assert lengths.find(model, Samples({**samples.inputs, "attention_mask": left})) is None, "padded in front"
    weighted = 2 * samples.inputs["attention_mask"]
    assert lengths.find(model, Samples({**samples.inputs, "attention_mask": weighted})) is None, "no mask"
    assert lengths.find(model, padded(np.full(50, LONGEST))) is None, "no padding"
    other = {"input_ids": samples.inputs["input_ids"], "kept": samples.inputs["attention_mask"]}
    assert lengths.find(renamed(models.transformer_encoder(), "kept"), Samples(other)) is None, "unnamed"
    fixed = models.transformer_encoder()
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = LONGEST
    assert lengths.find(fixed, samples) is None, "one length only"
    inside = models.transformer_encoder()
    inside.graph.output.append(
        helper.make_tensor_value_info(inside.graph.node[0].output[0], TensorProto.FLOAT, ["N", "S", 32])
    )
    assert lengths.find(inside, samples) is None, "an output that is padded"


def test_models_are_run_both_ways_before_anything_is_cut_off() -> None:
    model, samples = models.transformer_encoder(), padded(mixed(60))
    found = lengths.find(model, samples)
    assert found is not None
    assert lengths.hold(found, [(model, ["logits"], [])], samples)
    inside = next(node.output[0] for node in model.graph.node if node.name == "layer0.add2")
    assert lengths.hold(found, [(model, ["logits"], [inside])], samples)
    assert lengths.find(unmasked(), samples) == found
    assert not lengths.hold(found, [(model, ["logits"], []), (unmasked(), ["logits"], [])], samples)


def healed(tmp_path: Path, samples: Samples, teacher: onnx.ModelProto, **more: object) -> HealResult:
    student = models.transformer_encoder(seed=1)
    paths = [tmp_path / "student.onnx", tmp_path / "teacher.onnx"]
    for path, model in zip(paths, (student, teacher), strict=True):
        onnx.save(model, path)
    options = HealOptions(**{"batch": 16, "lr": 0.01, "jobs": 2, "average": 0.0, **more})  # type: ignore[arg-type]
    return heal(*paths, samples, samples.subset(np.arange(8)), options, state=tmp_path / "state")


def test_training_at_a_shorter_length_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = padded(np.full(16, 4))
    teacher = models.transformer_encoder()
    held: list[bool] = []
    real = lengths.hold

    def watched(*given: object) -> bool:
        held.append(real(*given))  # type: ignore[arg-type]
        return held[-1]

    monkeypatch.setattr(lengths, "hold", watched)
    short = healed(tmp_path, samples, teacher, epochs=3)
    assert held == [True]
    monkeypatch.setattr(lengths, "hold", lambda *given: False)
    whole = healed(tmp_path, samples, teacher, epochs=3)
    assert short.steps == whole.steps == 3
    assert set(short.weights) == set(whole.weights)
    start = {t.name: numpy_helper.to_array(t) for t in models.transformer_encoder(seed=1).graph.initializer}
    moved = max(np.abs(array - start[name]).max() for name, array in whole.weights.items())
    off = max(np.abs(array - whole.weights[name]).max() for name, array in short.weights.items())
    assert off < 0.02 * moved


def test_samples_of_all_lengths_are_learned_from(tmp_path: Path) -> None:
    samples = padded(mixed(200))
    found = lengths.find(models.transformer_encoder(), samples, 16)
    assert found is not None
    assert np.bincount(found.kinds(samples)).min() > 8
    result = healed(tmp_path, samples, models.transformer_encoder(), epochs=4)
    assert result.steps == 4 * (200 // 16)
    assert result.after < 0.9 * result.before


def test_batches_hold_samples_of_one_kind_cut_to_its_shape(tmp_path: Path) -> None:
    kinds = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    values = np.arange(11)[:, None] * np.ones((1, 6), np.float32)
    np.save(tmp_path / "x.npy", values)
    given_kinds = Kinds(kinds, [{"x": [3]}, {"x": [6]}])
    batches = Batches({"x": str(tmp_path / "x.npy")}, 2, 0, given_kinds)
    seen: list[int] = []
    for feeds, new in batches.in_order():
        rows = feeds["x"][:, 0].astype(int)
        assert len(set(kinds[rows])) == 1
        assert feeds["x"].shape == (2, (3, 6)[kinds[rows[0]]])
        seen += rows[:new].tolist()
    assert sorted(seen) == list(range(11)), "each sample once"
    epochs = [[f["x"][:, 0].astype(int).tolist() for f in batches.epoch(e)] for e in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(epochs[0]) == given_kinds.steps(2) == 4 + 1
    assert given_kinds.batches(3).tolist() == [2, 1]
    assert given_kinds.batches(5).tolist() == [1, 1], "nobody is left out"
    assert Kinds(np.array([0] * 7 + [1] * 5), [{}, {}]).batches(4).tolist() == [2, 1]
    assert all(len(set(kinds[rows])) == 1 for rows in epochs[0])
    assert [f["x"][:, 0].tolist() for f in batches.epoch(0, 2)] == epochs[0][2:]


def test_repair_leaves_padding_out() -> None:
    """Layers are fitted to what counts: the same as with samples that were never padded."""
    analysis = analyze(ir.from_proto(models.transformer_encoder()))
    cut = prune(analysis, half(analysis))
    samples = padded(np.full(160, 4))
    bare = Samples({name: array[:, :4] for name, array in samples.inputs.items()})
    found, wanted = (
        closed_form.repair(analysis.model, cut.model, given_samples, cut.plan, threads=1)
        for given_samples in (samples, bare)
    )
    assert found.weights.keys() == wanted.weights.keys() != set()
    for name, array in wanted.weights.items():
        np.testing.assert_allclose(found.weights[name], array, rtol=0.01, atol=0.01 * np.abs(array).max())


def test_repair_takes_each_sample_once_at_its_length() -> None:
    model, filled = models.transformer_encoder(), mixed(90)
    samples = padded(filled)
    found = batches(model, model, ["logits"], samples)
    rows = np.concatenate(
        [np.pad(b["input_ids"], ((0, 0), (0, LONGEST - b["input_ids"].shape[1]))) for b in found]
    )
    wanted = samples.inputs["input_ids"]
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, wanted.tolist()))
    assert {b["input_ids"].shape[1] for b in found} == {*lengths.find(model, samples, 18).sizes}  # type: ignore[union-attr]
    last = found[-len(found) // 5 :]
    assert len({b["input_ids"].shape[1] for b in last}) > 1, "those held out are of several lengths"
    kept = batches(unmasked(), unmasked(), ["logits"], samples)
    assert {b["input_ids"].shape[1] for b in kept} == {LONGEST}
