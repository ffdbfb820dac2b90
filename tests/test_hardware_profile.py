"""Tables of other devices: keys, interpolation, the stand-alone script, and what a run makes of a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import depthwise_se_cnn, mlp, residual_cnn, save, save_samples, transformer_encoder

from condensec.cli import main
from condensec.errors import ConfigError
from condensec.hardware import bench, context, devicetable, isa, pack, profile
from condensec.hardware.context import Surcharge, surcharge
from condensec.hardware.graphmodel import GraphModel
from condensec.hardware.isolate import isolate, optimized
from condensec.hardware.latency import latency_model
from condensec.hardware.nodecost import NodeCost
from condensec.hardware.nodekey import NodeKey, key_of, parse
from condensec.hardware.points import Points, nonnegative
from condensec.hardware.target import get
from condensec.runner import Session

PHONE = get("mobile-cpu")


def law(key: NodeKey) -> float:
    """A made-up device: a call, a time for each MAC, gathered and written element; a fused sum costs more."""
    if not key.weighted:
        return 1e-6 + 1e-9 * key.read + 2e-9 * key.written
    macs = key.n * key.i * key.o // key.g * key.kernel
    if key.op == "depthwise":
        return 2e-6 + 4e-10 * macs
    residual = 3e-10 * key.n * key.o if key.summed else 0.0
    return 2e-6 + 1e-10 * macs + 1e-10 * key.n * key.i * key.kernel + residual


def table_of(source: Any, path: Path, how: str = "measured", **more: Any) -> dict[str, Any]:
    """A table of the made-up device with the nodes that would be packed for a model."""
    pieces = pack.pieces(GraphModel(PHONE, source, None))
    document = {
        "schema": 1,
        "kind": devicetable.KIND,
        "target": PHONE.name,
        "how": how,
        "unit": "seconds",
        "device": {"cpu": "made up", "onnxruntime": "1.0"},
        "model": {},
        "points": {str(p.key): law(p.key) for p in pieces},
        **more,
    }
    path.write_text(json.dumps(document))
    return document


def test_keys_are_texts_and_back() -> None:
    for model in (residual_cnn(), depthwise_se_cnn(), transformer_encoder()):
        keys = [key_of(n) for n in isolate(optimized(model, "extended"), bench.make_feeds(model))]
        assert [parse(str(key)) for key in keys] == keys
    off = NodeKey("conv", act="Relu", summed=True, off=True, kernel=9, n=4, i=3, o=63)
    assert parse(str(off)) == off
    for text in ("conv k9 float32 n1 i1", "conv ! n1 i1 o1 g1", "9conv", "conv k9 s1 float32 n0 i1 o1 g1"):
        with pytest.raises(ValueError, match=r".+"):
            parse(text)


def test_keys_tell_what_takes_longer() -> None:
    cnn = [
        key_of(n) for n in isolate(optimized(residual_cnn(), "extended"), bench.make_feeds(residual_cnn()))
    ]
    convs = [key for key in cnn if key.op == "conv"]
    assert {key.kernel for key in convs} >= {9}
    summed = [key_of(n) for n in isolate(optimized(residual_cnn()), bench.make_feeds(residual_cnn()))]
    assert any(key.summed for key in summed) or isa.detect() not in isa.ORDER["x86"]
    assert any(key.act == "Relu" for key in convs)
    nodes = isolate(optimized(depthwise_se_cnn(), "extended"), bench.make_feeds(depthwise_se_cnn()))
    assert {key_of(n).op for n in nodes} >= {"conv", "depthwise"}
    encoder = transformer_encoder()
    ops = {key_of(n).op for n in isolate(optimized(encoder, "extended"), bench.make_feeds(encoder))}
    assert ops >= {"matmul", "product"}


def test_times_between_known_nodes_follow_the_device() -> None:
    sizes = (16, 32, 48, 64)
    known = {
        key: law(key)
        for key in (NodeKey("conv", kernel=9, n=n, i=i, o=o) for n in (64, 256) for i in sizes for o in sizes)
    }
    points = Points(known)
    assert all(points.time(key) == value for key, value in known.items())
    for n, i, o in ((64, 24, 40), (256, 56, 20), (128, 33, 61), (400, 80, 80)):
        key = NodeKey("conv", kernel=9, n=n, i=i, o=o)
        assert points.time(key) == pytest.approx(law(key), rel=0.03)
    # a fused activation isn't known: what is nearest stands in for it
    assert points.time(NodeKey("conv", act="Relu", kernel=9, n=64, i=32, o=32)) == pytest.approx(
        law(NodeKey("conv", kernel=9, n=64, i=32, o=32)), rel=0.1
    )
    slow = NodeKey("conv", kernel=9, off=True, n=64, i=63, o=63)
    cliff = Points({**known, slow: 3 * law(slow)})
    beside = replace(slow, i=47, o=47)
    assert cliff.time(beside) == pytest.approx(3 * law(beside), rel=0.1)
    assert points.time(beside) < 2 * law(beside)  # without that point nothing tells of the cliff
    assert Points({}).time(slow) == 0.0


def test_an_operator_without_points_is_guessed_from_those_of_its_shape() -> None:
    """Depthwise convolutions are fitted with terms of their own, and say nothing of a deconvolution."""
    known = {
        point(kind, n, c): float(n * c)
        for kind in ("conv", "depthwise", "Relu")
        for n in (16, 64, 256)
        for c in (8, 16, 32)
    }
    points = Points(known)
    small, large = (points.time(point("deconv", n, 16)) for n in (16, 256))
    assert 0 < small < large


def point(op: str, n: int, c: int) -> NodeKey:
    """A node of ``n`` positions and ``c`` channels."""
    groups = c if op == "depthwise" else 1
    text = (
        f"{op} k9 s1 float32 n{n} i{c} o{c} g{groups}" if op != "Relu" else f"Relu float32 r{n * c} w{n * c}"
    )
    return parse(text)


def test_factors_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.5, 2, (40, 3))
    np.testing.assert_allclose(nonnegative(rows, rows @ [1.0, 2.0, 0.5]), [1.0, 2.0, 0.5], rtol=1e-6)
    bounded = nonnegative(rows, rows @ [1.0, -2.0, 2.0] + 3)
    assert (bounded >= 0).all()
    assert bounded[1] == 0
    twice = np.column_stack([rows[:, 0], 2 * rows[:, 0]])  # nothing tells these apart: the first one counts
    np.testing.assert_allclose(nonnegative(twice, rows[:, 0]), [1.0, 0.0], rtol=1e-6)


def test_what_a_node_costs_inside_the_model_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "l2_bytes", lambda: 2000)
    model = residual_cnn()
    nodes = isolate(optimized(model), bench.make_feeds(model))
    alone = [1e-5 * (1 + i % 3) for i, _ in enumerate(nodes)]
    beyond = [max(0, n.bytes - n.weight_bytes - 1000) for n in nodes]
    assert any(beyond)
    assert not all(beyond), "some stay in the cache"
    extra = [1e-6 + 1e-10 * n.weight_bytes + 2e-10 * more for n, more in zip(nodes, beyond, strict=True)]
    inside = [1.1 * (t + x) for t, x in zip(alone, extra, strict=True)]  # and the clock is slower
    found = surcharge(nodes, alone, inside)
    np.testing.assert_allclose([found.of(node) for node in nodes], extra, rtol=1e-6)
    slower = surcharge(nodes, alone, [1.1 * t for t in alone])  # a slower clock alone is no charge
    assert max(map(slower.of, nodes)) < 1e-11
    never = surcharge(nodes, [0.0] * len(nodes), inside)  # nothing could be timed
    assert max(map(never.of, nodes)) == 0


def test_data_is_charged_by_the_kind_of_kernel() -> None:
    charge = Surcharge({"a": 1.0}, {"a": 2.0}, free=10, fixed=0.5)
    assert charge.at("a", 3, 12) == 0.5 + 3 + 2 * 2
    assert charge.at("a", 3, 8) == 0.5 + 3
    assert charge.at("b", 3, 12) == 0.5
    assert Surcharge(every=2.0).at("b", 3, 12) == 30


def test_a_profile_inside_the_model_covers_every_node() -> None:
    model = depthwise_se_cnn()
    graph, feeds = optimized(model), bench.make_feeds(model)
    found = context.inside_seconds(graph, feeds, 1, whole=1.0)
    assert len(found) == len(graph.graph.node)
    assert sum(t > 0 for t in found) > len(found) / 2
    assert sum(context.inside_seconds(graph, feeds, 1, whole=0.0)) < sum(found)  # the profiler's own cost


def test_packed_nodes_compute_and_are_light() -> None:
    pieces = pack.pieces(GraphModel(PHONE, residual_cnn(width=64), None))
    assert len({p.key for p in pieces}) == len(pieces)
    widths = {(p.key.i, p.key.o) for p in pieces if p.key.op == "conv" and p.key.i == 64}
    assert len(widths) >= 4
    for piece in pieces:
        small = pack.light(piece.model)
        assert small.ByteSize() < 2000
        found = Session(small).run(piece.feeds)
        wanted = Session(piece.model).run(piece.feeds)
        assert [a.shape for a in found.values()] == [a.shape for a in wanted.values()]
        assert all(np.isfinite(a).all() for a in found.values())
    # weights are constants once more when it is loaded, or they wouldn't be packed in advance
    conv = next(p for p in pieces if p.key.op == "conv" and p.key.i == 64)
    assert "ConstantOfShape" in {n.op_type for n in pack.light(conv.model).graph.node}
    assert "ConstantOfShape" not in {n.op_type for n in optimized(pack.light(conv.model)).graph.node}


@pytest.mark.parametrize("build", [residual_cnn, depthwise_se_cnn, transformer_encoder])
def test_a_table_predicts_its_device(build: Callable[[], Any], tmp_path: Path) -> None:
    model = build()
    table_of(model, tmp_path / "t.json")
    target = devicetable.attach(PHONE, tmp_path / "t.json")
    assert target.verified == "measured"
    assert not target.measurable()  # the device isn't this machine
    found = latency_model(target, model)
    assert found.verified == "measured"
    nodes = isolate(optimized(model, "extended"), bench.make_feeds(model))
    assert found.dense_seconds == pytest.approx(sum(law(key_of(n)) for n in nodes), rel=1e-6)
    assert found.predict(model) == pytest.approx(found.dense_seconds, rel=1e-6)


def test_a_table_predicts_widths_it_has_not_seen(tmp_path: Path) -> None:
    table_of(residual_cnn(width=64), tmp_path / "t.json")
    found = latency_model(devicetable.attach(PHONE, tmp_path / "t.json"), residual_cnn(width=64))
    for width in (20, 36, 52):
        model = residual_cnn(width=width)
        truth = sum(law(key_of(n)) for n in isolate(optimized(model, "extended"), bench.make_feeds(model)))
        assert found.predict(model) == pytest.approx(truth, rel=0.05)


def test_the_whole_models_time_calibrates_its_own_table_only(tmp_path: Path) -> None:
    path = save(residual_cnn(), tmp_path)
    from condensec import io

    whole = {"name": "m", "sha256": io.sha256(path), "value": 0.5}
    table_of(path, tmp_path / "t.json", model=whole)
    assert latency_model(devicetable.attach(PHONE, tmp_path / "t.json"), path).dense_seconds == pytest.approx(
        0.5
    )
    table_of(path, tmp_path / "u.json", model={**whole, "sha256": "another"})
    assert latency_model(devicetable.attach(PHONE, tmp_path / "u.json"), path).dense_seconds < 0.01


def test_instructions_become_seconds_that_cancel_out(tmp_path: Path) -> None:
    times = []
    for unit, factor in (("seconds", 1.0), ("instructions", 1e9)):
        document = table_of(residual_cnn(), tmp_path / f"{unit}.json", unit=unit, how="emulated")
        document["points"] = {key: factor * value for key, value in document["points"].items()}
        (tmp_path / f"{unit}.json").write_text(json.dumps(document))
        found = latency_model(devicetable.attach(PHONE, tmp_path / f"{unit}.json"), residual_cnn())
        times.append((found.predict(residual_cnn(width=8)) / found.dense_seconds, found.verified))
    assert times[0][0] == pytest.approx(times[1][0])
    assert times[0][1] == "emulated"


def test_the_script_runs_alone_and_its_table_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(residual_cnn(), tmp_path)
    script = tmp_path / "on_device.py"
    arguments = ["profile", str(path), "--target", "mobile-cpu", "--script", str(script), "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    # -I: neither this folder nor the tests' are importable; only installed packages are
    command = [sys.executable, "-I", str(script), str(path), "-o", str(tmp_path / "t.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    document = json.loads((tmp_path / "t.json").read_text())
    assert (document["target"], document["how"], document["failed"]) == ("mobile-cpu", "measured", {})
    assert len(document["points"]) == told["nodes"] > 10
    assert document["model"]["value"] > 0
    found = latency_model(devicetable.attach(PHONE, tmp_path / "t.json"), path)
    assert found.dense_seconds == pytest.approx(document["model"]["value"])
    source = script.read_text()
    assert "import condensec" not in source
    assert "from condensec" not in source
    empty = subprocess.run(
        [sys.executable, "-I", str(Path(pack.__file__).with_name("device_script.py"))],
        capture_output=True,
        text=True,
    )
    assert empty.returncode == 2
    assert "nothing is packed" in empty.stderr


def test_profile_writes_a_table_that_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(mlp(features=8, hidden=(32, 16), classes=4), tmp_path)
    save_samples(mlp(features=8, hidden=(32, 16), classes=4), tmp_path / "d.npz", 96)
    assert main(["profile", "model.onnx", "--target", "mobile-cpu", "-o", "t.json"]) == 0
    shown = capsys.readouterr().out
    assert "share" in shown
    document = json.loads((tmp_path / "t.json").read_text())
    assert sum(node["share"] for node in document["nodes"]) == pytest.approx(1, rel=1e-6)
    document |= {"how": "measured", "device": {"cpu": "Phone 9"}}  # as if a phone had measured it
    (tmp_path / "t.json").write_text(json.dumps(document))
    run = ["model.onnx", "--target", "mobile-cpu", "--heal", "off", "--jobs", "1", "--data", "d.npz"]
    assert main([*run, "--keep", "0.5", "--max-drop", "inf", "--table", "t.json", "-o", "out", "-q"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    result = report["targets"]["mobile-cpu"]
    assert (result["verified"], result["ci95"]) == ("measured", None)
    assert any("Phone 9" in note for note in result["notes"])
    assert 'table = ["' in (tmp_path / "out" / "condensec.toml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "something"}, "is no latency table"),
        ({"schema": 9}, "schema 9"),
        ({"how": "guessed"}, "how is 'guessed'"),
        ({"unit": "hours"}, "unit is 'hours'"),
        ({"points": []}, "isn't what it should be"),
        ({"points": {}}, "holds no times"),
        ({"points": {"conv k9 s1 float32 n1 i1 o1 g1": -1}}, "the time of"),
        ({"points": {"conv k9 s1 float32 n1 i1 o1 g1": True}}, "the time of"),
        ({"points": {"conv !": 1}}, "is no node"),
        ({"target": "jetson-orin"}, "is for target 'jetson-orin'"),
    ],
)
def test_bad_tables_are_one_line(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(mlp(features=4, hidden=(8,), classes=3), tmp_path)
    document = table_of(path, tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps({**document, **change}))
    assert main([str(path), "--target", "mobile-cpu", "--table", str(tmp_path / "t.json"), "-q"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the latency table"):
        devicetable.read(tmp_path / "missing.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        devicetable.read(tmp_path / "t.json")


def test_a_toml_target_brings_its_table(tmp_path: Path) -> None:
    table_of(residual_cnn(), tmp_path / "t.json")
    (tmp_path / "board.toml").write_text('base = "mobile-cpu"\ntable = "t.json"\n')
    board = get(str(tmp_path / "board.toml"))
    assert (board.name, board.verified, Path(board.table).name) == ("board", "measured", "t.json")
    assert latency_model(board, residual_cnn()).verified == "measured"
    (tmp_path / "board.toml").write_text('base = "mobile-cpu"\ntable = "missing.json"\n')
    with pytest.raises(ConfigError, match="can't read the latency table"):
        get(str(tmp_path / "board.toml"))


def test_a_profile_of_this_machine_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSEC_CACHE_DIR", str(tmp_path / "cache"))
    path = save(residual_cnn(), tmp_path)
    found = profile.profile(get("host"), path)
    assert found.verified == "measured"
    assert sum(node.seconds for node in found.nodes) == pytest.approx(found.seconds, rel=1e-6)
    assert found.table.model["value"] == found.seconds
    assert list((tmp_path / "cache").rglob("*.json"))  # measured once, kept
    assert {key.op for key in found.table.points.known} >= {"conv", "matmul"}


# instructions of whole models, counted by `benchmarks/emulated.py check`; none of them is in the table
COUNTED = {
    "residual 64": (residual_cnn, {"width": 64}, 13_496_723),
    "residual 40": (residual_cnn, {"width": 40}, 5_903_213),
    "depthwise 48": (depthwise_se_cnn, {"width": 48}, 2_155_269),
    "encoder": (transformer_encoder, {}, 662_980),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_table_that_is_shipped_knows_phones_instructions(name: str) -> None:
    build, options, counted = COUNTED[name]
    found = latency_model(PHONE, build(**options))
    assert found.verified == PHONE.how_verified() == "emulated"
    seconds = counted / (2 * PHONE.peak.clock_ghz * 1e9)
    assert found.dense_seconds == pytest.approx(seconds, rel=0.25)


def test_narrower_models_take_fewer_instructions() -> None:
    """A table has to order widths, also those between the known ones."""
    found = latency_model(PHONE, residual_cnn(width=64))
    times = [found.predict(residual_cnn(width=w)) for w in (64, 56, 44, 30, 16)]
    assert times == sorted(times, reverse=True)
    assert times[-1] < 0.25 * times[0]


def test_a_product_of_activations_keeps_the_widths_that_nobody_cuts() -> None:
    """Its cost has no channels where they come from the data: 0 isn't a width, and has no logarithm."""
    key = parse("product k1 s1 float32 n128 i8 o16 g1")
    at = key.at(NodeCost("scores", "MatMul", 128 * 8 * 16, 0, 0, positions=128))
    assert (at.i, at.o) == (8, 16)
    assert key.at(NodeCost("scores", "MatMul", 64 * 4 * 16, 4, 8, positions=64)).o == 8
