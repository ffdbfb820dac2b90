"""Several targets in one run: one graph each, on a grid that suits all, and no budget breaks another's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from models import random_feeds, residual_cnn, run, save, save_samples

from condensec import api
from condensec.hardware.target import get
from condensec.passes.groups import Group
from condensec.report.model import Report
from condensec.specs import parse_budget
from condensec.stages import cycles, goals
from condensec.stages.goals import Budgets, Limit

TARGETS = ["mobile-cpu", "nvidia-t4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets")
    save(residual_cnn(width=32), path)
    save_samples(residual_cnn(width=32), path / "d.npz", 128)
    return path


def compress(folder: Path, targets: list[str], output: str, **options: object) -> Report:
    given = {"max_drop": "inf", "heal": "off", "step": 1, "jobs": 1, "criterion": "magnitude", **options}
    return api.compress(
        folder / "model.onnx", target=targets, data=folder / "d.npz", output=folder / output, **given
    )


def test_every_target_has_its_graph_and_widths_suit_all(folder: Path) -> None:
    """The T4 wants channels in steps of 32 (fp16: 8), the phone in steps of 4."""
    report = compress(folder, TARGETS, "both", budget="macs<=0.6x")
    assert report.status == "ok"
    assert set(report.targets) == set(TARGETS)
    feeds = random_feeds(residual_cnn(), 1)
    answers = [run(onnx.load(folder / "both" / name / "model.onnx"), feeds) for name in TARGETS]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    assert (folder / "both" / "model.onnx").exists()
    for layer in report.layers:
        if layer.op == "Conv" and layer.after < layer.before:
            for name in TARGETS:
                assert layer.after in get(name).levels(layer.before, "conv", "fp32", None), (layer, name)


def test_weights_beside_the_model_make_no_difference(folder: Path) -> None:
    """torch's exporter writes them so: search, repair, int8 and fp16 read them all."""
    beside = folder / "beside"
    beside.mkdir()
    onnx.save(
        residual_cnn(width=32), beside / "model.onnx",
        save_as_external_data=True, location="model.onnx.data", size_threshold=0,
    )  # fmt: skip
    save_samples(residual_cnn(width=32), beside / "d.npz", 128)
    given = {"budget": "macs<=0.6x", "quantize": "auto", "heal": "closed-form", "criterion": "obs"}
    targets = ["x86-avx2", *TARGETS]
    inside, outside = (compress(one, targets, "out", **given) for one in (folder, beside))
    assert [layer.after for layer in inside.layers] == [layer.after for layer in outside.layers]
    assert inside.after.macs < 0.62 * inside.before.macs
    feeds = random_feeds(residual_cnn(), 1)
    for name in targets:
        assert inside.targets[name].precision == outside.targets[name].precision
        files = (one / "out" / name / "model.onnx" for one in (folder, beside))
        want, have = (run(onnx.load(file), feeds) for file in files)
        np.testing.assert_array_equal(have, want)


def test_a_budget_out_of_reach_on_one_target_leaves_the_other_alone(folder: Path) -> None:
    """Launching kernels takes the T4 most of its time here: no width gets it to 0.6x."""
    alone = compress(folder, ["mobile-cpu"], "alone", budget="latency<=0.6x")
    both = compress(folder, TARGETS, "unequal", budget="latency<=0.6x")
    assert alone.status == "ok"
    assert both.status == "budget_not_met"
    met = {budget.target: budget.met for budget in both.budgets}
    assert met == {"mobile-cpu": True, "nvidia-t4": False}
    assert any("can't be reached on nvidia-t4" in note for note in both.notes)
    assert both.after.macs > 0.5 * alone.after.macs, "not cut to the bone for a budget nobody can meet"
    assert both.targets["nvidia-t4"].file
    hopeless = compress(folder, ["nvidia-t4"], "hopeless", budget="latency<=0.6x")
    assert hopeless.status == "budget_not_met"
    assert hopeless.after.macs < both.after.macs, "alone it's cut as far as it goes"


def test_what_is_out_of_reach_depends_on_what_emission_gives() -> None:
    def limit(target: str) -> Limit:
        return Limit(parse_budget("latency<=0.5x"), target, lambda node: 0.0, 10.0, 5.0)

    both = Budgets((limit("a"), limit("b")), True, {"latency:a": 2.0, "latency:b": 8.0})
    assert [x.target for x in both.reachable({})] == ["a"]
    assert [x.target for x in both.reachable({"latency:b": 0.5})] == ["a", "b"]
    assert len(both.goals({})) == 1
    alone = Budgets((limit("b"),), True, {"latency:b": 8.0})
    assert [x.target for x in alone.reachable({})] == ["b"], "nothing else to keep"
    assert [x.target for x in Budgets((limit("a"), limit("b")), True).reachable({})] == ["a", "b"]


def test_widths_suit_the_precision_that_is_asked_for() -> None:
    vnni, phone, t4 = get("x86-vnni"), get("mobile-cpu"), get("nvidia-t4")
    assert [goals.lower_precision(t, "auto") for t in (vnni, phone, t4)] == ["int8", "int8", "fp16"]
    assert [goals.lower_precision(vnni, q) for q in ("none", "int8", "fp16")] == ["fp32", "int8", "fp32"]
    group = Group("g", "channel", 16, True, (), ())
    assert min(goals._levels(group, 1, "conv", vnni, None)) < 16
    assert goals._levels(group, 1, "conv", vnni, None, "int8") == {16}
    wide = Group("g", "channel", 64, True, (), ())
    assert goals._levels(wide, 1, "conv", vnni, None, "int8") == {16, 32, 48, 64}
    assert goals._levels(group, 1, "conv", vnni, 4, "int8") == {4, 8, 12, 16}, "--align wins"


def test_a_target_whose_nodes_cost_nothing_is_not_corrected() -> None:
    """As where the table knows none of them: the miss is told by the measured budget alone."""
    half = SimpleNamespace(relative=True, value=0.5)
    limit = SimpleNamespace(key="latency:host", target="host", dense=0.0, budget=half)
    budgets: Any = SimpleNamespace(asked=True, reachable=lambda correction: [limit])
    progress: Any = SimpleNamespace(reached=True, rounds=0, correction={})
    emitted: Any = {"host": SimpleNamespace(comparison=SimpleNamespace(ratio=1.0))}
    job: Any = None
    assert cycles.corrected(job, budgets, progress, emitted) is None
