"""Settings: what is allowed, what is refused with which words, and the way through condensec.toml."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condensec.config import Config, check_output, configure
from condensec.errors import ConfigError
from condensec.specs import Budget, parse_budget, parse_heal, parse_shape
from condensec.toml_file import read_toml, write_toml


def refused(*words: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        configure(**{"model": "m.onnx", **options})
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("latency<=0.5x", Budget("latency", 0.5, True, "latency<=0.5x")),
        (" latency <= 5 ms ", Budget("latency", 5.0, False, "latency<=5ms")),
        ("latency<=800us", Budget("latency", 0.8, False, "latency<=800us")),
        ("macs<=1x", Budget("macs", 1.0, True, "macs<=1x")),
        ("macs<=1.5G", Budget("macs", 1.5e9, False, "macs<=1.5G")),
        ("params<=100000", Budget("params", 1e5, False, "params<=100000")),
        ("params<=4e-1x", Budget("params", 0.4, True, "params<=4e-1x")),
        ("size<=4MB", Budget("size", 4e6, False, "size<=4MB")),
        ("size<=512KiB", Budget("size", 524288.0, False, "size<=512KiB")),
    ],
)
def test_budgets(text: str, wanted: Budget) -> None:
    assert parse_budget(text) == wanted
    assert parse_budget(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latency<=2x", "at most at 1"),
        ("latency<=0x", "above 0"),
        ("macs<=-1", "whole number above 0"),
        ("macs<=0.5", "macs<=0.5x"),
        ("size<=0MB", "above 0"),
        ("latency<=5", "ms"),
        ("latency<=5MB", "unknown unit 'MB'"),
        ("latancy<=0.5x", "did you mean 'latency'"),
        ("latency<0.5x", "<="),
        ("latency>=0.5x", "<="),
        ("latency<=1.2.3x", "no number"),
        ("macs<=1e999", "can't be met"),
        ("nonsense", "can't be read"),
        ("", "can't be read"),
        ("latency<=nanx", "can't be read"),
    ],
)
def test_budgets_that_cannot_be(text: str, words: str) -> None:
    assert f"'{text}'" in refused(words, budget=[text])


@given(st.text(max_size=30))
def test_any_budget_is_parsed_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except ConfigError as error:
        assert error.hint  # noqa: PT017
    else:
        assert 0 < budget.value < math.inf


def test_heal_and_shape() -> None:
    assert str(parse_heal("epochs=3")) == "epochs=3"
    assert str(parse_heal("minutes=2.50")) == "minutes=2.5"
    assert [parse_heal(t).gradient for t in ("off", "closed-form", "auto", "minutes=1")] == [
        False,
        False,
        True,
        True,
    ]
    assert not parse_heal("off").closed_form
    only = parse_heal("minutes=2, closed-form=off")
    assert (str(only), only.gradient, only.closed_form) == ("minutes=2,closed-form=off", True, False)
    full = "minutes=2,closed-form=off,lr=0.004,batch=64,optimizer=sgd,average=0.99,freeze=^fc.*"
    full += ",patience=3,views=4"
    assert str(parse_heal(full)) == full
    assert parse_heal(full).options == {
        "lr": 0.004, "batch": 64, "optimizer": "sgd", "average": 0.99, "freeze": "^fc.*",
        "patience": 3, "views": 4,
    }  # fmt: skip
    for bad in (
        "lr=0",
        "lr=x",
        "batch=0",
        "batch=1.5",
        "optimizer=adam",
        "average=1",
        "warmup=1",
        "patience=-1",
        "freeze=[",
    ):
        refused(bad.partition("=")[0], heal=f"epochs=3,{bad}")
    refused("did you mean 'patience'", heal="epochs=3,patiance=2")
    refused("closed-form", heal="off,lr=0.1")
    for text in ("", "on", "epochs=0", "epochs=1.5", "minutes=0", "minutes=inf", "minutes=nan", "epochs"):
        refused("closed-form", heal=text)
    assert parse_shape("a=b=1x3,7") == ("a=b", (1, 3, 7))
    for text in ("x", "x=", "=1", "x=0x3", "x=1x", "x=-1"):
        refused("INPUT=", shape=[text])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, "--keep"),
        ({"keep": 1.01}, "--keep"),
        ({"keep": "nan"}, "--keep"),
        ({"keep": 0.5, "budget": "macs<=0.5x"}, "exclude"),
        ({"step": 0}, "--step"),
        ({"step": 1.1}, "--step"),
        ({"max_drop": -1}, "--max-drop"),
        ({"max_drop": "nan"}, "--max-drop"),
        ({"align": 0}, "--align"),
        ({"align": 2.5}, "--align"),
        ({"seed": -1}, "--seed"),
        ({"jobs": 0}, "--jobs"),
        ({"jobs": True}, "--jobs"),
        ({"patterns": "chanels"}, "did you mean 'channels'"),
        ({"patterns": "4:2"}, "0 < n < m"),
        ({"patterns": "0:4"}, "0 < n < m"),
        ({"patterns": "unstructured"}, "can't be read"),
        ({"patterns": "unstructured=1"}, "between 0 and 1"),
        ({"patterns": "unstructured=0..5"}, "between 0 and 1"),
        ({"patterns": "unstructured=0.5:best"}, "unknown method 'best'"),
        ({"patterns": "2:4:layerwise"}, "same share in every layer"),
        ({"patterns": "2:4:sensitivity"}, "same share in every layer"),
        ({"patterns": "2:4,unstructured=0.9"}, "exclude each other"),
        ({"patterns": "2:4", "budget": "macs<=0.5x"}, "nothing to budget"),
        ({"quantize": "int9"}, "did you mean 'int8'"),
        ({"freeze": ["ok", "("]}, "'('"),
        ({"metric": "mse"}, "--max-drop"),
        ({"val": "v.npz"}, "--data"),
        ({"target": ""}, "--target"),
        ({"bugdet": "macs<=0.5x"}, "did you mean 'budget'"),
        ({"model": "a/model.onnx", "output": "a"}, "overwrite the model"),
        ({"model": ""}, "MODEL"),
        ({"model": None}, "no model"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    refused(words, **options)


def test_defaults() -> None:
    config = configure(model="dir/net.onnx")
    assert config.output == Path("dir/net.condensed")
    assert config.targets == ("host",)
    assert config.budgets == ()
    assert config.max_drop == 1
    assert config.heal == "auto"
    assert config.jobs >= 1
    assert configure(model="m.onnx", max_drop="inf").max_drop == math.inf


def test_a_toml_of_everything_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.npz").touch()
    config = configure(
        model="m.onnx", output="out", target=["host", "mobile-cpu"], budget=["latency<=0.5x", "size<=4MB"],
        align=1, max_drop=math.inf, data="d.npz", val="my_module:batches", metric="kl", step=0.25,
        heal="epochs=3", patterns="heads,channels", quantize="int8", criterion="l2", freeze=["a'b\"\\d", "ü"],
        shape=["x.y=1x3"], seed=12345678901234567890, jobs=3,
    )  # fmt: skip
    (tmp_path / "sub").mkdir()
    text = config.to_toml()
    (tmp_path / "sub" / "condensec.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "sub")
    again = configure(config="condensec.toml")
    assert again.to_toml() == text
    assert again.model == tmp_path / "m.onnx"
    assert again.data == str(tmp_path / "d.npz")
    assert again.seed == 12345678901234567890
    assert again.input_shapes == {"x.y": (1, 3)}
    assert again.freeze == config.freeze


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "condensec.toml"
    path.write_text("model = 'net.onnx'\nbudget = 'macs<=0.5x'\nmax-drop = 2\ntarget = 'mobile-cpu'\n")
    config = configure(config=path, max_drop=0.5)
    assert (config.max_drop, config.targets) == (0.5, ("mobile-cpu",))
    assert config.model == tmp_path / "net.onnx"
    assert config.output == tmp_path / "net.condensed"
    kept = configure(config=path, keep=0.5)
    assert kept.budgets == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'x'", "did you mean 'model'"),
        ("resume = true", "unknown key 'resume'"),
        ("a = ", "isn't TOML"),
        ("budget = 'latency<=2x'", "latency<=2x"),
        ("model = 3", "MODEL"),
        ("target = 3", "--target"),
        ("shape = 3", "--shape"),
        ("freeze = 3", "--freeze"),
        ("budget = [3]", "'3'"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    refused(words, config=tmp_path / "c.toml", **({"model": None} if "model =" in text else {}))


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    refused("no such file", config=tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    refused("latin.toml", config=tmp_path / "latin.toml")


def test_arrays_from_python_are_left_out_of_the_file_with_a_word() -> None:
    text = configure(model="m.onnx", data={"x": [1]}, metric=max).to_toml()
    assert text.startswith("# given from Python, not repeatable from here: data, metric\n")
    assert "data =" not in text


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.text() | st.integers(-(2**62), 2**62) | st.booleans() | st.floats(allow_nan=False),
    )
)
def test_toml_round_trip(values: dict[str, Any]) -> None:
    path = Path(tempfile.gettempdir()) / f"condensec-test-{os.getpid()}.toml"
    try:
        path.write_text(write_toml(values), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return  # lone surrogates aren't text
    try:
        assert read_toml(path) == values
    finally:
        path.unlink()


# -- the output folder ---------------------------------------------------------------------------------------


def test_checking_the_output_leaves_no_trace(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    check_output(tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["file"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    for path in (tmp_path / "file", tmp_path / "file" / "sub", tmp_path / "dangling", Path("/proc/none/x")):
        with pytest.raises(ConfigError, match="--output"):
            check_output(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        check_output(tmp_path / "out")


def test_config_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Config(Path("m"), Path("o")).seed = 3  # type: ignore[misc]
