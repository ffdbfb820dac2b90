"""The documentation's code blocks are run as they stand."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from condensec.commands import _COMMANDS
from condensec.hardware.target import from_toml
from condensec.passes import criteria, rules
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.report import read_report
from condensec.verify import check

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)


def cropped_net(between: str = "CenterCropPad") -> ir.Model:
    """Conv, CenterCropPad, Conv: its eight channels can only be cut if the crop has a rule."""
    rng = np.random.default_rng(0)
    weights = {"first": rng.normal(size=(8, 3, 3, 3)), "second": rng.normal(size=(4, 8, 1, 1))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    arrays["size"] = np.array([6, 10], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="conv1"),
        helper.make_node("CenterCropPad", ["a", "size"], ["b"], name="crop", axes=[2, 3])
        if between == "CenterCropPad"
        else helper.make_node(between, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], name="conv2"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 10, 10])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "H", "W"])
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def test_the_rule_of_the_page_unfreezes_its_operator_and_its_test_passes(monkeypatch):
    registered = dict(rules.load_all())
    registered.pop("CenterCropPad", None)
    monkeypatch.setattr(rules, "_RULES", registered)
    model = cropped_net()
    before = analyze(model)
    assert before.groups == ()
    assert {f.reason for f in before.frozen} >= {"operator CenterCropPad has no rule"}

    rule, test = blocks("adding-an-op.md", "python")
    exec(rule, {})
    rng = np.random.default_rng(1)
    names = {
        "model": model,
        "feeds": {"x": rng.normal(size=(2, 3, 10, 10)).astype(np.float32)},
        "analyze": analyze,
        "prune": prune,
        "check": check,
        "ir": ir,
    }
    exec(test, names)
    names["test_channels_pass_through_a_crop"]()


def test_the_criterion_of_the_page_scores_units(monkeypatch):
    monkeypatch.setattr(criteria, "_CRITERIA", {name: criteria.get(name) for name in criteria.names()})
    (source,) = blocks("adding-a-criterion.md", "python")
    exec(source, {})
    model = cropped_net("Relu")
    first = model.graph.initializers["first"]
    weight = np.ones((8, 3, 3, 3), np.float32)
    weight[5] = 9.0
    first.const_value = ir.Tensor(weight, name="first")
    analysis = analyze(model)
    (group,) = analysis.groups
    scores = criteria.get("spread")(criteria.GroupView(analysis, group, {}))
    assert scores.shape == (8,)
    assert scores.argmax() == 5


def test_the_target_of_the_page_is_one(tmp_path):
    path = tmp_path / "my-board.toml"
    path.write_text(blocks("adding-a-target.md", "toml")[0])
    target = from_toml(path)
    assert (target.name, target.dialect, target.peak.clock_ghz) == ("my-board", "ort_mobile", 2.2)
    assert target.precisions == ("int8", "fp32")


@pytest.mark.parametrize("page", sorted(p.name for p in [*DOCS.glob("*.md"), ROOT / "README.md"]))
def test_links_lead_somewhere(page):
    path = ROOT / page if page == "README.md" else DOCS / page
    text = path.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http", "reference/")):
            assert (path.parent / link).exists(), f"{page} links to {link}"


def test_the_navigation_has_every_page():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.MULTILINE)
    made = ["reference/cli.md", "reference/python.md", "reference/schemas.md"]  # by docs/generate.py
    assert sorted(listed) == sorted([*made, *(p.name for p in DOCS.glob("*.md"))])


def test_the_readme_table_is_made_of_the_demos_figures():
    spec = importlib.util.spec_from_file_location("refresh", DOCS / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    refresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refresh)
    size = {"parameters": 134_570, "macs": 16_300_000, "bytes": 585_532}
    original = size | {"accuracy": 0.964, "accuracy_ci95": [0.944, 0.977]}
    host = original | {
        "accuracy": 0.9595,
        "latency_ms": {"before": 0.842, "after": 0.54},
        "ratio": 0.642,
        "ratio_ci95": [0.637, 0.648],
        "precision": "int8",
        "how": "measured",
        "change_points": -0.45,
        "change_ci95": 0.4,
    }
    demo = {"columns": {"original": original, "host": host}, "test_lines": 2000, "seconds": 212.4}
    report = read_report(ROOT / "tests" / "data" / "report.json")
    lines = refresh.table(demo, report).splitlines()
    assert lines[:2] == ["| | original | host |", "|---|---|---|"]
    assert "| file | 586 kB, fp32 | 586 kB, int8 |" in lines
    assert "| **ratio**, 95% interval |  | **0.642** [0.637, 0.648] measured |" in lines
    assert "| latency |  | 0.540 ms |" in lines
    assert "| change |  | -0.45 ± 0.40 points |" in lines
    assert lines[-1].endswith("on 2025-01-10 (onnxruntime 1.32.0, avx512_vnni): 212 s in all.")


def test_the_reference_is_made_of_the_code():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    commands = generate.cli()
    for name in _COMMANDS:
        assert f"\n## {name}\n" in commands
    assert "`--depfile FILE`" in commands
    python = generate.python()
    for name in ("compress", "heal", "check"):
        assert f"\n## {name}\n" in python
    assert "- `observer`: told of every step" in python
    assert "[report](schemas/report.json)" in generate.schemas()
