"""`condensec check`: budgets that models in the tree have to keep, and what breaks them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp, residual_cnn, run, save, save_samples

from condensec import api
from condensec.builds.rules import MetricBudget, parse, read_rules
from condensec.cli import main
from condensec.errors import ConfigError

RUN = ["--budget", "macs<=0.8x", "--max-drop", "inf", "--target", "mobile-cpu", "--heal", "off", "-j", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(mlp(features=8, hidden=(32, 16), classes=4), tmp_path)
    save_samples(mlp(features=8, hidden=(32, 16), classes=4), tmp_path / "d.npz", 64)
    api.apply("model.onnx", api.plan("model.onnx", keep=0.5), "half.onnx")
    return tmp_path


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, object]]]:
    code = main(["check", *arguments, "--json", "-q"])
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is (code == 0)
    return code, [check for model in document["models"] for check in model["checks"]]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ("size<=1MB", True), ("size<=1kB", False), ("params<=884", True), ("params<=883", False),
        ("macs<=1k", True), ("macs<=800", False), ("latency<=10s", True), ("latency<=1us", False),
    ],
)  # fmt: skip
def test_absolute_budgets(folder: Path, capsys: pytest.CaptureFixture[str], budget: str, kept: bool) -> None:
    code, (check,) = found(capsys, "model.onnx", "--budget", budget)
    assert code == (0 if kept else 3)
    assert check["kept"] is kept
    assert check["how"] == ("measured" if budget[0] in "sl" else "parsed")


def test_the_figures_are_those_of_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mlp(features=8, hidden=(32, 16), classes=4)
    onnx.save(model, "far.onnx", save_as_external_data=True, location="far.bin", size_threshold=0)
    checks = found(
        capsys, "far.onnx", "--budget", "size<=1MB", "--budget", "params<=1k", "--budget", "macs<=1k"
    )[1]
    values = [check["value"] for check in checks]
    params = sum(int(np.prod(w.dims)) for w in model.graph.initializer)
    assert values == [
        Path("far.onnx").stat().st_size + Path("far.bin").stat().st_size,
        params,
        8 * 32 + 32 * 16 + 64,
    ]


def test_shares_of_an_original(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--against", "model.onnx", "--target", "mobile-cpu"]
    for budget, kept in {
        "macs<=0.5x": True, "macs<=0.3x": False, "params<=0.5x": True, "params<=0.3x": False,
        "size<=0.9x": True, "size<=0.3x": False, "latency<=1x": True, "latency<=0.1x": False,
    }.items():  # fmt: skip
        code, (check,) = found(capsys, "half.onnx", "--budget", budget, *options)
        assert code == (0 if kept else 3), budget
        assert check["unit"] == "x"
    assert check["how"] == "emulated"
    code, (check,) = found(capsys, "half.onnx", "--budget", "latency<=1x", "--against", "model.onnx")
    assert check["how"] == "measured"
    assert 0.2 < float(check["value"]) < 2  # type: ignore[arg-type]


def test_a_report_says_what_the_original_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "--data", "d.npz", *RUN, "-q"]) == 0
    capsys.readouterr()
    made, against = "model.condensed/model.onnx", ["--against", "model.condensed/report.json"]
    options = ["--budget", "macs<=0.8x", "--budget", "latency<=1x", "--target", "mobile-cpu", *against]
    code, checks = found(capsys, made, *options)
    assert code == 0
    report = json.loads(Path("model.condensed/report.json").read_text())
    assert checks[0]["value"] == pytest.approx(report["after"]["macs"] / report["before"]["macs"])
    assert main(["check", made, "--budget", "latency<=1x", *against, "-q"]) == 2, "it knows nothing of host"
    assert "doesn't say" in capsys.readouterr().err
    assert found(capsys, made, "--max-drop", "0", "--data", "d.npz", *against)[0] == 3
    assert found(capsys, made, "--max-drop", "99", "--data", "d.npz", *against)[0] == 0


def test_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("d.npz") as data:
        hits = run(onnx.load("half.onnx"), {"input": data["input"]}).argmax(axis=1) == data["labels"]
    share = float(hits.mean())
    assert 0.2 < share < 0.95
    for text, kept in {
        f"top1>={share - 0.01:.4f}": True, f"top1>={100 * share + 1:.4f}%": False,
        f"metric>={share - 1e-4:.6f}": True,
        f"top1<={share - 0.01:.4f}": False,
    }.items():  # fmt: skip
        code, (check,) = found(capsys, "half.onnx", "--budget", text, "--data", "d.npz")
        assert check["value"] == pytest.approx(share)
        assert code == (0 if kept else 3), text
    against = ["--against", "model.onnx", "--data", "d.npz"]
    lost = 100 * (1 - share)
    assert found(capsys, "half.onnx", "--max-drop", f"{lost + 0.1}", *against)[0] == 0
    code, (check,) = found(capsys, "half.onnx", "--max-drop", f"{lost - 0.1}", *against)
    assert code == 3
    assert check["value"] == pytest.approx(lost)
    assert found(capsys, "half.onnx", "--budget", "agreement>=0.1", *against)[0] == 0
    assert (
        found(capsys, "model.onnx", "--budget", "agreement>=1", "--budget", "cosine>=0.999", *against)[0] == 0
    )


def test_a_file_of_rules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "zoo").mkdir()
    save(residual_cnn(), folder / "zoo", "cnn.onnx")
    save(mlp(), folder / "zoo", "mlp.onnx")
    rules = folder / "condensec-check.toml"
    rules.write_text(
        '[[model]]\npath = "zoo/*.onnx"\nbudget = ["size<=1MB"]\n\n'
        '[[model]]\npath = "half.onnx"\nagainst = "model.onnx"\nbudget = "macs<=0.5x"\n'
        'data = "d.npz"\nmax-drop = 90\ntarget = "mobile-cpu"\n'
    )
    assert [rule.model.name for rule in read_rules(rules)] == ["cnn.onnx", "mlp.onnx", "half.onnx"]
    assert main(["check"]) == 0
    out, err = capsys.readouterr()
    assert out.count("kept") == 4
    assert "checking" in err
    rules.write_text(rules.read_text().replace("0.5x", "0.1x"))
    (folder / "elsewhere").mkdir()
    code, checks = found(capsys, "--config", str(rules))
    assert code == 3
    assert [check["kept"] for check in checks] == [True, True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no [[model]]"), ("model = 3", "no [[model]]"),
        ("[[model]]\nbudget = 'size<=1MB'", "without a path"),
        ("[[model]]\npath = 'model.onnx'\nbudgets = 'size<=1MB'", "unknown key 'budgets'"),
        ("[[model]]\npath = 'model.onnx'", "nothing to check"),
        ("[[model]]\npath = 'no*.onnx'\nbudget = 'size<=1MB'", "no file matches"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 3", "budget can't be 3"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 'size>=1MB'", "has to be '<='"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 'speed>=1'", "unknown figure 'speed'"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 'macs<=0.5x'", "--against"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 'top1>=0.5'", "--data"),
        ("[[model]]\npath = 'model.onnx'\nmax-drop = -1", "--max-drop"),
        ("[[model]]\npath = 'model.onnx'\nbudget = 'latency<=1ms'\ntarget = 'nowhere'", "nowhere"),
    ],
)  # fmt: skip
def test_bad_rules_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "condensec-check.toml").write_text(text)
    assert main(["check", "-q"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_wrong_use_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["check"], ["check", "--budget", "size<=1MB"], ["check", "model.onnx"],
        ["check", "model.onnx", "--budget", "size<=1MB", "--config", "x.toml"],
        ["check", "none.onnx", "--budget", "size<=1MB"],
        ["check", "half.onnx", "--budget", "agreement>=0.5", "--data", "d.npz"],
    ):  # fmt: skip
        assert main([*arguments, "-q"]) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1


def test_bounds_on_metrics() -> None:
    assert parse("top1>=93%") == MetricBudget("top1", True, pytest.approx(0.93), "top1>=93%")  # type: ignore[arg-type]
    assert parse("mse<=1e-3") == MetricBudget("mse", False, 1e-3, "mse<=1e-3")
    assert parse("my.module:score>=2").metric == "my.module:score"  # type: ignore[union-attr]
    with pytest.raises(ConfigError):
        parse("top1=0.9")
