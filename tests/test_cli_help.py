"""Help, errors and completion of every command: all options are explained, all slips named in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import mlp, save

from condensec import console
from condensec.cli import main
from condensec.commands import _COMMANDS, offers
from condensec.passes import criteria
from condensec.progress import Progress

COMMANDS = sorted(set(_COMMANDS) - {"compress"})
BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, a plan that is none, and things of the wrong kind."""
    monkeypatch.chdir(tmp_path)
    save(mlp(features=4, hidden=(8,), classes=3), tmp_path)
    np.savez("d.npz", input=np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32))
    Path("empty.json").write_text("{}")
    Path("text.txt").write_text("hello")
    Path("dir").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_screen_and_explains_everything(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("Usage: condensec")
    examples = lines.index("Examples:")
    assert any(line.startswith(f"  condensec {command}".rstrip()) for line in lines[examples + 1 :])
    assert all(len(line) <= 80 for line in lines if not line.startswith("  condensec "))
    for number, line in enumerate(lines[:examples]):
        name = line.strip().split("  ")[0]
        if line.startswith("  -"):
            explained = len(line.strip().split("  ", 1)) == 2 or lines[number + 1].startswith("    ")
            assert explained, f"{name} isn't explained"
        assert not line.endswith("-"), f"an option is torn apart: {line}"


def test_the_examples_use_options_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from condensec.commands.layout import _EXAMPLES

    assert set(_EXAMPLES) == set(_COMMANDS)
    for command, examples in _EXAMPLES.items():
        main(["--help"] if command == "compress" else [command, "--help"])
        text = capsys.readouterr().out
        for example in examples:
            words = example.split(">")[0].split() if command == "completion" else example.split()
            assert all(word in text for word in words if word.startswith("-")), example


SLIPS: dict[str, tuple[str, str]] = {
    "inspect dir": ("dir is a folder", "name the .onnx file"),
    "inspect model.onnx --shape input=1x2x3": ("shape 1x2x3 doesn't fit", "batch included"),
    "inspect model.onnx --shape other=1x2": ("--shape other: no such input", "the inputs are input"),
    "inspect model.onnx --freeze [": ("'['", "escape"),
    "analyze model.onnx --criterion foo": ("'foo'", "magnitude"),
    "plan": ("missing argument 'MODEL'", "condensec plan --help"),
    "plan model.onnx --keep 2": ("--keep 2", "at most 1"),
    "plan model.onnx -o dir": ("can't write dir: Is a directory", "another file"),
    "plan model.onnx -o none/plan.json": ("can't write none/plan.json: No such file", "another file"),
    "apply model.onnx none.json": ("can't read the plan none.json: No such file", "plan.json"),
    "apply model.onnx empty.json": ("empty.json is no plan", "plan.json"),
    "apply model.onnx text.txt": ("text.txt is no plan: it isn't JSON", "plan.json"),
    "verify model.onnx empty.json model.onnx": ("empty.json is no plan", "plan.json"),
    "heal model.onnx": ("missing option '--teacher'", "condensec heal --help"),
    "heal model.onnx --teacher none.onnx --data d.npz": ("none.onnx", "check the path"),
    "heal model.onnx --teacher model.onnx --data none.npz": ("none.npz", "--data"),
    "heal model.onnx --teacher model.onnx --data d.npz --heal off": ("--heal off", "epochs=3"),
    "quantize model.onnx --quantize int4": ("'int4'", "did you mean 'int8'"),
    "emit model.onnx --target foo": ("'foo'", "host"),
    "emit model.onnx -o model.onnx": ("model.onnx", "--output"),
    "bench model.onnx none.onnx": ("none.onnx", "check the path"),
    "bench model.onnx --jobs 0": ("--jobs 0", "at least 1"),
    "profile model.onnx --target foo": ("'foo'", "host"),
    "check model.onnx --budget foo": ("'foo'", "size<=4MB"),
    "report none": ("can't read the report none: No such file", "report.json"),
    "report text.txt": ("text.txt is no report: it isn't JSON", "report.json"),
    "report empty.json": ("empty.json is no report", "report.json"),
    "schema nope": ("'nope'", "report"),
    "completion tcsh": ("'tcsh'", "bash, zsh, fish"),
    "targets extra": ("extra", "condensec targets --help"),
    "model.onnx --max-drop x": ("--max-drop x", "points"),
    "model.onnx --step 2": ("--step 2", "at most 1"),
    "model.onnx --align 0": ("--align 0", "at least 1"),
    "model.onnx --jobs two": ("--jobs two", "whole number"),
    "model.onnx --seed -1": ("--seed -1", "at least 0"),
    "model.onnx --patterns foo": ("'foo'", "channels"),
    "model.onnx --augment foo": ("'foo'", "flip"),
    "model.onnx --loss foo": ("'foo'", "output"),
    "model.onnx --pareto 0": ("--pareto 0", "at least 1"),
    "model.onnx --calibrate foo": ("'foo'", "minmax"),
    "model.onnx --val d.npz": ("--val needs --data", "--data"),
    "model.onnx --input sr": ("'sr'", "INPUT=NUMBER"),
    "model.onnx --input sr=3": ("--input sr: no such input", "the inputs are input"),
    "model.onnx --config dir": ("can't read dir: Is a directory", "condensec.toml"),
    "model.onnx --data text.txt": ("text.txt", ".npz"),
    "model.onnx --metric mse": ("--metric mse needs --max-drop", "inf"),
    "model.onnx --budget latency<5ms": ("'latency<5ms'", "latency<=5ms"),
    "model.onnx --resume=3": ("--resume", "condensec --help"),
}


@pytest.mark.parametrize("line", SLIPS)
def test_slips(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main([*line.split(), "-q"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("condensec: error: ")
    assert err.count("\n") == 1, err
    named, hint = SLIPS[line]
    assert named in err
    assert hint in err.split("; ", 1)[1], "says what to do next"
    assert "Errno" not in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "line", ["inspect none.onnx", "plan model.onnx -o dir", "report none", "heal model.onnx"]
)
def test_slips_as_json(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--json", "-q"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) >= {"code", "message", "node", "hint"}
    assert error["hint"]


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash is told for a line whose last word is being written."""
    monkeypatch.setenv("_CONDENSEC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert main([]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("condensec ins", ["inspect"]),
        ("condensec --targ", ["--target"]),
        ("condensec model.onnx --targ", ["--target"]),
        ("condensec model.onnx --target mobile", ["mobile-cpu"]),
        ("condensec emit model.onnx --target nvidia-t", ["nvidia-t4"]),
        ("condensec model.onnx --criterion magn", ["magnitude"]),
        ("condensec model.onnx --metric cos", ["cosine"]),
        ("condensec model.onnx --heal e", ["epochs=3"]),
        ("condensec model.onnx --patterns channels,he", ["channels,heads"]),
        ("condensec quantize model.onnx --quantize int", ["int8"]),
        ("condensec schema repo", ["report"]),
        ("condensec mod", []),  # then the shell completes files
        ("condensec model.onnx --data d", []),
    ],
)
def test_what_the_shell_offers(
    line: str, some: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = offered(line, monkeypatch, capsys)
    assert set(some) <= set(found)
    assert bool(found) == bool(some)


def test_zsh_and_fish_are_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in ("zsh", "fish"):
        monkeypatch.setenv("_CONDENSEC_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "condensec model.onnx --target mobile-cpu-")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        main([])
        assert "mobile-cpu-v8.0" in capsys.readouterr().out


def test_every_criterion_is_offered() -> None:
    assert {name for name, _ in offers.criteria("")} == set(criteria.names())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
@pytest.mark.skipif(not (BIN / "condensec").exists(), reason="condensec isn't installed as a program here")
def test_bash_itself(folder: Path) -> None:
    script = (
        "source <(condensec completion bash); COMP_WORDS=(condensec model.onnx --target mobile-cpu-);"
        ' COMP_CWORD=3; _condensec_completion condensec; printf "%s\\n" "${COMPREPLY[@]}";'
        " complete -p condensec"
    )
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "mobile-cpu-v8.0"
    assert "-o default" in done.stdout, "files are completed by bash where nothing is offered"


def test_doctor_tells_what_each_target_can_check(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    checks: dict[str, Any] = {target["name"]: target for target in document["targets"]}
    assert checks["host"]["verified"] == "measured"
    assert checks["nvidia-t4"]["verified"] in ("parsed", "modelled")
    main(["doctor"])
    assert "checked here" in capsys.readouterr().out


def test_a_long_step_without_a_terminal_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class So:
        def __init__(self, share: float) -> None:
            self.share, self.text = share, "epoch 1"

    clock = [0.0]
    monkeypatch.setattr("condensec.progress.time.monotonic", lambda: clock[0])
    with Progress(console.Console()) as progress:
        progress("heal", object(), None)
        for clock[0], share in ((10.0, 0.0), (20.0, 0.1), (60.0, 0.3), (70.0, 0.35), (100.0, 0.5)):
            progress("heal", So(share), None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "   60.0 s  healing: 30%, about 2 min left epoch 1",  # 40 s for a fifth, from 20 s on
        "  100.0 s  healing: 50%, about 100 s left epoch 1",
    ]
    with Progress(console.Console(quiet=True)) as progress:
        progress("heal", object(), None)
        clock[0] += 100
        progress("heal", So(0.5), None)
    assert capsys.readouterr().err == ""
