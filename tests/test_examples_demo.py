"""The demo's own arithmetic: what it counts, and what it prints, from a run that is made up."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("PIL")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def _classifier(path: Path, weight: list[list[float]]) -> Path:
    """`x` [N, 2] times a matrix."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array(weight, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def figures(demo: ModuleType, tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=x, labels=x.argmax(axis=1))
    model = _classifier(tmp_path / "model.onnx", [[1, 0], [0, 1]])
    _classifier(tmp_path / "out" / "same.onnx", [[2, 0], [0, 2]])
    _classifier(tmp_path / "out" / "worse.onnx", [[1, 1], [0, 0]])
    target = {
        "latency_ms": {"before": 2.0, "after": 1.0},
        "ratio": 0.5,
        "ci95": [0.48, 0.52],
        "verified": "measured",
    }
    report = {
        "status": "ok",
        "before": {"params": 1000, "macs": 50000},
        "after": {"params": 400, "macs": 20000},
        "targets": {
            "host": {**target, "precision": "fp32", "file": "same.onnx"},
            "mobile-cpu": {**target, "precision": "int8", "file": "worse.onnx", "latency_how": "modelled"},
        },
    }
    (tmp_path / "out" / "report.json").write_text(json.dumps(report))
    found: dict[str, Any] = demo.collect(model, tmp_path / "out", tmp_path / "test.npz")
    return found


def test_accuracy_is_counted_on_the_graphs_themselves(figures: dict[str, Any]) -> None:
    columns = figures["columns"]
    assert list(columns) == ["original", "host", "mobile-cpu"]
    assert columns["original"]["accuracy"] == columns["host"]["accuracy"] == 1
    assert columns["host"]["change_points"] == columns["host"]["change_ci95"] == 0
    # The worse one scores both classes alike, so that it always says class 0: about half are wrong.
    assert 0.35 < columns["mobile-cpu"]["accuracy"] < 0.65
    lost = 100 * (columns["mobile-cpu"]["accuracy"] - 1)
    assert columns["mobile-cpu"]["change_points"] == pytest.approx(lost)


def test_the_table_says_how_each_figure_was_got_and_fits_the_terminal(
    demo: ModuleType, figures: dict[str, Any]
) -> None:
    lines = demo.table(figures["columns"]).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in (
        "1,000",
        "20,000",
        "2.000 -> 1.000",
        "[0.480, 0.520]",
        "measured",
        "modelled",
        "100.00%",
        "int8",
    ):
        assert part in text
    ends = {line.rstrip().rfind("%") for line in lines if "100.00%" in line}
    assert len(ends) == 1
    assert not any(line != line.rstrip() for line in lines)


def test_the_command_is_shown_as_one_would_type_it(demo: ModuleType) -> None:
    shown = demo._shown(("m.onnx", "--target", "host", "--budget", "latency<=0.6x"))
    assert shown == "m.onnx \\\n      --target host \\\n      --budget 'latency<=0.6x'"
