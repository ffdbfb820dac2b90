"""The sensitivity map: prefixes computed once, layers, metrics, confidence."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny
from models import concat_net, option_a_cnn, residual_cnn, split_net, transformer_encoder, with_batch

from condensec.data import Samples
from condensec.fidelity import output_error, sample_errors
from condensec.metrics import METRICS
from condensec.passes import criteria, segments, sensitivity
from condensec.passes.groups import Analysis, analyze
from condensec.passes.layers import take_out
from condensec.passes.sampling import batches, run
from condensec.passes.segments import Frontier, Line, behind
from condensec.passes.select import unit_order
from condensec.passes.sensitivity import Sensitivity, measure
from condensec.passes.supergraph import build
from condensec.runner import Session


def samples_for(analysis: Analysis, count: int = 24, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    inputs = {}
    for value in analysis.model.graph.inputs:
        shape = (count, *analysis.world.inputs[value.name][1:])
        if value.dtype == ir.DataType.FLOAT:
            inputs[value.name] = rng.normal(size=shape).astype(np.float32)
        else:
            inputs[value.name] = rng.integers(0, 8, shape).astype(np.int64)
    return Samples(inputs=inputs)


def mapped(analysis: Analysis, samples: Samples, **options: object) -> Sensitivity:
    order = unit_order(analysis, criteria.get("l2"))
    return measure(analysis, order, samples, **options)  # type: ignore[arg-type]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments even where a model is too small for them to pay."""
    monkeypatch.setattr(segments, "MACS_A_SEGMENT", 0.0)
    monkeypatch.setattr(segments, "MACS_A_BYTE", 0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "model",
    [residual_cnn, concat_net, split_net, option_a_cnn, transformer_encoder],
    ids=lambda m: m.__name__,
)
def test_reusing_prefixes_changes_nothing_but_rounding(model: object) -> None:
    analysis = analyze(ir.from_proto(model()))  # type: ignore[operator]
    samples = samples_for(analysis)
    fast = mapped(analysis, samples, layers=True)
    slow = mapped(analysis, samples, layers=True, reuse=False)
    assert fast.reused > 0.1
    assert slow.reused == 0
    for name, curve in fast.curves.items():
        assert curve.kept == slow.curves[name].kept
        np.testing.assert_allclose(curve.loss, slow.curves[name].loss, rtol=1e-4, atol=1e-10)
    assert fast.layers.keys() == slow.layers.keys()
    for name, loss in fast.layers.items():
        assert loss.loss == pytest.approx(slow.layers[name].loss, rel=1e-4)
    largest = [max(c.loss) for c in fast.curves.values()]
    assert max(largest) > 2 * min(largest), "all groups alike: mixing them up wouldn't show"


