"""Latency: tables, interpolated widths, cliffs, formulas; robust controls instead of wall times."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_tools import with_batch
from models import depthwise_se_cnn, grouped_cnn, residual_cnn, transformer_encoder

from condensec.hardware import bench, isolate, latency, table, widths
from condensec.hardware.graphmodel import GraphModel, TimedModel
from condensec.hardware.isolate import Isolated
from condensec.hardware.latency import AnalyticModel, TableModel, latency_model
from condensec.hardware.nodecost import NodeCost, cost_of
from condensec.hardware.table import LatencyTable
from condensec.hardware.target import get


class CountedTable(LatencyTable):
    """A table that knows each node's time: its MACs in nanoseconds, plus 10 ns an input element."""

    asked = 0

    def times(self, nodes: Iterable[Isolated]) -> list[float]:
        found = []
        for node in nodes:
            CountedTable.asked += 1
            cost = cost_of(node)
            layout = any(o == "com.microsoft.nchwc" for o in (node.node.domain,))
            slow = 1.0 if layout or cost is None or "Conv" not in node.node.op_type else 3.0
            found.append(slow * 1e-9 * (cost.macs if cost else 10))
        return found

    def save(self) -> None:
        pass


def weighted(model: object) -> dict[str, NodeCost]:
    nodes = isolate.isolate(model, bench.make_feeds(model))  # type: ignore[arg-type]
    return {c.name: c for c in map(cost_of, nodes) if c is not None}


def halved(cost: NodeCost) -> NodeCost:
    ins = cost.in_channels // 2 if cost.in_channels > 4 else cost.in_channels
    outs = cost.out_channels // 2
    groups = outs if cost.kind == "depthwise" else cost.groups
    share = ins * outs / groups / max(1.0, cost.in_channels * cost.out_channels / cost.groups)
    return replace(
        cost, in_channels=ins, out_channels=outs, groups=groups, macs=int(cost.macs * (share if ins else 0.5))
    )


def test_costs_are_read_off_the_nodes() -> None:
    costs = weighted(residual_cnn())
    assert all(
        c.macs == c.positions * c.in_channels * c.out_channels * c.kernel_elems for c in costs.values()
    )
    depthwise = [c for c in weighted(depthwise_se_cnn()).values() if c.kind == "depthwise"]
    assert depthwise
    assert all(c.macs == c.positions * c.out_channels * c.kernel_elems for c in depthwise)
    grouped = [c for c in weighted(grouped_cnn()).values() if c.groups > 1]
    assert grouped
    assert all(
        c.macs == c.positions * c.in_channels * c.out_channels * c.kernel_elems // c.groups for c in grouped
    )
    products = [c for c in weighted(transformer_encoder()).values() if c.in_channels == 0]
    assert len(products) >= 2  # queries times keys, weights times values
    assert all(c.kind == "matmul" for c in products)


