"""The examples of build systems: CMake, Make and Ninja built for real; Bazel, the Action and more parsed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from models import mlp, save, save_samples

import condensec
from condensec import builds
from condensec.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
COMMAND = Path(sys.executable).with_name("condensec")
MODULE = Path(builds.__file__).parent
NET: dict[str, Any] = {"features": 8, "hidden": (32, 16), "classes": 4}

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
needs_ninja = pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja")


def project(tmp_path: Path, example: str) -> Path:
    """A copy of an example with a model and samples."""
    folder = tmp_path / "a project"
    shutil.copytree(EXAMPLES / example, folder)
    save(mlp(**NET), folder)
    save_samples(mlp(**NET), folder / "samples.npz", 96)
    return folder


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def later(path: Path, than: Path) -> None:
    """Make a file newer than another, whatever the file system's clock resolves."""
    when = max(path.stat().st_mtime, than.stat().st_mtime) + 2
    os.utime(path, (when, when))


class Built:
    """Counts runs by what the result's file says of itself."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def stamp(self) -> tuple[int, int]:
        status = self.report.stat()
        return status.st_ino, status.st_mtime_ns

    def ran(self, build: Any) -> bool:
        before = self.stamp()
        build()
        return self.stamp() != before


def reruns(folder: Path, built: Built, build: Any) -> None:
    """Nothing runs where nothing changed; a newer input, one only the depfile knows too, runs it again."""
    assert not built.ran(build)
    for name in ("samples.npz", "model.onnx"):
        later(folder / name, built.report)
        assert built.ran(build), name
        now = built.report.stat().st_mtime
        os.utime(folder / name, (now - 10, now - 10))
        assert not built.ran(build), name


@needs_cmake
@pytest.mark.parametrize(
    "generator",
    [pytest.param("Unix Makefiles", marks=needs_make), pytest.param("Ninja", marks=needs_ninja)],
)
def test_cmake(tmp_path: Path, generator: str) -> None:
    folder = project(tmp_path, "cmake")
    found = [f"-Dcondensec_DIR={MODULE}", f"-DCONDENSEC_EXECUTABLE={COMMAND}"]
    run("cmake", "-S", ".", "-B", "build", "-G", generator, *found, cwd=folder)

    def build() -> None:
        run("cmake", "--build", "build", cwd=folder)

    build()
    out = folder / "build" / "small.condensed"
    assert (folder / "build" / "assets" / "model.onnx").read_bytes() == (
        out / "mobile-cpu" / "model.onnx"
    ).read_bytes()
    reruns(folder, Built(out / "report.json"), build)


@needs_cmake
@needs_make
@pytest.mark.skipif(
    not (Path(sys.prefix) / "share" / "cmake" / "condensec").exists(),
    reason="needs condensec installed from its wheel: an editable install puts nothing into share/",
)
def test_cmake_finds_the_module_of_an_active_environment(tmp_path: Path) -> None:
    folder = project(tmp_path, "cmake")
    run("cmake", "-S", ".", "-B", "build", "-G", "Unix Makefiles", cwd=folder)
    cache = (folder / "build" / "CMakeCache.txt").read_text()
    assert f"condensec_DIR:PATH={Path(sys.prefix) / 'share' / 'cmake' / 'condensec'}" in cache
    assert f"CONDENSEC_EXECUTABLE:FILEPATH={COMMAND}" in cache


@needs_cmake
@needs_make
def test_cmake_depends_on_what_only_the_depfile_knows(tmp_path: Path) -> None:
    folder = project(tmp_path, "cmake")
    text = (folder / "CMakeLists.txt").read_text()
    (folder / "CMakeLists.txt").write_text(text.replace("HEAL closed-form", "HEAL off METRIC scoring:score"))
    (folder / "scoring.py").write_text("import base\ndef score(outputs, samples):\n    return base.VALUE\n")
    (folder / "base.py").write_text("VALUE = 0.5\n")
    found = [f"-Dcondensec_DIR={MODULE}", f"-DCONDENSEC_EXECUTABLE={COMMAND}"]
    run("cmake", "-S", ".", "-B", "build", "-G", "Unix Makefiles", *found, cwd=folder)
    run("cmake", "--build", "build", cwd=folder)
    built = Built(folder / "build" / "small.condensed" / "report.json")
    later(folder / "base.py", built.report)
    assert built.ran(lambda: run("cmake", "--build", "build", cwd=folder))


@needs_cmake
@needs_make
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("MODEL \"${MODEL}\"", ""), "MODEL is missing"),
        (("HEAL closed-form", "HEEL closed-form"), "can't use HEEL"),
        (("find_package(condensec REQUIRED)", "find_package(condensec 9 REQUIRED)"), "version"),
    ],
)  # fmt: skip
def test_cmake_says_what_is_wrong(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    folder = project(tmp_path, "cmake")
    text = (folder / "CMakeLists.txt").read_text()
    assert change[0] in text
    (folder / "CMakeLists.txt").write_text(text.replace(*change))
    found = [f"-Dcondensec_DIR={MODULE}", f"-DCONDENSEC_EXECUTABLE={COMMAND}"]
    out = run("cmake", "-S", ".", "-B", "b", "-G", "Unix Makefiles", *found, cwd=folder, code=1)
    assert message in " ".join(out.split())


@needs_cmake
@needs_make
def test_a_budget_out_of_reach_fails_the_build_every_time(tmp_path: Path) -> None:
    folder = project(tmp_path, "cmake")
    text = (folder / "CMakeLists.txt").read_text()
    text = text.replace("macs<=0.8x", "macs<=0.01x").replace("MAX_DROP 40", "MAX_DROP 0")
    (folder / "CMakeLists.txt").write_text(text)
    found = [f"-Dcondensec_DIR={MODULE}", f"-DCONDENSEC_EXECUTABLE={COMMAND}"]
    run("cmake", "-S", ".", "-B", "build", "-G", "Unix Makefiles", *found, cwd=folder)
    for _ in range(2):
        assert "Error 3" in run("cmake", "--build", "build", cwd=folder, code=2)
    assert not (folder / "build" / "assets" / "model.onnx").exists()


@needs_make
def test_make(tmp_path: Path) -> None:
    folder = project(tmp_path, "make")
    run("make", cwd=folder)
    reruns(folder, Built(folder / "small.condensed" / "report.json"), lambda: run("make", cwd=folder))
    assert (folder / "assets" / "model.onnx").exists()


@needs_ninja
def test_ninja(tmp_path: Path) -> None:
    folder = project(tmp_path, "ninja")
    run("ninja", cwd=folder)
    reruns(folder, Built(folder / "small.condensed" / "report.json"), lambda: run("ninja", cwd=folder))
    assert "no work to do" in run("ninja", cwd=folder)
    assert (folder / "assets" / "model.onnx").exists()


def test_the_module_folder_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cmake-dir"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert {p.name for p in folder.glob("condensec*")} == {
        "condensec.bzl", "condensecConfig.cmake", "condensecConfigVersion.cmake",
    }  # fmt: skip
    version = re.search(
        r'set\(PACKAGE_VERSION "(.*)"\)', (folder / "condensecConfigVersion.cmake").read_text()
    )
    assert version is not None
    assert version[1] == condensec.__version__


# -- parsed ----------------------------------------------------------------------------------------------


def test_the_bazel_rule_is_starlark_and_its_example_uses_it() -> None:
    """Starlark is a subset of Python's syntax: no classes, imports, while, try, with, is, or global names."""
    rule = ast.parse((MODULE / "condensec.bzl").read_text())
    build = ast.parse((EXAMPLES / "bazel" / "BUILD.bazel").read_text())
    ast.parse((EXAMPLES / "bazel" / "MODULE.bazel").read_text())
    foreign = (ast.ClassDef, ast.Import, ast.ImportFrom, ast.While, ast.Try, ast.With, ast.Is, ast.Yield,
               ast.Global, ast.JoinedStr, ast.Set, ast.SetComp, ast.Raise, ast.Await)  # fmt: skip
    for tree in (rule, build):
        assert [n for n in ast.walk(tree) if isinstance(n, foreign)] == []
    (attributes,) = (
        {ast.literal_eval(key) for key in node.keys if key is not None}
        for node in ast.walk(rule)
        if isinstance(node, ast.Dict) and any(isinstance(v, ast.Call) for v in node.values)
    )
    (used,) = (
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(build)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "condensec_model"
    )
    assert used - {"name"} <= attributes
    read = {n.attr for n in ast.walk(rule) if isinstance(n, ast.Attribute)}
    assert attributes <= read, "every attribute is used"


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_flags_written_into_the_build_files_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    known = flags_of(capsys.readouterr().out)
    for name in ("condensec.bzl", "condensecConfig.cmake"):
        assert flags_of((MODULE / name).read_text()) <= known, name
    for name in ("VAL", "DATA", "MAX_DROP", "METRIC", "HEAL", "QUANTIZE", "SEED"):
        assert "--" + name.lower().replace("_", "-") in known


