"""The whole line on small models: files, proof, guard, resume, determinism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from line_tools import compress
from models import depthwise_se_cnn, save

from condensec import api
from condensec.errors import ConfigError, Interrupted, PassError, PostconditionError
from condensec.passes import prune as prune_module
from condensec.plan import read_plan
from condensec.report.model import read_report
from condensec.stages import cycles, finish
from condensec.stages.state import Candidate, Checkpoints, Progress
from condensec.stages.steps import Steps


def test_the_files_of_a_run_and_what_they_say(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = compress(model, out, data=data, budget="macs<=0.6x")
    assert report.status == "ok"
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "model.onnx", "mobile-cpu/model.onnx", "plan.json", "report.json", "report.html", "condensec.toml",
    }  # fmt: skip
    assert read_report(out / "report.json") == report
    assert report.after.macs <= 0.6 * report.before.macs
    assert report.after.params < report.before.params
    assert report.before.metric.name == "top1"
    assert report.before.metric.value == 1.0
    assert report.before.metric.change_ci95 is None
    low, high = report.after.metric.change_ci95
    assert -1 < low <= report.after.metric.value - 1.0 <= high <= 0
    assert low < high or report.after.metric.value == 1.0
    assert report.verification.exact.passed
    assert report.verification.exact.groups > 0
    assert [(run.file, run.inputs) for run in report.verification.runs] == [
        ("model.onnx", "input: 1x3x16x16"),
        ("model.onnx", "input: 3x3x16x16"),
        ("mobile-cpu/model.onnx", "input: 1x3x16x16"),
    ]
    assert report.timings["total"] >= report.timings["groups"]
    plan = read_plan(out / "plan.json")
    assert plan.digest() == report.plan_sha256
    cut = onnx.load(out / "model.onnx")
    properties = {p.key: p.value for p in cut.metadata_props}
    assert properties["condensec.plan_sha256"] == plan.digest()
    assert properties["condensec.original_sha256"] == plan.sha256


def test_the_emitted_graph_runs_with_the_original_interface(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(model, out, data=data, budget="macs<=0.6x")
    before = ort.InferenceSession(model)
    after = ort.InferenceSession(out / "model.onnx")
    assert [(i.name, i.shape) for i in after.get_inputs()] == [(i.name, i.shape) for i in before.get_inputs()]
    assert [(o.name, o.shape) for o in after.get_outputs()] == [
        (o.name, o.shape) for o in before.get_outputs()
    ]
    assert after.run(None, {"input": np.zeros((5, 3, 16, 16), np.float32)})[0].shape == (5, 10)


def test_two_runs_are_byte_identical(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        compress(model, tmp_path / name, data=data, budget="macs<=0.6x", seed=3)
    for file in ("model.onnx", "plan.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_keep_is_uniform(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "out", keep=0.5, align=1)
    groups = read_plan(tmp_path / "out" / "plan.json").groups
    assert groups
    assert all(len(g.kept) == max(1, g.size // 2) for g in groups)


def test_without_data_fidelity_is_judged_and_the_report_says_so(model: Path, tmp_path: Path) -> None:
    report = api.compress(model, output=tmp_path / "out", target="mobile-cpu", heal="off", jobs=1)
    assert report.status == "ok"
    assert report.data.synthetic
    assert report.before.metric.name in ("agreement", "cosine")
    assert any("accuracy was not measured" in note for note in report.notes)
    assert report.guard.drop <= 1.0
    assert report.budgets
    assert not any(budget.asked for budget in report.budgets)


def test_the_guard_rolls_back_and_the_best_safe_model_is_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    report = compress(model, tmp_path / "out", data=data, budget="macs<=0.3x", max_drop=0.5)
    assert report.status == "budget_not_met"
    assert any(not cycle.accepted for cycle in report.cycles)
    assert "rolled back" in next(c.note for c in report.cycles if not c.accepted)
    assert report.guard.kept
    assert report.guard.drop <= 0.5
    assert (tmp_path / "out" / "model.onnx").exists()


def test_a_share_that_the_guard_forbids_is_not_called_met(model: Path, data: Path, tmp_path: Path) -> None:
    kept = compress(model, tmp_path / "kept", data=data, keep=0.5, max_drop="inf", step=1)
    assert kept.status == "ok"
    assert not any("--keep" in note for note in kept.notes)
    held = compress(model, tmp_path / "held", data=data, keep=0.1, max_drop=0.01, step=1)
    assert held.status == "budget_not_met"
    assert any("--keep 0.1: not reached" in note for note in held.notes)
    assert held.guard.kept


@pytest.mark.parametrize("when", ["select", "prune", "judge", "verify", "emit", "report"])
def test_killed_in_any_step_it_resumes_to_the_same_plan(
    model: Path, data: Path, tmp_path: Path, when: str
) -> None:
    settings: dict[str, Any] = {"data": data, "budget": "macs<=0.6x"}
    compress(model, tmp_path / "whole", **settings)
    seen = 0

    def kill(step: str, before: Any, after: Any) -> None:
        nonlocal seen
        if step == when and after is None:
            seen += 1
            if seen == (2 if when in ("select", "prune", "judge") else 1):
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        compress(model, out, observer=kill, **settings)
    assert seen
    assert not (out / "model.onnx").exists()
    assert (out / "state" / "progress.json").exists()
    compress(model, out, resume=True, **settings)
    assert (out / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()
    assert (out / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()
    assert not (out / "state").exists()


def test_a_checkpoint_of_other_settings_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    def kill(step: str, before: Any, after: Any) -> None:
        if step == "verify":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        compress(model, out, observer=kill, data=data, budget="macs<=0.6x")
    with pytest.raises(ConfigError, match="without --resume"):
        compress(model, out, data=data, budget="macs<=0.7x", resume=True)


def test_a_wrong_cut_names_its_group_and_writes_nothing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = prune_module.prune

    def wrong(*args: Any, **options: Any) -> Any:
        cut = right(*args, **options)
        for name, value in cut.model.graph.initializers.items():
            if name in cut.plan.slices and len(value.shape) == 4:
                array = value.const_value.numpy()[::-1].copy()  # the kept filters in another order
                prune_module.set_weight(value, array, value.const_value.dtype)
                break
        return cut

    monkeypatch.setattr(cycles, "prune", wrong)
    monkeypatch.setattr(finish, "prune", wrong)
    with pytest.raises(PostconditionError, match=r"group.* g\d+.*nothing was written"):
        compress(model, tmp_path / "out", data=data, keep=0.5, align=1)
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_dry_run_plans_and_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    report = compress(model, tmp_path / "out", data=data, budget="macs<=0.6x", dry_run=True)
    assert report.status == "dry_run"
    assert report.after.macs <= 0.6 * report.before.macs
    assert report.after.how["macs"] == "modelled"
    assert not (tmp_path / "out").exists()


def test_frozen_names_stay_whole(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "out", keep=0.5, align=1, freeze="^block1")
    slices = read_plan(tmp_path / "out" / "plan.json").slices
    assert slices
    assert not any(name.startswith("block1") for name in slices)


def test_plan_apply_and_verify_step_by_step(model: Path, tmp_path: Path) -> None:
    plan = api.plan(model, keep=0.5)
    file = tmp_path / "plan.json"
    file.write_text(plan.dumps())
    cut = api.apply(model, file, tmp_path / "cut.onnx")
    proof = api.verify(model, plan, cut)
    assert proof.passed
    wrong = onnx.load(cut)
    kernel = next(t for t in wrong.graph.initializer if len(t.dims) == 4)
    array = onnx.numpy_helper.to_array(kernel)[::-1].copy()
    kernel.CopyFrom(onnx.numpy_helper.from_array(array, kernel.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not api.verify(model, plan, tmp_path / "wrong.onnx").passed


def test_apply_refuses_a_plan_for_another_file(model: Path, tmp_path: Path) -> None:
    other = save(depthwise_se_cnn(), tmp_path, "other.onnx")
    with pytest.raises(ConfigError, match="another file"):
        api.apply(other, api.plan(model), tmp_path / "cut.onnx")


def test_inspect_says_what_is_prunable_and_why_not(model: Path) -> None:
    found = api.inspect(model)
    assert found.reachable > 0.95
    assert found.macs > 0
    assert any("graph output" in f.reason for f in found.frozen)
    assert json.loads(json.dumps(found.to_json()))["groups"][0]["size"] == found.groups[0].size


def test_a_failed_step_names_itself_and_the_steps_before() -> None:
    steps = Steps()
    steps.run("first", lambda: 1)
    with pytest.raises(PassError, match=r"step 'second' failed \(after first\): boom"):
        steps.run("second", lambda: (_ for _ in ()).throw(RuntimeError("boom")))
    assert set(steps.seconds) == {"first", "second"}
    assert steps.done == ["first"]


def test_checkpoints_keep_everything_and_know_their_key(tmp_path: Path) -> None:
    best = Candidate({"g0": 3}, {"g0": [0, 1, 5]}, {"w": np.arange(6.0).reshape(2, 3)}, 0.5)
    progress = Progress(best=best, step=0.05, correction={"latency:host": 1.1}, heal_seconds=12.0)
    Checkpoints(tmp_path, "key").save(progress)
    found = Checkpoints(tmp_path, "key").load()
    assert found is not None
    np.testing.assert_array_equal(found.best.weights["w"], best.weights["w"])
    assert (found.best.counts, found.step, found.correction) == (best.counts, 0.05, {"latency:host": 1.1})
    with pytest.raises(ConfigError, match="another model"):
        Checkpoints(tmp_path, "other").load()
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        Checkpoints(tmp_path, "key").load()
