"""Healing from the command line: every setting arrives, and what can't be is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import half
from healing_tools import noisy
from models import random_feeds

from condensec import schemas
from condensec.cli import main
from condensec.healing import session
from condensec.passes.groups import analyze
from condensec.passes.prune import prune


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cut model with its original, plan, data and a module with augmentations."""
    model = models.residual_cnn(width=8)
    feeds = random_feeds(model, 160, seed=1)
    analysis = analyze(ir.from_proto(model), {k: v[:2].shape for k, v in feeds.items()})
    cut = prune(analysis, half(analysis))
    onnx.save(model, tmp_path / "t.onnx")
    onnx.save(noisy(ir.to_proto(cut.model), 0.1), tmp_path / "s.onnx")
    (tmp_path / "plan.json").write_text(json.dumps(cut.plan.to_json()))
    np.savez(tmp_path / "d.npz", **feeds)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def brighter(batch, rng):\n"
        "    return {**batch, 'input': batch['input'] * np.float32(rng.uniform(0.9, 1.1))}\n"
        "def wider(batch, rng):\n    return {**batch, 'input': batch['input'].repeat(2, -1)}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


HEAL = ["heal", "s.onnx", "--teacher", "t.onnx", "--data", "d.npz", "--jobs", "1", "-q"]


def test_every_setting_arrives(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    real = session.heal

    def spy(*files: Any, **more: Any) -> Any:
        seen.update(vars(files[4]), slices=more["slices"])
        return real(*files, **more)

    monkeypatch.setattr("condensec.stages.graphs.train", spy)
    spec = (
        "epochs=3,lr=0.01,batch=16,optimizer=sgd,average=0.9,patience=9,views=2,weight-decay=0.001,warmup=0.1"
    )
    more = ["--heal", spec, "--augment", "flip,mine:brighter", "--loss", "output=1,features=0.5"]
    more += ["--plan", "plan.json", "--freeze", "^stem", "--json"]
    assert main([*HEAL, *more]) == 0
    wanted = {
        "epochs": 3, "lr": 0.01, "batch": 16, "optimizer": "sgd", "average": 0.9, "patience": 9, "views": 2,
        "weight_decay": 0.001, "warmup": 0.1, "augment": "flip,mine:brighter",
        "losses": {"output": 1.0, "features": 0.5}, "freeze": "^stem",
    }  # fmt: skip
    assert {name: seen[name] for name in wanted} == wanted
    assert seen["slices"]
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schemas.load("heal"))
    assert document["lr"] == 0.01
    assert any(item["reason"] == "frozen by the user" for item in document["frozen"])
    assert document["after"] >= document["before"]
    assert (folder / "s.healed.onnx").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--augment", "nothing_here:f"], "No module named 'nothing_here'"),
        (["--augment", "mine:absent"], "there's no 'absent' in mine"),
        (["--augment", "mine:wider"], "gave 'input' of shape (4, 3, 16, 32), it was given (4, 3, 16, 16)"),
        (["--augment", "crop=99"], "is only 16x16"),
        (["--augment", "turn"], "--augment 'turn' can't be read"),
        (["--loss", "featurs=1"], "did you mean 'features'"),
        (["--loss", "features=-1"], "--loss 'features=-1' can't be"),
        (["--heal", "epochs=1,lr=-1"], "lr can't be '-1'"),
        (["--heal", "epochs=1,speed=2"], "unknown setting 'speed'"),
        (["--plan", "absent.json"], "absent.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_is_one_line(
    folder: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "s.onnx").read_bytes()
    assert main([*HEAL, *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert len(told.splitlines()) == 1
    assert (folder / "s.onnx").read_bytes() == before
    assert not (folder / "s.healed.onnx").exists()


def test_settings_arrive_when_compressing_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    real = session.heal

    def spy(*files: Any, **more: Any) -> Any:
        seen.update(vars(files[4]), slices=more["slices"])
        return real(*files, **more)

    monkeypatch.setattr("condensec.stages.heal.heal", spy)
    flags = [
        "t.onnx",
        "--data",
        "d.npz",
        "--jobs",
        "1",
        "-q",
        "--json",
        "--target",
        "mobile-cpu",
        "--align",
        "1",
    ]
    flags += [
        "--keep",
        "0.5",
        "--step",
        "1",
        "--max-drop",
        "inf",
        "--heal",
        "epochs=1,lr=0.01,freeze=stem.conv",
    ]
    flags += ["--augment", "flip,mine:brighter", "--loss", "output=1,features=0.5"]
    assert main(flags) == 0
    assert seen["augment"] == "flip,mine:brighter"
    assert seen["losses"] == {"output": 1.0, "features": 0.5}
    assert (seen["lr"], seen["freeze"]) == (0.01, "stem.conv")
    assert seen["slices"]
    healing = json.loads(capsys.readouterr().out)["healing"]
    assert healing["steps"] > 0
    assert {"name": "stem.conv.weight", "reason": "frozen by the user"} in healing["frozen"]
    written = (folder / "t.condensed" / "condensec.toml").read_text()
    assert 'augment = "flip,mine:brighter"' in written
    assert 'loss = "output=1,features=0.5"' in written
