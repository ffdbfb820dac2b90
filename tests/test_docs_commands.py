"""Every command in the documentation runs: each `$ ` line of a console block, in the order of its page."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp, run, save, save_samples

from condensec.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# what other programs are told, and where that is run: in a benchmark, by `make`, or in setting up
ELSEWHERE = {
    "make demo": "the demo itself",
    "pip install .": "make demo, make test",
    "python3 -m venv .venv": "make setup",
    ". .venv/bin/activate": "of the shell",
    "python examples/shapes.py": "benchmarks/frameworks.py, and below",
    "condensec doctor --fix": "test_healing_environment",
}
# training and waiting are replaced by what costs nothing; what is timed doesn't have to get faster here
CHEAP = {"--heal epochs=3": "--heal epochs=1", "--heal 'minutes=10'": "--heal closed-form"}
SCORING = """def score(outputs, samples):
    return (outputs["logits"].argmax(axis=1) == samples.labels).mean()
"""


def commands(text: str) -> list[str]:
    """The lines of console blocks that are typed, continued ones joined."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(" ".join(line[2:].split()))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the pages speak of: model.onnx, samples.npz, shapes.onnx, ..."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = mlp(features=8, hidden=(32, 16), classes=4)
    save(net, tmp_path)
    save_samples(net, tmp_path / "samples.npz", 96)
    for name in ("shapes.onnx", "original.onnx"):
        shutil.copy("model.onnx", name)
    for name in ("train.npz", "val.npz", "test.npz"):
        shutil.copy("samples.npz", name)
    assert main(["plan", "model.onnx", "--keep", "0.5", "-o", "p.json", "-q"]) == 0
    assert main(["apply", "model.onnx", "p.json", "-o", "small.onnx", "-q"]) == 0
    (tmp_path / "scoring.py").write_text(SCORING)
    (tmp_path / "condensec-check.toml").write_text('[[model]]\npath = "small.onnx"\nbudget = "size<=1MB"\n')
    (recipe,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "condensec.toml").write_text(recipe)
    return tmp_path


def cheap(command: str) -> list[str]:
    for dear, instead in CHEAP.items():
        command = command.replace(dear, instead)
    words = shlex.split(command.partition(" > ")[0])[1:]  # where output goes is the shell's
    compresses = words[0].endswith(".onnx") or words[0] == "--config"
    if compresses and "--heal" not in words:  # flags win over a file's settings
        words += ["--heal", "off"]
    if compresses and "--max-drop" not in words and "--config" not in words and "--dry-run" not in words:
        words += ["--max-drop", "50"]
    return [*words, "--quiet"]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p.read_text("utf-8"))], ids=lambda p: p.name)
def test_the_commands_of_a_page_run(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page.read_text("utf-8")):
        if command in ELSEWHERE:
            continue
        assert command.startswith("condensec "), f"{page.name}: {command} is run nowhere"
        if command.startswith("condensec heal"):
            continue  # trains in another environment: test_healing_cli runs it
        code = main(cheap(command))
        err = capsys.readouterr().err
        # an untrained network of a few hundred weights: a budget may be out of reach within the guard
        assert code in (0, 3), f"{page.name}: {command}\n{err}"


def test_what_runs_elsewhere_is_still_told_somewhere() -> None:
    told = {command for page in PAGES for command in commands(page.read_text("utf-8"))}
    assert set(ELSEWHERE) <= told


def test_commands_are_found_and_wrong_ones_fail(folder: Path) -> None:
    text = "a\n```console\n$ condensec x \\\n    --y\noutput\n$ make demo\n```\n"
    assert commands(text) == ["condensec x --y", "make demo"]
    assert main(cheap("condensec model.onnx --budgets 'macs<=0.5x'")) == 2
    assert main(cheap("condensec apply absent.onnx p.json")) == 2


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), flags=re.DOTALL)


def test_the_python_of_the_pipelines_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in python_blocks("pipelines.md"):
        exec(block, {})
    out = capsys.readouterr().out
    assert "True" in out
    assert "done: verify" in out


def test_the_tutorials_model_is_trained_and_its_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("shapes", ROOT / "examples" / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    monkeypatch.setattr(sys, "argv", ["shapes.py", "--epochs", "3", "--train", "1000"])
    assert shapes.main() == 0
    share = float(re.findall(r"([\d.]+)%", capsys.readouterr().out)[0])
    assert share > 35, "six shapes: chance is 17"
    with np.load("test.npz") as data:
        logits = run(onnx.load("shapes.onnx"), {"image": data["image"]})
        assert 100 * np.mean(logits.argmax(axis=1) == data["labels"]) == pytest.approx(share, abs=0.06)
    assert main(["emit", "shapes.onnx", "--target", "host", "-o", "shapes.condensed", "-q"]) == 0
    capsys.readouterr()
    for block in python_blocks("tutorial.md"):
        exec(block, {})
    assert f"{share:.1f}% of 2000 test pictures" in capsys.readouterr().out
