"""Where the time goes, on which execution provider, in how much memory: the parts of `condensec bench`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp, random_feeds, residual_cnn, save
from onnx import numpy_helper

from condensec.cli import main
from condensec.data import Samples
from condensec.errors import ConfigError, TargetUnavailable
from condensec.hardware import breakdown, emit, memory, providers
from condensec.hardware.protocol import CPU, Protocol
from condensec.hardware.target import get
from condensec.runner import Session, available_providers


def test_layers_of_two_graphs_are_matched_across_precisions(tmp_path: Path) -> None:
    """fp32 convolutions are fused into their activations' names, int8 ones keep their own."""
    model = residual_cnn(width=16)
    path = save(model, tmp_path)
    target = replace(get("x86-vnni"), name="elsewhere", latency="analytic", isa="avx512_vnni")
    samples = Samples(random_feeds(model, 8), count=8)
    int8 = emit.emit(path, target, tmp_path / "q", precision="int8", samples=samples, calibrate="minmax")
    found = breakdown.take([path, int8.path], random_feeds(model, 1), runs=5)
    layers = {change.what: change for change in found.layers}
    for node in model.graph.node:
        if node.op_type == "Conv":
            change = layers[node.name]
            assert change.before is not None, node.name
            assert change.after is not None, node.name
    for side, nodes in enumerate(found.nodes):
        times = [change.milliseconds[side] or 0.0 for change in found.layers]
        assert sum(times) == pytest.approx(1e3 * sum(node.seconds for node in nodes))
        assert sum(change.counts[side] for change in found.operators) == len(nodes)
    assert {node.provider for node in found.nodes[0]} == set(CPU)
    operators = {change.what: change for change in found.operators}
    assert operators["QLinearConv"].before is None
    assert operators["Conv"].after is None


def test_every_node_is_timed_once_a_run(tmp_path: Path) -> None:
    model = mlp(features=8, hidden=(8,), classes=4)
    path = save(model, tmp_path)
    Session(path, save_optimized=tmp_path / "optimized.onnx")
    nodes = len(onnx.load(tmp_path / "optimized.onnx").graph.node)
    (found,) = breakdown.profile([path], random_feeds(model, 1), runs=3)
    assert len(found) == nodes
    assert all(node.seconds > 0 for node in found)
    one = breakdown.take([path], random_feeds(model, 1), runs=3)
    assert not one.two
    assert list(one.to_json()["nodes"]) == ["a"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("/layer1/Relu_output_0_nchwc", "/layer1/Relu_output_0"),
        ("conv_token_12", "conv"),
        ("fused conv1", "conv1"),
        ("x_QuantizeLinear", "x"),
        ("quantize", "quantize"),
        ("", ""),
    ],
)
def test_names_lose_what_rewrites_append(name: str, plain: str) -> None:
    assert breakdown.plain_name(name) == plain


# -- execution providers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "cpu", "CPU", "CPUExecutionProvider"])
def test_the_cpu_goes_by_many_names(name: str | None) -> None:
    assert providers.resolve(name) == CPU


def test_a_provider_that_is_not_there_is_exit_code_4_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: CPU)
    for name in ("tensorrt", "cuda", "openvino", "xnnpack", "coreml", "CUDAExecutionProvider"):
        with pytest.raises(TargetUnavailable, match="execution provider"):
            providers.resolve(name)
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        providers.resolve("kuda")
    path = save(mlp(features=8, hidden=(8,), classes=4), tmp_path)
    assert main(["bench", str(path), "--ep", "openvino"]) == 4
    assert "onnxruntime-openvino" in capsys.readouterr().err
    assert main(["bench", str(path), "--ep", "kuda"]) == 2


def test_a_provider_that_is_there_comes_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: ("OpenVINOExecutionProvider", *CPU))
    assert providers.resolve("openvino") == ("OpenVINOExecutionProvider", *CPU)
    assert providers.perf_test_name("OpenVINOExecutionProvider") == "openvino"


def test_a_provider_that_onnxruntime_silently_leaves_out_is_noticed() -> None:
    with pytest.raises(TargetUnavailable, match="can't be loaded here"):
        providers.check_used(("CUDAExecutionProvider", *CPU), CPU)
    providers.check_used(CPU, available_providers())


# -- memory and the command ------------------------------------------------------------------------------


def test_memory_grows_with_the_weights(tmp_path: Path) -> None:
    small = save(mlp(features=8, hidden=(8,), classes=4), tmp_path, "small.onnx")
    model = mlp(features=8, hidden=(8,), classes=4)
    big = numpy_helper.from_array(np.ones((8, 4 << 20), np.float32), "big")  # 128 MiB
    model.graph.initializer.append(big)
    model.graph.node.append(onnx.helper.make_node("MatMul", [model.graph.input[0].name, "big"], ["wide"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["wide"], ["most"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("most", onnx.TensorProto.FLOAT, None))
    large = save(model, tmp_path, "large.onnx")
    feeds = random_feeds(model, 1)
    little, much = (memory.peak_bytes(path, feeds, Protocol()) for path in (small, large))
    if little is None:
        assert not Path("/proc/self/status").exists(), "only Linux tells"
        return
    assert much is not None
    assert little < 64 << 20
    assert 128 << 20 <= much < 600 << 20
    assert memory.peak_bytes(tmp_path / "none.onnx", feeds, Protocol()) is None


def test_bench_shows_where_the_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    save(residual_cnn(width=8), tmp_path)
    save(residual_cnn(width=4), tmp_path / "b")
    arguments = ["bench", "model.onnx", "b/model.onnx", "--html", "page.html"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["a"]["name"], found["b"]["name"]] == ["model.onnx", "b/model.onnx"], "told apart"
    assert found["profile"]["layers"][0]["before_ms"] > 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert found["profile"]["layers"][0]["what"] in page
    assert "onnxruntime_perf_test" in page
    assert "<script" not in page
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "layer" in text
    assert "95% interval" in text
    assert text.count("$ onnxruntime_perf_test") == 2
