"""Models say where they came from, in every dialect, and the same run writes the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from models import mlp, random_feeds, residual_cnn, run, save, save_samples

from condensec import __version__, api, provenance
from condensec.cli import main
from condensec.plan import read_plan

KEYS = {provenance.VERSION, provenance.ORIGINAL, provenance.PLAN}
RUN = [
    "model.onnx",
    "--data",
    "d.npz",
    "--keep",
    "0.5",
    "--max-drop",
    "inf",
    "--heal",
    "off",
    "-j",
    "1",
    "-q",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(residual_cnn(), tmp_path)
    save_samples(residual_cnn(), tmp_path / "d.npz", 48)
    return tmp_path


def told(path: Path | str) -> dict[str, str]:
    model = onnx.load(path, load_external_data=False)
    pairs = [(prop.key, prop.value) for prop in model.metadata_props]
    assert len(dict(pairs)) == len(pairs), "no key twice"
    return {key: value for key, value in pairs if key.startswith("condensec.")}


def sha(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["none", "int8", "fp16"])
def test_every_written_graph_names_its_origin(folder: Path, precision: str) -> None:
    targets = ["mobile-cpu", "nvidia-t4"] if precision != "int8" else ["x86-vnni", "mobile-cpu"]
    arguments = [argument for name in targets for argument in ("--target", name)]
    assert main([*RUN, *arguments, "--quantize", precision]) == 0
    out = folder / "model.condensed"
    wanted = {
        provenance.VERSION: __version__,
        provenance.ORIGINAL: sha("model.onnx"),
        provenance.PLAN: read_plan(out / "plan.json").digest(),
    }
    assert told(out / "model.onnx") == wanted
    for name in targets:
        assert told(out / name / "model.onnx") == wanted, name
    assert json.loads((out / "report.json").read_text())["plan_sha256"] == wanted[provenance.PLAN]


def test_the_same_run_writes_the_same_bytes(folder: Path) -> None:
    for name in ("a", "b"):
        assert main([*RUN, "--target", "mobile-cpu", "-o", name]) == 0
    for name in ("model.onnx", "mobile-cpu/model.onnx", "plan.json"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_apply_and_emit_tell_too(folder: Path) -> None:
    plan = api.plan("model.onnx", keep=0.5)
    api.apply("model.onnx", plan, "cut.onnx")
    assert told("cut.onnx") == provenance.entries(sha("model.onnx"), plan.digest())
    assert main(["emit", "cut.onnx", "--target", "mobile-cpu", "-q"]) == 0
    assert told("cut.emitted/mobile-cpu/model.onnx") == told("cut.onnx")


def test_what_a_file_lacks_is_appended_and_nothing_else_changes(tmp_path: Path) -> None:
    model = mlp()
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key=provenance.VERSION, value="0.0.9")
    path = save(model, tmp_path)
    before = path.read_bytes()
    provenance.carry(provenance.entries("a" * 64), path)
    assert path.read_bytes().startswith(before)
    assert told(path) == {provenance.VERSION: "0.0.9", provenance.ORIGINAL: "a" * 64}
    feeds: dict[str, Any] = random_feeds(model, 3)
    assert (run(onnx.load(path), feeds) == run(model, feeds)).all()
    now = path.read_bytes()
    provenance.carry(provenance.entries("b" * 64), path)
    assert path.read_bytes() == now, "what is there stays"
    assert set(told(path)) < KEYS
