"""The commands at work on small models: what goes to stdout, what to stderr, which exit code."""

from __future__ import annotations

import io as text_io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import mlp, random_feeds, residual_cnn, run, save, save_samples

from condensec import __version__, api, console
from condensec.cli import main
from condensec.commands import _COMMANDS
from condensec.progress import Progress
from condensec.report import read_report

# a modelled target and no healing: nothing is timed, nothing is trained
FAST = ["--target", "mobile-cpu", "--heal", "off", "--jobs", "1"]
NET = {"features": 8, "hidden": (32, 16), "classes": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(mlp(**NET), tmp_path)  # type: ignore[arg-type]
    save_samples(mlp(**NET), tmp_path / "d.npz", 96)  # type: ignore[arg-type]
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


LINE = ["model.onnx", "--data", "d.npz", "--budget", "macs<=0.8x", "--max-drop", "inf", *FAST]


def test_the_whole_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(LINE) == 0
    out, err = capsys.readouterr()
    assert "model.onnx" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out + err, "no colours where nobody looks"
    assert "reading the model" in err
    assert "written to model.condensed" in err
    made = {f for f in files(folder) if f.startswith("model.condensed")}
    assert {
        f"model.condensed/{n}"
        for n in ("model.onnx", "plan.json", "report.json", "report.html", "condensec.toml")
    } <= made
    report = read_report(folder / "model.condensed" / "report.json")
    assert report.after.macs <= 0.8 * report.before.macs
    assert report.command.startswith("condensec")


def test_json_is_the_report_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads((folder / "model.condensed" / "report.json").read_text())


def test_the_written_settings_repeat_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "-q"]) == 0
    plan = (folder / "model.condensed" / "plan.json").read_bytes()
    assert main(["--config", "model.condensed/condensec.toml", "--output", "again", "-q"]) == 0
    assert (folder / "again" / "plan.json").read_bytes() == plan


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert main([*LINE, "--dry-run", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "dry_run"
    assert files(folder) == before


def test_a_budget_out_of_reach_ends_with_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.onnx", "--data", "d.npz", "--budget", "macs<=0.01x", "--max-drop", "0", *FAST, "-q"]
    assert main(arguments) == 3
    assert "budget_not_met" in capsys.readouterr().out
    assert (folder / "model.condensed" / "model.onnx").exists()


def test_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", *FAST, "-q"]) == 0
    assert "not measured" in " ".join(capsys.readouterr().out.split())


# -- single steps ----------------------------------------------------------------------------------------


def test_plan_apply_verify_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model.onnx", "--keep", "0.5", "-o", "plan.json"]) == 0
    assert "neuron" in capsys.readouterr().out
    assert main(["apply", "model.onnx", "plan.json", "-o", "cut.onnx"]) == 0
    assert (folder / "cut.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    capsys.readouterr()
    assert main(["verify", "model.onnx", "plan.json", "cut.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert main(["verify", "model.onnx", "plan.json", "model.onnx", "-q"]) == 1, (
        "the uncut model isn't the cut"
    )
    assert "isn't the cut" in capsys.readouterr().err
    assert main(["bench", "model.onnx", "cut.onnx", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ci95"][0] <= found["ratio"] <= found["ci95"][1]


def test_a_plan_of_another_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(mlp(features=9), folder, "other.onnx")
    assert main(["plan", "other.onnx", "-o", "plan.json", "-q"]) == 0
    assert main(["apply", "model.onnx", "plan.json", "-q"]) == 2
    assert "another file" in capsys.readouterr().err


def test_inspect_and_analyze(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model.onnx"]) == 0
    out = capsys.readouterr().out
    assert "input: float32[N,8]" in out
    assert "graph output 'logits'" in out
    assert main(["inspect", "model.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [g["size"] for g in found["groups"]] == [32, 16]
    assert found["params"] == sum(int(np.prod(w.dims)) for w in mlp(**NET).graph.initializer)  # type: ignore[arg-type]
    assert main(["inspect", "model.onnx", "--freeze", "fc0", "--json"]) == 0
    assert [g["size"] for g in json.loads(capsys.readouterr().out)["groups"]] == [16]
    before = files(folder)
    assert main(["analyze", "model.onnx", "--data", "d.npz", "--target", "mobile-cpu", "--json", "-q"]) == 0
    assert set(json.loads(capsys.readouterr().out)["sensitivity"]) == {g["id"] for g in found["groups"]}
    assert files(folder) == before


def test_emit_and_quantize(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emit", "model.onnx", "--target", "mobile-cpu", "--target", "host", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)["targets"]
    assert list(found) == ["mobile-cpu", "host"]
    feeds = random_feeds(mlp(**NET), 1)  # type: ignore[arg-type]
    for name in found:
        path = folder / "model.emitted" / name / "model.onnx"
        np.testing.assert_allclose(
            run(onnx.load(path), feeds), run(onnx.load("model.onnx"), feeds), atol=1e-5
        )


def test_report_of_an_earlier_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "-q"]) == 0
    first = capsys.readouterr().out
    assert main(["report", "model.condensed", "--html", "page.html"]) == 0
    assert capsys.readouterr().out == first
    assert "<html" in (folder / "page.html").read_text("utf-8")


def test_targets_and_doctor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["targets", "--json"]) == 0
    names = [t["name"] for t in json.loads(capsys.readouterr().out)["targets"]]
    assert {"host", "mobile-cpu", "nvidia-t4"} <= set(names)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CONDENSEC_HEAL_PYTHON", raising=False)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["condensec"] == __version__
    assert found["packages"]["onnxruntime"]
    assert found["healing"]["detail"]
    assert not (tmp_path / "condensec").exists(), "without --fix nothing is set up"


# -- help ------------------------------------------------------------------------------------------------


def test_help_names_every_flag_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    flags = "-o --output --target --budget --keep --align --max-drop --data --val --metric --step --heal"
    flags += " --augment --loss --patterns --quantize --criterion --freeze --config --seed --jobs --resume"
    flags += " --dry-run --json -q -v"
    for flag in flags.split():
        assert re.search(rf"^ .*{flag}\b", text, re.MULTILINE), flag
    for command in _COMMANDS:
        assert command == "compress" or re.search(rf"^  {command} ", text, re.MULTILINE)
    assert "130" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: condensec ")
    assert "--json" in text
    for line in re.findall(r"^  (-\S.*)$", text, re.MULTILINE):
        assert re.search(r"  \S", line) or len(line) > 20, f"{command}: {line} has no help"


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="can't tell whether the machine is busy")
def test_help_is_quick() -> None:
    """Under 0.3 s, the best of seven; on a busy machine only the bound that catches a heavy import."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "condensec.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    assert min(times) < (1.5 if busy else 0.3)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from condensec.cli import main; main(['--help']); "
    code += "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich', 'jinja2'}; "
    code += "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"


def test_version_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"condensec {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-c", "from condensec.cli import main; main()"],
        env={**os.environ, "_CONDENSEC_COMPLETE": "complete_bash", "COMP_WORDS": "condensec ins",
             "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "inspect" in done.stdout


# -- ends ------------------------------------------------------------------------------------------------


def test_ctrl_c_is_130_and_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec import pipeline

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", interrupted)
    monkeypatch.setattr(pipeline, "analyze", interrupted)
    assert main([*LINE, "-q"]) == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--resume" in err
    assert main(["analyze", "model.onnx", "-q"]) == 130
    assert "--resume" not in capsys.readouterr().err, "there is nothing to go on with"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_and_resume_ends_in_the_same_plan(
    folder: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "condensec.cli", *LINE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "finding what can be cut" in line:
                process.send_signal(number)
                break
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, seen + rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    assert not (folder / "model.condensed" / "model.onnx").exists()
    assert main([*LINE, "--resume", "-q"]) == 0
    assert main([*LINE, "--output", "whole", "-q"]) == 0
    assert (folder / "model.condensed" / "plan.json").read_bytes() == (
        folder / "whole" / "plan.json"
    ).read_bytes()


def test_an_interrupt_that_native_code_swallows_still_counts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec import pipeline

    def failing(*args: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    def going_on(settings: Any, observer: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            observer("prune", None, None)

    for function in (failing, going_on):
        monkeypatch.setattr(pipeline, "compress", function)
        assert main([*LINE, "-q"]) == 130
        assert "--resume" in capsys.readouterr().err


def test_a_fault_of_our_own_is_one_line_and_a_traceback_on_demand(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec import pipeline

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(pipeline, "compress", broken)
    assert main([*LINE, "-q"]) == 1
    err = capsys.readouterr().err
    assert err == "condensec: internal error: ZeroDivisionError: oh no; -vv shows where\n"
    assert main([*LINE, "-q", "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main([*LINE, "-q", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "internal"


# -- progress --------------------------------------------------------------------------------------------


class Terminal(text_io.StringIO):
    def isatty(self) -> bool:
        return True


class Share:
    share, text = 0.4, "g7"


@pytest.mark.parametrize("no_color", [True, False])
def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    with Progress(console.Console()) as progress:
        progress("sensitivity", object(), None)
        progress("sensitivity", Share(), None)
        progress._bar.refresh()
        progress("sensitivity", object(), object())
    text = screen.getvalue()
    assert "measuring sensitivity g7" in text
    assert re.search(r"0\.0 s  measuring sensitivity", text)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) is not no_color


def test_progress_elsewhere_is_plain_lines_or_silence(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, wanted in ((False, ["    0.0 s  cutting", "    0.0 s  judging"]), (True, [])):
        with Progress(console.Console(quiet=quiet)) as progress:
            for step in ("prune", "judge", "prune", "prune"):
                progress(step, object(), None)
                progress(step, Share(), None)
                progress(step, object(), object())
        assert capsys.readouterr().err.splitlines() == wanted


def test_a_plan_without_data_never_runs_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units go by their weights then; with data, or a criterion asked for, they go by what it says."""
    path = save(residual_cnn(), tmp_path)
    by_weights = api.plan(path, criterion="magnitude")
    by_made_up = api.plan(path, criterion="obs")
    assert by_weights.kept() != by_made_up.kept()
    monkeypatch.setattr("condensec.runner.Session.__init__", None)
    assert api.plan(path).kept() == by_weights.kept()