@pytest.mark.usefixtures("eager")
def test_curves_are_the_error_of_the_masked_super_graph() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(analysis)
    order = unit_order(analysis, criteria.get("l2"))
    found = measure(analysis, order, samples, ratios=(0.5,))
    graph = build(analysis)
    session = Session(graph.model)
    reference = run(session, samples, graph.masks(analysis.kept({})))
    for group in analysis.groups:
        half = order[group.id][: group.size // 2]
        error = output_error(reference, run(session, samples, graph.masks(analysis.kept({group.id: half}))))
        assert found.curves[group.id].loss[1] == pytest.approx(error, rel=1e-4)
        worst = order[group.id][group.size // 2 :]
        other = output_error(reference, run(session, samples, graph.masks(analysis.kept({group.id: worst}))))
        assert other != pytest.approx(error, rel=1e-2)


def test_of_a_very_large_model_less_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(analysis)
    whole = mapped(analysis, samples, layers=True)
    size = max(g.size for g in analysis.groups)
    wide = next(g.id for g in analysis.groups if g.size == size)
    ladder = [round(size * share) for share in sensitivity.RATIOS]
    assert (whole.samples, whole.curves[wide].kept) == (24, (size, *ladder, 1))
    monkeypatch.setattr(sensitivity, "MEASURED_PER_SECOND", 1.0)  # the fewest samples are enough, then
    counted = []
    for limit in (1e12, 7.5e6, 1.0):
        monkeypatch.setattr(sensitivity, "MOST_PER_SECOND", limit)
        found = mapped(analysis, samples, layers=True)
        counted.append((found.samples, len(found.curves[wide].kept)))
        assert found.layers.keys() == whole.layers.keys()
    assert counted == [(16, 7), (8, 4), (4, 4)]
    assert found.curves[wide].kept == (size, ladder[1], ladder[3], 1)


def test_a_fixed_batch_that_does_not_divide_the_samples() -> None:
    fixed = analyze(ir.from_proto(with_batch(residual_cnn(), 5)))
    dynamic = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(dynamic, 12)
    assert [len(b["input"]) for b in batches(Session(fixed.model), samples)] == [5, 5, 5]
    a, b = mapped(fixed, samples), mapped(dynamic, samples)
    for name, curve in a.curves.items():
        np.testing.assert_allclose(curve.loss, b.curves[name].loss, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("size", [5, 32])
def test_a_fixed_batch_is_filled_up_under_masks_too(size: int) -> None:
    samples = samples_for(analyze(ir.from_proto(residual_cnn())), count=size + 3)
    found = {}
    for name, model in (("open", residual_cnn()), ("fixed", with_batch(residual_cnn(), size))):
        analysis = analyze(ir.from_proto(model))
        graph = build(analysis)
        masks = graph.masks(analysis.kept({g.id: range(g.size // 2) for g in analysis.groups}))
        found[name] = run(Session(graph.model), samples, masks)
    for name, value in found["open"].items():
        assert len(found["fixed"][name]) == size + 3
        np.testing.assert_allclose(found["fixed"][name], value, rtol=1e-4, atol=1e-5)


def test_layers_are_measured_as_they_are_taken_out() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(analysis)
    found = mapped(analysis, samples, layers=True).layers
    assert found.keys() == {layer.id for layer in analysis.layers}
    assert found
    reference = Session(analysis.model).run_samples(samples)
    for layer in analysis.layers:
        model = analysis.model.clone()
        take_out(model.graph, [layer])
        error = output_error(reference, Session(model).run_samples(samples))
        assert found[layer.id].loss == pytest.approx(error, rel=1e-4)
    assert mapped(analysis, samples).layers == {}


def test_the_metric_is_measured_beside_the_error() -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    plain = samples_for(analysis, 64)
    logits = Session(analysis.model).run_samples(plain)["logits"]
    samples = Samples(inputs=plain.inputs, labels=logits.argmax(axis=1))
    top1 = METRICS["top1"]
    found = mapped(analysis, samples, metric=lambda o, s: top1.value(o, s))
    for curve in found.curves.values():
        assert curve.metric[0] == 1.0
        assert len(curve.metric) == len(curve.deviation) <= len(curve.kept)
    assert min(min(c.metric) for c in found.curves.values()) < 0.9
    assert all(c.metric == () for c in mapped(analysis, samples).curves.values())


def test_the_standard_error_is_that_of_the_mean_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "RELATIVE", 0.0)
    monkeypatch.setattr(sensitivity, "ABSOLUTE", 0.0)
    analysis = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(analysis, 96)
    order = unit_order(analysis, criteria.get("l2"))
    found = measure(analysis, order, samples, ratios=(0.5,))
    graph = build(analysis)
    session = Session(graph.model)
    reference = run(session, samples, graph.masks(analysis.kept({})))
    for group in analysis.groups:
        half = {group.id: order[group.id][: group.size // 2]}
        errors = sample_errors(reference, run(session, samples, graph.masks(analysis.kept(half))))
        resampled = np.random.default_rng(0).choice(errors, (2000, len(errors))).mean(axis=1).std()
        assert found.curves[group.id].deviation[1] == pytest.approx(resampled, rel=0.1)
        assert errors.std() > 5 * resampled


def test_errors_of_samples_average_to_the_error_and_bad_numbers_count_as_wrong() -> None:
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(6, 3)).astype(np.float32), "b": rng.normal(size=(6, 2, 2)).astype(np.float32)}
    y = {name: array + rng.normal(size=array.shape).astype(np.float32) for name, array in x.items()}
    errors = sample_errors(x, y)
    assert errors.shape == (6,)
    assert output_error(x, y) == pytest.approx(errors.mean())
    y["a"][2, 1] = np.nan
    assert output_error(x, y) > 1e4
    assert sample_errors(x, x).max() == 0.0
    scalar = {**x, "c": np.float32(2.0).reshape(())}
    assert sample_errors(scalar, {**y, "c": scalar["c"]}).shape == (1,)


def test_what_lies_behind_a_position_computes_what_the_whole_does() -> None:
    analysis = analyze(ir.from_proto(split_net()))
    samples = samples_for(analysis, 4)
    line = Line(analysis)
    whole = Session(analysis.model).run(dict(samples.inputs))
    for position in range(0, len(line.names), 3):
        frontier = Frontier(line, analysis.model, [dict(samples.inputs)], 1)
        frontier.advance(position)
        assert set(frontier.batches[0]) == set(line.crossing(position)) or position == 0
        rest = behind(analysis.model, line.names[:position], frontier.batches[0])
        found = Session(rest).run(frontier.batches[0])
        for name, array in found.items():
            np.testing.assert_allclose(array, whole[name], rtol=1e-4, atol=1e-5)
        assert found or set(whole) <= set(frontier.batches[0])
        frontier.close()


def test_kept_values_are_spilled_to_disk_and_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SPILL_BYTES", 1)
    analysis = analyze(ir.from_proto(residual_cnn()))
    line = Line(analysis)
    frontier = Frontier(line, analysis.model, [dict(samples_for(analysis, 4).inputs)], 1)
    frontier.advance(len(line.names) // 2)
    assert all(isinstance(a, np.memmap) for a in frontier.batches[0].values())
    folder = frontier._folder
    assert folder is not None
    frontier.close()
    assert not os.path.exists(folder.name)


def test_values_that_a_branch_captures_cross_too() -> None:
    model = tiny(
        "a = MatMul(x, p)\n h = Relu(a)\n c = ReduceSum<keepdims=0>(h)\n z = Constant<value_float=0.0>()\n"
        "f = Greater(c, z)\n b = MatMul(h, q)\n y = Add(b, b)",
        x=["N", 4],
        weights={"p": [4, 6], "q": [6, 3]},
    )
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["h", "q"], ["t"])],
        "then",
        [],
        [onnx.helper.make_tensor_value_info("t", 1, None)],
    )
    model.graph.node.insert(
        6, onnx.helper.make_node("If", ["f"], ["i"], "If", then_branch=inner, else_branch=inner)
    )
    model.graph.node[7].input[1] = "i"
    analysis = analyze(ir.from_proto(model))
    line = Line(analysis)
    feeds = dict(samples_for(analysis, 4).inputs)
    whole = Session(analysis.runnable).run(feeds)["y"]
    for position in range(1, len(line.names)):
        frontier = Frontier(line, analysis.runnable, [feeds], 1)
        frontier.advance(position)
        rest = behind(analysis.runnable, line.names[:position], frontier.batches[0])
        np.testing.assert_allclose(Session(rest).run(frontier.batches[0])["y"], whole, rtol=1e-5)
        frontier.close()


def test_a_loss_that_is_known_well_takes_fewer_samples_and_stays_within_its_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    analysis = analyze(ir.from_proto(residual_cnn()))
    samples = samples_for(analysis, 512)
    calls: list[int] = []
    go = Session.run

    def counted(self: Session, feeds: object, outputs: object = None) -> object:
        calls.append(1)
        return go(self, feeds, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", counted)
    few, few_calls = mapped(analysis, samples, most=512), len(calls)
    monkeypatch.setattr(sensitivity, "RELATIVE", 0.0)
    monkeypatch.setattr(sensitivity, "ABSOLUTE", 0.0)
    calls.clear()
    every = mapped(analysis, samples, most=512)
    assert few_calls < 0.8 * len(calls)
    off, known = [], 0
    for name, curve in few.curves.items():
        other = every.curves[name]
        for i in range(1, len(curve.deviation)):
            assert curve.deviation[i] <= max(0.05 * curve.loss[i], 1e-4) or curve.loss[i] == other.loss[i]
            off.append(abs(curve.loss[i] - other.loss[i]) / max(curve.deviation[i], 1e-12))
            known += curve.loss[i] != other.loss[i]
    assert known > 5, "all losses took all samples: nothing is compared"
    assert np.mean(np.array(off) < 2.5) > 0.9