def test_the_action_is_one_and_runs_the_command(tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert {"name", "description", "inputs", "outputs", "runs"} <= set(action)
    steps = action["runs"]["steps"]
    assert all("uses" in step or {"run", "shell"} <= set(step) for step in steps)
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])
    workflow = yaml.safe_load((EXAMPLES / "github-action" / "models.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert set(job["steps"][1]["with"]) <= set(action["inputs"])

    save(mlp(**NET), tmp_path)
    script = next(step["run"] for step in steps if step.get("id") == "check")
    for arguments, code in (("model.onnx --budget size<=1MB", 0), ("model.onnx --budget size<=1kB", 3)):
        summary, output = tmp_path / "summary", tmp_path / "output"
        output.write_text("")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=tmp_path, check=False,
            capture_output=True, text=True,
            env={**os.environ, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}",
                 "ARGUMENTS": arguments, "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert output.read_text() == f"passed={'true' if code == 0 else 'false'}\n"
        assert "size<=1" in summary.read_text()


def test_the_hook_names_a_command_and_its_example_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert re.search(hook["files"], "models/a.onnx")
    assert not re.search(hook["files"], "a.onnx.py")
    (repo,) = yaml.safe_load((EXAMPLES / "pre-commit" / ".pre-commit-config.yaml").read_text())["repos"]
    assert [h["id"] for h in repo["hooks"]] == [hook["id"]]
    folder = project(tmp_path, "pre-commit")
    monkeypatch.chdir(folder)
    assert main(["plan", "model.onnx", "--keep", "0.75", "-o", "plan.json", "-q"]) == 0
    assert main(["apply", "model.onnx", "plan.json", "-o", "small.onnx", "-q"]) == 0
    entry = hook["entry"].split()
    assert entry[0] == "condensec"
    assert main([*entry[1:], "-q"]) == 0
    shutil.copy("model.onnx", "small.onnx")
    assert main([*entry[1:], "-q"]) == 3
    assert "BROKEN" in capsys.readouterr().out


def test_the_container_file_copies_what_there_is() -> None:
    text = (EXAMPLES / "container" / "Containerfile").read_text()
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    assert {line.split()[0] for line in lines} == known
    assert lines[0].startswith("FROM ")
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line
