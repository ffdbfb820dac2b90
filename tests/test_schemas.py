"""Every command's `--json` keeps its published schema; so do errors and the files written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from models import mlp, save, save_samples

from condensec import schemas
from condensec.cli import main
from condensec.commands import _COMMANDS
from condensec.errors import CondensecError

FAST = ["--target", "mobile-cpu", "--heal", "off", "--jobs", "1"]
RUN = ["model.onnx", "--data", "d.npz", "--budget", "macs<=0.8x", "--max-drop", "inf", *FAST]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schemas")
    save(mlp(features=8, hidden=(32, 16), classes=4), path)
    save_samples(mlp(features=8, hidden=(32, 16), classes=4), path / "d.npz", 96)
    return path


@pytest.fixture
def printed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command with --json and gives its document."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> Any:
        assert main([*arguments, "--json", "-q"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def validate(document: Any, name: str) -> None:
    schema = schemas.load(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_every_command_has_a_schema_and_every_schema_is_one() -> None:
    assert set(_COMMANDS) <= set(schemas.COMMANDS)
    assert set(schemas.COMMANDS.values()) <= set(schemas.names())
    for name in schemas.names():
        schema = schemas.load(name)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"]
        assert schema["$schema"] == schemas.DIALECT


RUNS: dict[str, list[tuple[str, ...]]] = {
    "compress": [(*RUN, "--output", "o"), (*RUN, "--dry-run")],
    "inspect": [("inspect", "model.onnx")],
    "analyze": [("analyze", "model.onnx", "--data", "d.npz", "--target", "mobile-cpu")],
    "plan": [("plan", "model.onnx", "--keep", "0.5", "-o", "plan.json")],
    "apply": [("apply", "model.onnx", "plan.json", "-o", "cut.onnx")],
    "verify": [("verify", "model.onnx", "plan.json", "cut.onnx")],
    "emit": [("emit", "model.onnx", "--target", "mobile-cpu")],
    "quantize": [("quantize", "model.onnx", "--target", "mobile-cpu", "--data", "d.npz")],
    "bench": [("bench", "cut.onnx"), ("bench", "model.onnx", "cut.onnx", "--profile")],
    "profile": [("profile", "cut.onnx", "--target", "mobile-cpu"),
                ("profile", "cut.onnx", "--script", "s.py")],
    "report": [("report", "o")],
    "targets": [("targets",)],
    "doctor": [("doctor",)],
    "check": [("check", "cut.onnx", "--budget", "size<=1MB", "--max-drop", "90", "--data", "d.npz",
               "--against", "model.onnx")],
    "cache": [("cache",)],
    "schema": [("schema",)],
    "cmake-dir": [("cmake-dir",)],
    "completion": [("completion", "bash"), ("completion", "fish")],
}  # fmt: skip
# trained in an environment of its own: test_healing_cli validates it
ELSEWHERE = {"heal"}


def test_no_command_is_left_out() -> None:
    assert set(RUNS) | ELSEWHERE >= set(_COMMANDS)


@pytest.mark.parametrize("command", RUNS)
def test_what_a_command_prints_keeps_its_schema(command: str, printed: Any, folder: Path) -> None:
    if command in ("apply", "verify", "bench", "profile", "check"):
        printed(*RUNS["plan"][0])
        printed(*RUNS["apply"][0])
    if command == "report" and not (folder / "o").exists():
        printed(*RUNS["compress"][0])
    for arguments in RUNS[command]:
        document = printed(*arguments)
        validate(document, schemas.COMMANDS[command])
        without = {key: value for key, value in document.items() if key != "schema"}
        with pytest.raises(jsonschema.ValidationError):
            validate(without, schemas.COMMANDS[command])
    if command == "compress":
        validate(json.loads((folder / "o" / "report.json").read_text()), "report")
        validate(json.loads((folder / "o" / "plan.json").read_text()), "plan")


def test_a_wrong_value_is_found(printed: Any) -> None:
    document = printed("inspect", "model.onnx")
    for change in ({"params": "many"}, {"reachable": 2}, {"groups": [{"id": "g0"}]}):
        with pytest.raises(jsonschema.ValidationError):
            validate({**document, **change}, "inspect")
    report = printed(*RUN, "--output", "o")
    validate({**report, "cached": True, "something": "new"}, "report")
    for change in (
        {"before": None},
        {"cycles": [{"n": "one", "macs": 1}]},
        {"targets": {"host": {"bytes": 1.5}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate({**report, **change}, "report")


def test_errors_and_the_version_have_theirs(printed: Any) -> None:
    error = printed("inspect", "none.onnx", code=2)
    validate(error, "error")
    assert error["error"]["code"] == "model"
    validate(printed("model.onnx", "--budget", "nonsense", code=2), "error")
    validate(printed("--version"), "version")
    codes = schemas.load("error")["properties"]["error"]["properties"]["code"]["enum"]
    pending, known = [CondensecError], {"internal"}
    while pending:
        kind = pending.pop()
        known.add(kind.code)
        pending += kind.__subclasses__()
    assert set(codes) == known
    with pytest.raises(jsonschema.ValidationError):
        validate({"error": {"code": "strange", "message": "", "node": None, "hint": None}}, "error")


def test_one_is_printed_by_name_or_by_command(printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("schema", "quantize") == printed("schema", "emit") == schemas.load("emit")
    assert main(["schema", "plan"]) == 0
    assert json.loads(capsys.readouterr().out) == schemas.load("plan")
    assert main(["schema", "nothing", "-q"]) == 2
    assert "there are" in capsys.readouterr().err
