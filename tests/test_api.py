"""The Python interface: step by step, with an observer, typed, and quiet."""

from __future__ import annotations

import inspect
import logging
import typing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import mlp, run, save, save_samples

import condensec
from condensec import Report, api
from condensec.hardware.bench import Comparison, Measurement
from condensec.plan import Plan
from condensec.stages import deploy

NET: dict[str, Any] = {"features": 8, "hidden": (32, 16), "classes": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(mlp(**NET), tmp_path)
    save_samples(mlp(**NET), tmp_path / "d.npz", 64)
    return tmp_path


def public() -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__ == "condensec.api" and not name.startswith("_")
    }


def test_step_by_step(folder: Path) -> None:
    assert api.inspect("model.onnx").params == 884
    plan = api.plan("model.onnx", keep=0.5)
    assert isinstance(plan, Plan)
    assert Plan.from_json(plan.to_json()) == plan
    cut = api.apply("model.onnx", plan, "cut.onnx")
    assert api.verify("model.onnx", plan, cut).passed
    written = api.emit(cut, "out", target=["mobile-cpu"], data="d.npz")
    feeds = {"input": np.load("d.npz")["input"][:1]}
    np.testing.assert_allclose(
        run(onnx.load(written["mobile-cpu"].path), feeds), run(onnx.load(cut), feeds), atol=1e-5
    )
    assert api.check(cut, budget="macs<=0.5x", against="model.onnx").kept
    assert not api.check(cut, budget="macs<=0.1x", against="model.onnx").kept


def test_bench_gives_a_measurement_or_a_comparison(folder: Path) -> None:
    assert isinstance(api.bench("model.onnx"), Measurement)
    both = api.bench("model.onnx", "model.onnx")
    assert isinstance(both, Comparison)
    assert both.ci95[0] <= both.ratio <= both.ci95[1]


def test_a_lower_precision_has_to_be_accepted(folder: Path) -> None:
    seen: list[Path] = []

    def never(path: Path) -> bool:
        seen.append(path)
        return False

    options: dict[str, Any] = {"target": "mobile-cpu", "data": "d.npz", "quantize": "int8"}
    assert api.emit("model.onnx", "a", accept=never, **options)["mobile-cpu"].precision == "fp32"
    assert seen
    assert api.emit("model.onnx", "b", accept=lambda path: True, **options)["mobile-cpu"].precision == "int8"


def test_emission_keeps_the_same_guard_as_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.Guard, "judge", lambda self, path: self.value - 0.02)  # two points less
    options: dict[str, Any] = {"target": "mobile-cpu", "data": "d.npz", "metric": "top1"}
    for quantize, drop, precision in (("int8", 1, "fp32"), ("int8", 3, "int8"), ("auto", 3, "int8")):
        made = api.emit("model.onnx", f"{quantize}{drop}", quantize=quantize, max_drop=drop, **options)
        assert made["mobile-cpu"].precision == precision
    assert api.emit("model.onnx", "c", quantize="int8", **options)["mobile-cpu"].precision == "int8"
    chosen = api.emit("model.onnx", "d", quantize="int8", calibrate="entropy", **options)["mobile-cpu"]
    assert chosen.calibration == "entropy"


def test_the_whole_line_tells_an_observer_and_the_log_and_prints_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "condensec")
    steps: list[str] = []
    report = condensec.compress(
        "model.onnx", data=dict(np.load("d.npz")), target="mobile-cpu", budget="macs<=0.8x", max_drop="inf",
        heal="off", jobs=1, observer=lambda step, before, after: steps.append(step) if after else None,
    )  # fmt: skip
    assert isinstance(report, Report)
    assert report.after.macs <= 0.8 * report.before.macs
    wanted = [
        "load",
        "data",
        "groups",
        "baseline",
        "sensitivity",
        "select",
        "prune",
        "judge",
        "verify",
        "emit",
    ]
    assert [step for step in dict.fromkeys(steps) if step in wanted] == wanted
    logged = [record.getMessage() for record in caplog.records if record.name == "condensec.stages.steps"]
    assert {message.split(":")[0] for message in logged} >= set(wanted)
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("condensec").handlers == []


def test_everything_public_is_typed_and_there(folder: Path) -> None:
    names = {"compress", "analyze", "inspect", "plan", "apply", "verify", "heal", "emit", "bench", "check"}
    assert set(public()) == names
    for name, function in public().items():
        assert inspect.getdoc(function), name
        signature = inspect.signature(function)
        hints = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
        assert inspect.Signature.empty not in hints, name
    for name in condensec.__all__:
        assert getattr(condensec, name) is not None
        assert name in dir(condensec)
    # as modules, `plan` and `verify` keep their names at the top; the functions are in api
    assert names - set(condensec.__all__) == {"plan", "verify"}
    assert typing.get_type_hints(Plan)
