"""``--patterns layers``: whole residual blocks go, ranked by what they are worth, proven and healed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from line_tools import compress
from models import residual_cnn, save, save_samples, transformer_encoder

from condensec import io, verify
from condensec.errors import PostconditionError
from condensec.passes.groups import analyze
from condensec.passes.layers import Layer
from condensec.passes.segments import Batch
from condensec.passes.similarity import similarities
from condensec.passes.widths import Widths
from condensec.plan import read_plan
from condensec.report.model import read_report
from condensec.report.terminal import text
from condensec.stages import cycles


def encoder() -> onnx.ModelProto:
    return transformer_encoder(layers=2, hidden=16, heads=4, ffn=24)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(encoder(), tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_samples(encoder(), tmp_path / "data.npz", count=96)


def scaled(proto: onnx.ModelProto, layer: Layer, factor: float) -> onnx.ModelProto:
    """The model with a block's own contribution made smaller: its last weights times a factor."""
    weights = {w.name: w for w in proto.graph.initializer}
    last = next(n for n in proto.graph.node if n.name == layer.weighted[-1])
    after = [n for n in proto.graph.node if set(last.output) & set(n.input)]
    for node in (last, *after[:1]):
        for name in node.input:
            if name in weights and node.op_type != "LayerNormalization":
                array = onnx.numpy_helper.to_array(weights[name]) * np.float32(factor)
                weights[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    return proto


def test_blocks_leave_the_file_and_the_cut_is_proven(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = compress(model, out, data=data, patterns="layers", budget="macs<=0.7x")
    plan = read_plan(out / "plan.json")
    assert plan.removed_layers
    assert not plan.kept(), "layers alone were asked for"
    assert report.status == "ok"
    assert report.after.macs <= 0.7 * report.before.macs
    assert report.verification.exact.passed
    assert report.verification.exact.layers == len(plan.removed_layers)
    assert "removed layer" in text(report)
    gone = {x.name for x in report.layers if x.removed}
    analysis = analyze(io.load(model))
    removed = [x.id for x in plan.removed_layers]
    inside = {n for x in analysis.layers if x.id in removed for n in x.weighted}
    assert gone == inside & {x.name for x in report.layers}
    assert not inside & {n.name for n in onnx.load(out / "model.onnx").graph.node}
    assert read_report(out / "report.json") == report
    other = verify.check(
        io.load(model),
        plan.with_removed(()),
        io.load(out / "model.onnx"),
        {k: v[:2] for k, v in np.load(data).items() if k in {i.name for i in onnx.load(model).graph.input}},
    )
    assert not other.passed, "the proof doesn't see layers"


def test_the_block_that_is_worth_least_goes_first(tmp_path: Path) -> None:
    for index in range(4):
        layer = analyze(ir.from_proto(encoder())).layers[index]
        (tmp_path / str(index)).mkdir()
        path = save(scaled(encoder(), layer, 1e-3), tmp_path / str(index))
        samples = save_samples(encoder(), tmp_path / str(index) / "data.npz", count=64)
        compress(path, tmp_path / str(index) / "out", data=samples, patterns="layers", budget="macs<=0.95x")
        gone = [x.id for x in read_plan(tmp_path / str(index) / "out" / "plan.json").removed_layers]
        assert gone == [layer.id]


def test_by_default_no_layer_goes_and_with_widths_both_may(model: Path, data: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "plain", data=data, budget="macs<=0.4x")
    assert not read_plan(tmp_path / "plain" / "plan.json").removed_layers
    both = compress(
        model, tmp_path / "both", data=data, budget="macs<=0.1x", patterns="channels,heads,neurons,layers"
    )
    assert both.status == "ok"
    assert both.verification.exact.passed
    plan = read_plan(tmp_path / "both" / "plan.json")
    assert plan.removed_layers
    inside = Widths(analyze(io.load(model)), []).at({x.id: 0 for x in plan.removed_layers})
    idle = {g.id for g in inside.analysis.groups if inside.idle(g)}
    assert not idle & plan.kept().keys(), "what is in a removed layer needn't be cut"


def test_keep_takes_a_share_of_the_layers(model: Path, data: Path, tmp_path: Path) -> None:
    for keep, gone in ((0.5, 2), (0.75, 1), (0.7, 2), (1.0, 0)):
        out = tmp_path / str(keep)
        compress(model, out, data=data, patterns="layers", keep=keep)
        assert len(read_plan(out / "plan.json").removed_layers) == gone


def test_removed_layers_are_healed_in_closed_form(model: Path, tmp_path: Path) -> None:
    data = save_samples(encoder(), tmp_path / "more.npz", count=640)
    plain, healed = (
        compress(
            model,
            tmp_path / heal,
            data=data,
            patterns="layers",
            budget="macs<=0.8x",
            metric="cosine",
            heal=heal,
        )
        for heal in ("off", "closed-form")
    )
    assert healed.cycles[-1].metric_healed > plain.cycles[-1].metric_healed
    assert healed.verification.exact.passed


def test_a_layer_that_cannot_be_spared_stays_and_others_make_up_for_it(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []
    cut = cycles._cut

    def watched(job: Any, units: Any, layers: Any, best: Any) -> Any:
        tried.append(list(layers))
        return cut(job, units, layers, best)

    monkeypatch.setattr(cycles, "_cut", watched)
    options = {"data": data, "patterns": "layers", "budget": "macs<=0.9x", "metric": "cosine"}
    free = compress(model, tmp_path / "free", **options)
    first = tried[-1]
    assert len(first) == 1
    tried.clear()
    monkeypatch.setattr(
        "condensec.stages.job.Job.keeps_guard", lambda self, value: bool(tried) and first[0] not in tried[-1]
    )
    report = compress(model, tmp_path / "guarded", **{**options, "max_drop": 5.0})
    assert tried[0] == first
    assert not report.cycles[0].accepted
    assert len(tried) > 1
    assert all(first[0] not in some for some in tried[1:])
    assert report.status == free.status == "ok"


def test_a_layer_cut_wrongly_is_named_and_nothing_is_written(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec.passes import prune as prune_module

    def wrong(graph: ir.Graph, layers: Any) -> None:
        for layer in layers:
            last = next(n for n in graph if n.outputs[0].name == layer.output)
            last.op_type = "Sub"

    monkeypatch.setattr(prune_module, "take_out", wrong)
    with pytest.raises(PostconditionError, match="layer l"):
        compress(model, tmp_path / "out", data=data, patterns="layers", budget="macs<=0.9x")
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_similarity_is_one_where_a_block_adds_nothing() -> None:
    proto = residual_cnn()
    layer = analyze(ir.from_proto(proto)).layers[0]
    analysis = analyze(ir.from_proto(scaled(residual_cnn(), layer, 0.0)))
    value = analysis.world.inputs["input"]
    batch: Batch = {"input": np.random.default_rng(0).normal(size=(8, *value[1:])).astype(np.float32)}
    assert similarities(analysis, [batch])[layer.id] == pytest.approx(1.0)
    assert similarities(analyze(ir.from_proto(proto)), [batch])[layer.id] < 0.999