def test_isolated_nodes_compute_what_the_graph_does() -> None:
    model = depthwise_se_cnn()
    feeds = bench.make_feeds(model)
    graph = isolate.optimized(model)
    from condensec.runner import Session

    wanted = Session(model).run(feeds)["logits"]
    values = {}
    for node in isolate.isolate(graph, feeds):
        values.update(Session(node.model(), optimize=False).run(node.feeds()))
    np.testing.assert_allclose(values["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_signatures_tell_shapes_apart_but_not_values() -> None:
    def signatures(**options: int) -> list[str]:
        model = residual_cnn(**options)
        return [n.signature for n in isolate.isolate(isolate.optimized(model), bench.make_feeds(model))]

    assert signatures(seed=0) == signatures(seed=1)
    assert set(signatures(width=16)) != set(signatures(width=32))
    encoder = transformer_encoder()
    twice = [n.signature for n in isolate.isolate(isolate.optimized(encoder), bench.make_feeds(encoder))]
    assert len(set(twice)) < len(twice)  # what comes twice is measured once


def test_copies_leave_one_nodes_outputs() -> None:
    model = residual_cnn()
    node = isolate.isolate(isolate.optimized(model), bench.make_feeds(model))[0]
    copied = node.model(5)
    assert len(copied.graph.node) == 5
    assert [o.name for o in copied.graph.output] == list(node.node.output)


def test_the_table_is_kept_on_disk_and_rebuilt_if_damaged(tmp_path: Path) -> None:
    model = residual_cnn()
    nodes = isolate.isolate(isolate.optimized(model), bench.make_feeds(model))[:2]
    first = LatencyTable(folder=tmp_path)
    times = first.times(nodes)
    first.save()
    assert all(t >= 0 for t in times)
    again = LatencyTable(folder=tmp_path)
    assert again.seconds == first.seconds
    assert again.times(nodes) == times
    other = LatencyTable(folder=tmp_path, seconds={"somebody's": 1.0})
    assert "somebody's" not in first.seconds
    other.seconds["more"] = 2.0
    other.save()
    merged = LatencyTable(folder=tmp_path)
    assert {"more", "somebody's", *first.seconds} == set(merged.seconds)
    damaged = (
        "",
        "{",
        "[]",
        '{"schema": 99, "reference": 1, "seconds": {}}',
        '{"schema": 2, "reference": 1, "seconds": {"a": "x"}}',
        '{"schema": 2, "reference": 0, "seconds": {"a": 1}}',
        '{"schema": 2, "seconds": {"a": 1}}',
    )
    for text in damaged:
        first.path.write_text(text)
        assert LatencyTable(folder=tmp_path).seconds == {}
    first.path.write_text(json.dumps({"schema": 2, "reference": 1e-4, "seconds": {"a": 1.0, "b": -1.0}}))
    assert LatencyTable(folder=tmp_path).seconds == {"a": 1.0}
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


def test_the_tables_name_says_what_it_holds_for(tmp_path: Path) -> None:
    one, two = LatencyTable(1, tmp_path).path, LatencyTable(2, tmp_path).path
    assert one != two
    from condensec.hardware import isa
    from condensec.runner import runtime_version

    assert isa.detect() in one.name
    assert runtime_version() in one.name


def test_a_larger_node_is_slower_in_the_table(tmp_path: Path) -> None:
    small, large = residual_cnn(width=16), residual_cnn(width=64)
    known = LatencyTable(folder=tmp_path)
    total = [
        sum(known.times(isolate.isolate(isolate.optimized(m), bench.make_feeds(m)))) for m in (small, large)
    ]
    assert total[1] > 3 * total[0]


def test_the_dense_sum_equals_the_dense_measurement(tmp_path: Path) -> None:
    model = residual_cnn(width=32)
    predictor = TableModel(get("host"), model, None, LatencyTable(folder=tmp_path))
    assert predictor.verified == "measured"
    assert predictor.predict(model) == pytest.approx(predictor.dense_seconds, rel=1e-6)
    nodes = sum(predictor.node_seconds(c) for c in weighted(model).values())
    assert nodes == pytest.approx(predictor.dense_seconds, rel=0.5)
    assert sum(predictor.node_times().values()) == pytest.approx(predictor.dense_seconds, rel=1e-6)
    assert predictor.predict(residual_cnn(width=96)) > 2 * predictor.dense_seconds


def test_a_kind_of_model_that_is_half_made_is_refused_in_one_line() -> None:
    class Half(TimedModel):
        def _times(self, nodes: Iterable[Isolated]) -> list[float]:
            return [0.0 for _ in nodes]

    with pytest.raises(TypeError, match="own_seconds"):
        Half(get("host"), residual_cnn(width=16), None)  # type: ignore[abstract]
    assert GraphModel(get("host"), residual_cnn(width=16), None).parts  # the control: parts need no times


def test_widths_are_interpolated_and_monotone() -> None:
    model = residual_cnn(width=64)
    predictor = TableModel(get("x86-avx2"), model, None, CountedTable())
    for cost in weighted(model).values():
        full = predictor.node_seconds(cost)
        half = predictor.node_seconds(halved(cost))
        assert half < full
        if cost.kind == "conv" and cost.in_channels >= 64:
            assert half == pytest.approx(full / 4, rel=0.25)
    before = CountedTable.asked
    for cost in weighted(model).values():
        for outs in range(8, cost.out_channels, 8):
            share = outs / cost.out_channels
            predictor.node_seconds(replace(cost, out_channels=outs, macs=int(cost.macs * share)))
    assert CountedTable.asked == before  # thousands of questions cost no more measurements


def test_a_width_off_the_alignment_is_a_cliff() -> None:
    model = residual_cnn(width=64)
    predictor = TableModel(get("x86-avx2"), model, None, CountedTable())
    cost = next(c for c in weighted(model).values() if c.kind == "conv" and c.in_channels == 64)
    less = replace(cost, in_channels=63, out_channels=63, macs=cost.macs * 63 * 63 // 64 // 64)
    from condensec.hardware import isa

    if isa.detect() not in isa.ORDER["x86"] or isa.detect() == "x86":
        pytest.skip("onnxruntime blocks channels only on x86 with AVX")
    assert predictor.node_seconds(less) > 2 * predictor.node_seconds(cost)
    even = replace(cost, in_channels=60, out_channels=60, macs=cost.macs * 60 * 60 // 64 // 64)
    assert predictor.node_seconds(even) <= 1.01 * predictor.node_seconds(cost)


def test_knots_lie_on_blocks() -> None:
    assert widths.knots(64, 4, 16) == (16, 32, 48, 64)
    assert widths.knots(70, 4, 16) == (16, 32, 48, 70) or widths.knots(70, 4, 16)[-1] == 70
    assert widths.knots(16, 4, 16) == (4, 8, 12, 16)
    assert widths.knots(3, 4, 16) == (3,)
    assert widths.knots(1, 1, 1) == (1,)


def test_unknown_nodes_are_judged_by_their_macs() -> None:
    model = residual_cnn()
    predictor = AnalyticModel(get("mobile-cpu"), model, None)
    one = predictor.node_seconds(NodeCost("new", "LSTM", 1000, 8, 8))
    assert predictor.node_seconds(NodeCost("new", "LSTM", 2000, 8, 8)) == pytest.approx(2 * one)
    assert one > 0


@pytest.mark.parametrize("name", ["mobile-cpu", "mobile-cpu-v8.0", "nvidia-t4", "jetson-orin"])
def test_formulas_order_models(name: str) -> None:
    target = get(name)
    times = []
    for width in (16, 64, 256):
        predictor = latency_model(target, residual_cnn(width=width))
        assert predictor.verified == ("emulated" if name.startswith("mobile") else "modelled")
        assert predictor.predict(residual_cnn(width=width)) == pytest.approx(predictor.dense_seconds)
        times.append(predictor.dense_seconds)
    assert times == sorted(times)
    assert times[2] > 1.2 * times[0]
    if name.startswith("mobile"):
        assert times[2] > 50 * times[0]


def test_a_phone_without_dot_products_is_slower() -> None:
    model = residual_cnn(width=64)
    fast, slow = (latency_model(get(n), model).dense_seconds for n in ("mobile-cpu", "mobile-cpu-v8.0"))
    assert slow > 2 * fast


def test_int8_and_channel_steps_in_the_gpu_model() -> None:
    from condensec.hardware.analytic import Gpu

    gpu = Gpu(get("nvidia-t4").peak, "fp16")

    def seconds(outs: int) -> float:
        return gpu.weighted(NodeCost("c", "Conv", 3136 * 512 * outs * 9, 512, outs, 1, 9, 3136))

    assert seconds(249) == pytest.approx(seconds(256), rel=0.02)  # a tile is computed whole
    assert seconds(512) > 1.7 * seconds(256)
    int8 = Gpu(get("nvidia-t4").peak, "int8")
    cost = NodeCost("c", "Conv", 3136 * 512 * 512 * 9, 512, 512, 1, 9, 3136)
    assert int8.weighted(cost) < 0.6 * gpu.weighted(cost)
    # by hand: 40 SMs, 25 x 4 tiles of 128 x 128 in 3 waves, K = 4608, 512 FMA a clock at 80% of 1.59 GHz
    by_hand = 3 * 128 * 128 * 4608 / (512 * 0.8 * 1.59e9) + 3e-6
    assert gpu.weighted(cost) <= by_hand


def test_a_fixed_batch_is_kept() -> None:
    model = with_batch(residual_cnn(), 4)
    predictor = latency_model(get("mobile-cpu"), model, {"input": (1, 3, 16, 16)})
    single = latency_model(get("mobile-cpu"), residual_cnn())
    assert predictor.dense_seconds > 3 * single.dense_seconds


def test_targets_that_are_not_here_are_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency.isa, "detect", lambda: "armv8.2")
    monkeypatch.setattr(table.isa, "detect", lambda: "armv8.2")
    assert isinstance(latency_model(get("x86-avx2"), residual_cnn()), AnalyticModel)
