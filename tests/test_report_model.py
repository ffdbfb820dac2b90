"""The report value: the document of formats.md, exact round trips, finite numbers, clear refusals."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condensec.errors import ConfigError
from condensec.plan import AxisRef, FrozenAxis, GroupCut, Plan
from condensec.report import (
    Budget,
    Check,
    Cycle,
    DataSummary,
    Figures,
    GraphRun,
    Guard,
    Healing,
    Latency,
    LayerCut,
    MetricValue,
    ModelInfo,
    Report,
    TargetResult,
    Untrained,
    Verification,
    group_summaries,
    read_report,
    runs,
    write_text,
)


def full_report() -> Report:
    metric = MetricValue("top1", 0.9306, 5000, (0.9232, 0.9375), unit_points=100.0, label="top-1 accuracy")
    return Report(
        model=ModelInfo("resnet20.onnx", "ab" * 32, 13, 65, "pytorch 2.2", {"input": "float32[N,3,32,32]"}),
        seed=7,
        status="ok",
        before=Figures(272474, 40813184, 1097000, metric, 65),
        after=Figures(101000, 19500000, 410000, replace(metric, value=0.927), 65),
        targets={
            "host": TargetResult(
                "measured", Latency(6.5, 2.9), 0.446, (0.44, 0.45), "int8", "host/model.onnx", 120000, 0.926
            ),
            "mobile-cpu": TargetResult(
                "emulated", Latency(None, None), None, None, "int8", "mobile-cpu/model.onnx", 110000
            ),
        },
        cycles=(
            Cycle(1, 0.9, 0.91, 0.93, True, 71.0),
            Cycle(2, 0.8, None, None, False, 12.0, note="rolled back"),
        ),
        sensitivity={"g12": {"0.75": 0.001, "0.5": 0.01}, "g3": {"0.5": None}},
        verification=Verification(
            Check(40, 3e-6, 1e-4), None, (GraphRun("host/model.onnx", "input: 1x3x32x32"),)
        ),
        timings={"load": 0.1, "heal": 60.0, "total": 70.1},
        peak_rss_mb=400.5,
        environment={
            "onnxruntime": "1.32.0",
            "isa": "avx512_vnni",
            "threads": 1,
            "pinned": True,
            "load": 0.5,
        },
        stage_rss_mb={"load": 90.0},
        budgets=(Budget("latency<=0.5x", True, 0.446, "host"),),
        guard=Guard(0.5, 0.36),
        healing=Healing(
            "closed-form", 3.5, frozen=(Untrained("rnn", "no gradient"),), loss_curve=(2.0, None, 1.0)
        ),
        data=DataSummary("val.npz", {"train": 100, "test": 50}, labelled=True),
        frozen=(FrozenAxis("g0", 10, "graph output 'logits'"),),
        layers=(LayerCut("conv1", "Conv", 16, 8, 442368, 221184, "g12", ((0, 3), (7, 10))),),
        plan_sha256="cd" * 32,
        command="condensec resnet20.onnx --target host",
        notes=("a note",),
    )


def test_the_document_has_the_contracts_fields_and_values():
    doc = json.loads(full_report().dumps())
    assert doc["schema"] == 1
    assert (doc["seed"], doc["status"]) == (7, "ok")
    assert doc["before"]["metric"]["name"] == "top1"
    assert doc["before"]["metric"]["samples"] == 5000
    assert {"params", "macs", "bytes", "metric"} <= doc["after"].keys()
    host = doc["targets"]["host"]
    assert host["verified"] == "measured"
    assert host["latency_ms"] == {"before": 6.5, "after": 2.9}
    assert (host["ratio"], host["ci95"], host["precision"]) == (0.446, [0.44, 0.45], "int8")
    assert (host["file"], host["bytes"], host["metric"]) == ("host/model.onnx", 120000, 0.926)
    wanted = {
        "n": 1,
        "macs": 0.9,
        "metric_pruned": 0.91,
        "metric_healed": 0.93,
        "accepted": True,
        "seconds": 71.0,
    }
    assert wanted.items() <= doc["cycles"][0].items()
    assert doc["sensitivity"]["g12"] == {"0.75": 0.001, "0.5": 0.01}
    assert doc["verification"]["exact"]["groups"] == 40
    assert doc["verification"]["exact"]["max_abs_error"] == 3e-6
    assert doc["timings"]["total"] == 70.1
    assert doc["peak_rss_mb"] == 400.5
    assert doc["environment"] == {
        "onnxruntime": "1.32.0",
        "isa": "avx512_vnni",
        "threads": 1,
        "pinned": True,
        "load": 0.5,
    }


def test_round_trip_is_exact_in_both_directions():
    report = full_report()
    again = Report.from_json(json.loads(report.dumps()))
    assert again == report
    assert again.dumps() == report.dumps()
    assert isinstance(again.environment["threads"], int)
    assert again.environment["pinned"] is True


def test_key_order_is_fixed_and_timings_keep_the_order_of_the_line():
    doc = json.loads(full_report().dumps())
    assert list(doc)[:6] == ["schema", "model", "seed", "status", "before", "after"]
    assert list(doc["timings"]) == ["load", "heal", "total"]


@settings(deadline=None)  # other work may hold the machine
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_in_the_document_is_ever_infinite_or_nan(value):
    report = replace(full_report(), sensitivity={"g": {"0.5": value}}, guard=Guard(value))
    doc = json.loads(report.dumps(), parse_constant=lambda name: pytest.fail(f"wrote {name}"))
    expected = value if math.isfinite(value) else None
    assert doc["sensitivity"]["g"]["0.5"] == expected
    assert Report.from_json(doc).guard == Guard(expected)


def test_numpy_scalars_are_written_as_plain_numbers():
    numbers = Cycle(np.int64(1), np.float32(0.5), np.float64("nan"), accepted=np.bool_(False))
    got = json.loads(replace(full_report(), cycles=(numbers,)).dumps())["cycles"][0]
    assert (got["n"], got["macs"], got["metric_pruned"], got["accepted"]) == (1, 0.5, None, False)
    with pytest.raises(TypeError, match="can't hold a set"):
        replace(full_report(), notes={1}).dumps()


def test_newer_files_with_more_fields_are_read():
    doc = full_report().to_json()
    doc["invented_later"] = {"x": 1}
    doc["before"]["energy_mj"] = 3
    assert Report.from_json(doc) == full_report()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema=2), "schema 1"),
        (lambda d: d.pop("before"), "report.before is missing"),
        (lambda d: d["targets"]["host"].update(ratio="fast"), "report.targets.host.ratio"),
        (lambda d: d["targets"]["host"].update(ci95=[1.0]), r"report.targets.host.ci95"),
        (lambda d: d["cycles"][1].update(n=1.5), r"report.cycles\[1\].n"),
        (lambda d: d.update(seed=True), "report.seed"),
        (lambda d: d.update(environment=[]), "report.environment"),
        (lambda d: d["environment"].update(threads=[1]), "report.environment.threads"),
    ],
)
def test_a_malformed_document_is_refused_with_its_place(edit, message):
    doc = json.loads(full_report().dumps())
    edit(doc)
    with pytest.raises(ConfigError, match=message):
        Report.from_json(doc)


@pytest.mark.parametrize("doc", [None, [], "x", {}])
def test_anything_else_is_no_report(doc):
    with pytest.raises(ConfigError, match="not a report"):
        Report.from_json(doc)


def test_files_are_written_whole_and_read_back(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, full_report().dumps())
    assert read_report(path) == full_report()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(ConfigError, match=r"missing\.json"):
        read_report(tmp_path / "missing.json")
    path.write_text("{")
    with pytest.raises(ConfigError, match="is no report"):
        read_report(path)


def test_a_command_with_undecodable_bytes_is_still_written(tmp_path):
    report = replace(full_report(), command=b"condensec \xff.onnx".decode("utf-8", "surrogateescape"))
    write_text(tmp_path / "report.json", report.dumps())
    assert read_report(tmp_path / "report.json").command == report.command


def test_runs_are_inclusive_and_cover_every_index():
    assert runs([0, 1, 2, 7]) == ((0, 2), (7, 7))
    assert runs([]) == ()


@settings(deadline=None)
@given(st.sets(st.integers(0, 60)))
def test_runs_give_the_indices_back(indices):
    found = runs(sorted(indices))
    assert [i for first, last in found for i in range(first, last + 1)] == sorted(indices)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(found))


def test_group_summaries_count_what_the_plan_keeps():
    axes = (AxisRef("a", 0), AxisRef("a.bias", 0), AxisRef("b", 1))
    plan = Plan("00", 17, groups=(GroupCut("g1", "channel", 4, (0, 2), True, axes),))
    (summary,) = group_summaries(plan)
    assert (summary.id, summary.size, summary.kept, summary.layers) == ("g1", 4, 2, ("a", "a.bias", "b"))
