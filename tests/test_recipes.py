"""Recipes: steps as options, orders that make no sense, the three ready ones, condensec.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import mlp, save, save_samples

from condensec import api, recipes
from condensec.config import configure
from condensec.errors import ConfigError

STACK = """
max-drop = 2.5

[[step]]
kind = "structured"
budget = "macs<=0.5x"
step = 0.2

[[step]]
kind = "heal"
minutes = 6

[[step]]
kind = "unstructured"
share = 0.6
method = "wanda"

[[step]]
kind = "heal"
minutes = 3

[[step]]
kind = "quantize"
precision = "int8"

[[step]]
kind = "heal"
minutes = 1
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "condensec.toml"
    path.write_text(text)
    return path


def test_steps_are_options(tmp_path: Path) -> None:
    found = configure(model="m.onnx", config=written(STACK, tmp_path))
    assert [str(b) for b in found.budgets] == ["macs<=0.5x"]
    assert found.patterns == ("channels", "heads", "neurons", "unstructured=0.6:wanda")
    assert (found.step, found.quantize, found.max_drop) == (0.2, "int8", 2.5)
    assert found.heal == "minutes=10,zeros=0.3,quantized=0.1"


def test_flags_win_and_a_budget_replaces_every_aim(tmp_path: Path) -> None:
    path = written(STACK, tmp_path)
    found = configure(model="m.onnx", config=path, keep=0.5, heal="off", quantize="none")
    assert (found.keep, found.budgets, found.heal, found.quantize) == (0.5, (), "off", "none")
    assert found.patterns[-1] == "unstructured=0.6:wanda"


@pytest.mark.parametrize("level", ["1", "2", "3"])
def test_ready_recipes_can_be_repeated_from_what_they_write(level: str, tmp_path: Path) -> None:
    found = configure(model="m.onnx", output=tmp_path, recipe=level, jobs=1)
    assert found.towards is not None
    assert not found.budgets  # an aim, no promise: the exit code stays 0
    again = configure(config=written(found.to_toml(), tmp_path))
    assert again.to_toml() == found.to_toml()
    assert (again.towards, again.heal, again.quantize) == (found.towards, found.heal, found.quantize)


def test_ready_recipes_go_further_from_one_to_the_next() -> None:
    drops = [configure(model="m.onnx", recipe=str(n)).max_drop for n in (1, 2, 3)]
    assert drops == sorted(drops)
    assert len(set(drops)) == 3
    assert configure(model="m.onnx", recipe="2", max_drop=9).max_drop == 9
    assert configure(model="m.onnx", recipe="2", budget="macs<=0.9x").towards is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"kind": "quantize"}, {"kind": "structured"}], "integers can't be cut"),
        ([{"kind": "unstructured", "share": 0.5}, {"kind": "structured"}], "weights that stay"),
        ([{"kind": "structured"}, {"kind": "structured"}], "step by step"),
        ([{"kind": "unstructured", "share": 0.5}, {"kind": "n:m", "pattern": "2:4"}], "one pattern of zeros"),
        ([{"kind": "heal", "minutes": 1}], "comes after what it heals"),
        ([{"kind": "structured", "budget": "macs<=0.5x", "keep": 0.5}], "exclude each other"),
        ([{"kind": "structured", "bugdet": "macs<=0.5x"}], "structured has no 'bugdet'"),
        ([{"kind": "structurd"}], "did you mean 'structured'"),
        ([{"kind": "unstructured"}], "needs a share"),
        ([{"kind": "n:m"}], "needs a pattern"),
        ([{"kind": "structured"}, {"kind": "heal"}], "one of minutes, epochs and mode"),
        ([{"kind": "structured"}, {"kind": "heal", "minutes": -1}], "above 0"),
        (
            [
                {"kind": "structured"},
                {"kind": "heal", "minutes": 1},
                {"kind": "quantize"},
                {"kind": "heal", "epochs": 1},
            ],
            "use minutes in all",
        ),
        ([], "list of steps"),
        ("structured", "list of steps"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(steps: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.options(steps)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="-O1 is safe"):
        configure(model="m.onnx", recipe="4")


def test_quantization_alone_cuts_nothing(tmp_path: Path) -> None:
    assert recipes.options([{"kind": "quantize"}]) == {"quantize": "int8", "patterns": ("none",)}
    path, data = save(mlp(), tmp_path), save_samples(mlp(), tmp_path / "d.npz", count=96)
    report = api.compress(
        path, output=tmp_path / "o", data=data, patterns="none", heal="off", target="mobile-cpu", jobs=1,
        max_drop=float("inf"),
    )  # fmt: skip
    assert report.after.params == report.before.params
    assert report.status == "ok"


def test_the_whole_stack_runs(tmp_path: Path) -> None:
    text = """
    [[step]]
    kind = "structured"
    keep = 0.5
    [[step]]
    kind = "heal"
    mode = "closed-form"
    [[step]]
    kind = "unstructured"
    share = 0.5
    method = "magnitude"
    [[step]]
    kind = "quantize"
    """
    path, data = save(mlp(), tmp_path), save_samples(mlp(), tmp_path / "d.npz", count=96)
    report = api.compress(
        path, output=tmp_path / "o", data=data, config=written(text, tmp_path), target="mobile-cpu", jobs=1,
        max_drop=float("inf"), align=1,
    )  # fmt: skip
    assert report.after.params < 0.8 * report.before.params
    assert report.patterns[0].share_reached == pytest.approx(0.5, abs=0.01)
    assert report.targets["mobile-cpu"].precision == "int8"


def test_a_teacher_of_other_inputs_is_refused(tmp_path: Path) -> None:
    model, data = save(mlp(), tmp_path), save_samples(mlp(), tmp_path / "d.npz", count=96)
    (tmp_path / "t").mkdir()
    other = save(mlp(features=16, classes=10, seed=1), tmp_path / "t")
    options: dict[str, Any] = {
        "data": data, "target": "mobile-cpu", "jobs": 1, "max_drop": float("inf"), "keep": 0.5, "align": 1,
        "heal": "epochs=1,lr=0.01,batch=32",
    }  # fmt: skip
    report = api.compress(model, output=tmp_path / "a", teacher=other, **options)
    assert report.healing.steps > 0
    with pytest.raises(ConfigError, match="--teacher needs --data"):
        configure(model=model, teacher=other)


@pytest.mark.parametrize(
    ("patterns", "kinds"),
    [
        (("heads",), {"head", "kv_head", "head_dim"}),
        (("kv_heads",), {"kv_head"}),
        (("neurons",), {"neuron", "hidden", "expert", "rnn_unit", "anything"}),
        (("experts",), {"expert"}),
        (("hidden", "rnn_units"), {"hidden", "rnn_unit"}),
        (("head_dims", "channels"), {"head_dim", "channel"}),
    ],
)
def test_patterns_name_kinds_of_units(patterns: tuple[str, ...], kinds: set[str]) -> None:
    from types import SimpleNamespace

    from condensec.specs import KIND_PATTERNS
    from condensec.stages.goals import _wanted

    every = (*KIND_PATTERNS, "anything")
    assert {k for k in every if _wanted(SimpleNamespace(kind=k), patterns)} == kinds  # type: ignore[arg-type]
