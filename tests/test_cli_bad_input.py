"""Every bad input of the command line: exit code 2, one line that names it, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import mlp, save
from onnx import helper

from condensec.cli import main

Make = Callable[[Path], list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    save(mlp(features=4, hidden=(8,), classes=3), tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def text_file(folder: Path) -> list[str]:
    (folder / "text.onnx").write_text("hello\n" * 10)
    return ["text.onnx"]


def zero_bytes(folder: Path) -> list[str]:
    (folder / "zero.onnx").touch()
    return ["zero.onnx"]


def truncated(folder: Path) -> list[str]:
    (folder / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-200])
    return ["cut.onnx"]


def unknown_domain(folder: Path) -> list[str]:
    model = onnx.load("model.onnx")
    model.graph.node[0].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, "acme.onnx")
    return ["acme.onnx"]


def rows_that_come_and_go(folder: Path) -> list[str]:
    model = onnx.load("model.onnx")
    logits = model.graph.output.pop().name
    model.graph.node.append(helper.make_node("Relu", [logits], ["positive"], name="above"))
    model.graph.node.append(helper.make_node("NonZero", ["positive"], ["found"], name="find"))
    model.graph.node.append(helper.make_node("Transpose", ["found"], ["places"], name="turn", perm=[1, 0]))
    model.graph.output.append(helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ["rows", 2]))
    onnx.save(model, "places.onnx")
    return ["places.onnx"]


def external(location: str, shorten: int = 0, drop: bool = False) -> Make:
    def make(folder: Path) -> list[str]:
        onnx.save(
            onnx.load("model.onnx"),
            "ext.onnx",
            save_as_external_data=True,
            location="w.bin",
            size_threshold=0,
        )
        model = onnx.load("ext.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        Path("ext.onnx").write_bytes(model.SerializeToString())
        weights = Path("w.bin")
        if shorten:
            weights.write_bytes(weights.read_bytes()[:-shorten])
        if drop:
            weights.unlink()
        return ["ext.onnx"]

    return make


MODELS: dict[str, tuple[Make, str]] = {
    "missing": (lambda f: ["none.onnx"], "none.onnx"),
    "text": (text_file, "text.onnx"),
    "zero": (zero_bytes, "zero.onnx"),
    "truncated": (truncated, "cut.onnx"),
    "domain": (unknown_domain, "acme"),
    "rows by data": (rows_that_come_and_go, "before NonZero"),
    "external missing": (external("w.bin", drop=True), "w.bin"),
    "external short": (external("w.bin", shorten=1), "w.bin"),
    "external absolute": (external("/etc/passwd"), "/etc/passwd"),
    "external climbing": (external("../w.bin"), "../w.bin"),
}

X = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
LABELS = np.arange(40) % 3
NAN = X.copy()
NAN[17, 2] = np.nan
DATA: dict[str, tuple[dict[str, Any], str]] = {
    "names": ({"inputs": X}, "'input'"),
    "shapes": ({"input": X[:, :3]}, "40x3"),
    "rank": ({"input": X[0]}, "'input'"),
    "dtypes": ({"input": X.astype(np.int64)}, "int64"),
    "nan": ({"input": NAN, "labels": LABELS}, "sample 17"),
    "empty": ({"input": X[:0]}, "empty"),
    "object": ({"input": X, "labels": np.array([{}] * 40)}, "'labels'"),
    "labels": ({"input": X, "labels": LABELS + 1}, "label 3"),
    "counts": ({"input": X, "labels": LABELS[:-1]}, "39"),
}

OPTIONS: dict[str, tuple[list[str], str]] = {
    "budget above one": (["--budget", "latency<=2x"], "'latency<=2x'"),
    "budget negative": (["--budget", "macs<=-1"], "'macs<=-1'"),
    "budget nonsense": (["--budget", "nonsense"], "'nonsense'"),
    "target": (["--target", "mobile-cp"], "did you mean 'mobile-cpu'"),
    "output in a file": (["--output", "model.onnx/out"], "model.onnx/out"),
    "output is a file": (["--output", "model.onnx"], "model.onnx"),
    "output nowhere": (["--output", "/proc/none/out"], "/proc/none/out"),
    "criterion": (["--criterion", "magnitud"], "did you mean 'magnitude'"),
    "metric": (["--metric", "top"], "'top'"),
    "metric without labels": (["--metric", "top1"], "labels"),
    "metric module": (["--metric", "no_such_module:x"], "no_such_module"),
    "heal": (["--heal", "epochs=none"], "--heal"),
    "keep": (["--keep", "0"], "--keep"),
    "keep and budget": (["--keep", "0.5", "--budget", "macs<=0.5x"], "--keep"),
    "freeze": (["--freeze", "("], "--freeze"),
    "config": (["--config", "none.toml"], "none.toml"),
    "option": (["--bugdet", "macs<=0.5x"], "--bugdet"),
    "two models": (["other.onnx"], "other.onnx"),
    "shape": (["--shape", "input=1x5"], "input"),
    "no value": (["--seed"], "--seed"),
}


def check(folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(folder)
    assert main([*arguments, "-q"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("condensec: error: ")
    assert err.count("\n") == 1, err
    assert words in err
    assert "Traceback" not in err
    assert "; " in err, "says what to do"
    assert tree(folder) == before


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = MODELS[case]
    check(folder, [*make(folder), "--target", "host"], words, capsys)


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, words = DATA[case]
    np.savez(folder / "d.npz", **arrays)
    before = capsys.readouterr()
    assert before.err == ""
    check(folder, ["model.onnx", "--data", "d.npz"], words, capsys)


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, words = OPTIONS[case]
    check(folder, ["model.onnx", *options], words, capsys)


def test_wrong_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(folder, ["inspct", "model.onnx"], "did you mean 'inspect'", capsys)
    check(folder, ["inspect", "none.onnx"], "none.onnx", capsys)
    check(folder, ["apply", "model.onnx", "model.onnx"], "model.onnx", capsys)
    check(folder, ["apply", "model.onnx", "plan.json", "-o", "model.onnx"], "overwrite", capsys)
    check(folder, ["bench", "none.onnx"], "none.onnx", capsys)
    assert main(["report", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([]) == 2


def test_an_error_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "--budget", "latency<=2x", "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == "config"
    assert "latency<=2x" in error["message"]
    assert error["hint"]
    assert err.count("\n") == 1
    unknown_domain(folder)
    assert main(["acme.onnx", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["node"]) == ("model", onnx.load("acme.onnx").graph.node[0].name)


def test_a_target_that_is_not_there_has_its_own_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec.hardware.target import Target

    monkeypatch.setattr(Target, "available", lambda self: "needs the package nothing")
    assert main(["model.onnx", "--target", "host", "-q"]) == 4
    assert "needs the package nothing" in capsys.readouterr().err
    assert list(tree(folder)) == ["model.onnx"]


# -- in a process of its own ---------------------------------------------------------------------------------


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "condensec.cli", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60, **options,
    )  # fmt: skip


def test_the_program_itself(folder: Path) -> None:
    done = run(folder, "none.onnx", "--target", "host")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "none.onnx" in done.stderr
    assert list(tree(folder)) == ["model.onnx"]


def test_object_arrays_are_not_unpickled_by_the_program(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "exploded"),)

    np.savez(folder / "d.npz", input=np.array([Bomb()] * 40, dtype=object))
    done = run(folder, "model.onnx", "--data", "d.npz", "-q")
    assert done.returncode == 2
    assert "'input' holds Python objects" in done.stderr
    assert not (folder / "exploded").exists()


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "condensec.cli", "targets"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_terminal_that_knows_only_ascii(folder: Path) -> None:
    (folder / "größe.onnx").write_text("x")
    done = run(folder, "größe.onnx", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2
    assert "gr\\xf6\\xdfe.onnx" in done.stderr
