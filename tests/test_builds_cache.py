"""The cache of whole results: same inputs, same answer; anything else is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import mlp, save, save_samples

from condensec import builds, pipeline
from condensec.builds import cache as store
from condensec.builds import fingerprint as prints
from condensec.builds.cache import ResultCache
from condensec.builds.fingerprint import NotCacheable, fingerprint
from condensec.builds.run import compress
from condensec.cli import main
from condensec.config import configure
from condensec.errors import ConfigError

NET: dict[str, Any] = {"features": 8, "hidden": (32, 16), "classes": 4}
OPTIONS: dict[str, Any] = {
    "budget": "macs<=0.8x", "max_drop": "inf", "target": "mobile-cpu", "heal": "off", "jobs": 1,
}  # fmt: skip
FLAGS = ["--budget", "macs<=0.8x", "--max-drop", "inf", "--target", "mobile-cpu", "--heal", "off", "-j", "1"]
METRIC = "import helper\ndef score(outputs, samples):\n    return helper.value(outputs)\n"
HELPER = "def value(outputs):\n    return 0.5\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(store.SIZE_VARIABLE, "50MB")
    save(mlp(**NET), tmp_path)
    save_samples(mlp(**NET), tmp_path / "d.npz", 64)
    return tmp_path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the output folders of runs that computed."""
    seen: list[str] = []
    line = pipeline.compress

    def counted(config: Any, observer: Any = None) -> Any:
        seen.append(config.output.name)
        return line(config, observer)

    monkeypatch.setattr(pipeline, "compress", counted)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def entries(folder: Path) -> list[Path]:
    return [p for p in (folder / "cache" / "results").glob("[0-9a-f]*") if p.is_dir()]


def test_the_second_run_is_a_copy(folder: Path, runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "--data", "d.npz", *FLAGS, "-q", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    made = files(folder / "model.condensed")
    assert main(["model.onnx", "--data", "d.npz", *FLAGS, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {**first, "cached": True}
    assert "computed before" in err
    assert files(folder / "model.condensed") == made
    assert main(["model.onnx", "--data", "d.npz", *FLAGS, "-q", "-o", "other"]) == 0
    other = files(folder / "other")
    settings = other.pop("condensec.toml").decode()
    assert settings == made.pop("condensec.toml").decode().replace("model.condensed", "other")
    assert other == made
    assert runs == ["model.condensed"]
    assert main(["model.onnx", "--data", "d.npz", *FLAGS, "-q", "--no-cache"]) == 0
    assert runs == ["model.condensed", "model.condensed"]


def test_a_result_out_of_budget_keeps_its_exit_code(folder: Path, runs: list[str]) -> None:
    arguments = ["model.onnx", "--data", "d.npz", "--budget", "macs<=0.01x", "--max-drop", "0"]
    arguments += ["--target", "mobile-cpu", "--heal", "off", "-j", "1", "-q"]
    assert main(arguments) == 3
    assert main(arguments) == 3
    assert len(runs) == 1


def test_a_dry_run_and_an_interrupted_run_are_not_kept(folder: Path, runs: list[str]) -> None:
    config = configure(model="model.onnx", data="d.npz", **OPTIONS)

    def stop(step: str, before: Any, after: Any) -> None:
        if step == "prune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(config, stop)
    compress(configure(model="model.onnx", data="d.npz", dry_run=True, **OPTIONS))
    assert entries(folder) == []
    (folder / "model.condensed" / "state").mkdir(parents=True, exist_ok=True)
    assert not compress(configure(model="model.onnx", data="d.npz", output="o", **OPTIONS)).cached
    assert compress(config).cached
    assert not (folder / "model.condensed" / "state").exists(), "the run is done"
    assert runs == ["model.condensed", "model.condensed", "o"]


def test_the_cache_is_shown_and_cleared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compress(configure(model="model.onnx", data="d.npz", **OPTIONS))
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "1 results" in out
    assert "model.onnx" in out
    assert main(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == found["entries"][0]["bytes"] > 1000
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert entries(folder) == []


# -- the key ---------------------------------------------------------------------------------------------


def key(**options: Any) -> str:
    return fingerprint(configure(**{"model": "model.onnx", "data": "d.npz", **OPTIONS, **options}))


def test_the_key_follows_content_settings_version_and_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = key()
    assert key(output="elsewhere", resume=True) == base
    (folder / "sub").mkdir()
    for name in ("model.onnx", "d.npz"):
        (folder / "sub" / name).write_bytes((folder / name).read_bytes())
    assert key(model="sub/model.onnx", data="sub/d.npz") == base
    found = {
        "seed": key(seed=1),
        "budget": key(budget="macs<=0.7x"),
        "jobs": key(jobs=2),
        "target": key(target=["host"]),
        "val": key(val="sub/d.npz"),
    }
    with monkeypatch.context() as m:
        m.setattr(prints, "machine", lambda: {"isa": "another"})
        found["machine"] = key()
    with monkeypatch.context() as m:
        m.setattr(prints, "tool", lambda: {"version": "another"})
        found["version"] = key()
    save_samples(mlp(**NET), folder / "d.npz", 65)
    found["data"] = key()
    save(mlp(**NET, seed=1), folder)
    found["model"] = key()
    assert len({base, *found.values()}) == len(found) + 1
    text = 'base = "mobile-cpu"\nname = "phone"\ngrid = 4\n'
    (folder / "phone.toml").write_text(text)
    before = key(target="phone.toml")
    (folder / "phone.toml").write_text(text.replace("4", "2"))
    assert key(target="phone.toml") != before


def test_external_data_and_folders_count_by_content(folder: Path) -> None:
    model = mlp(**NET)
    onnx.save(model, "far.onnx", save_as_external_data=True, location="far.bin", size_threshold=0)
    before = key(model="far.onnx")
    content = bytearray((folder / "far.bin").read_bytes())
    content[5] ^= 1
    taught = key(teacher="far.onnx")
    (folder / "far.bin").write_bytes(content)
    assert key(model="far.onnx") != before
    assert key(teacher="far.onnx") != taught
    (folder / "samples").mkdir()
    (folder / "samples" / "a.npz").write_bytes((folder / "d.npz").read_bytes())
    before = key(data="samples")
    (folder / "samples" / "b.npz").write_bytes((folder / "d.npz").read_bytes())
    assert key(data="samples") != before


def test_named_callables_count_by_source_and_others_are_not_cached(
    folder: Path, runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "scoring.py").write_text(METRIC)
    (folder / "helper.py").write_text(HELPER)
    before = key(metric="scoring:score")
    assert key(metric="scoring:score") == before
    (folder / "helper.py").write_text(HELPER + "# another\n")
    assert key(metric="scoring:score") != before, "what the module imports from beside it counts"
    with pytest.raises(NotCacheable, match="may read any file"):
        key(data="scoring:score")
    with pytest.raises(NotCacheable, match="function"):
        key(metric=lambda outputs, samples: 1.0)
    arrays = dict(np.load("d.npz"))
    before = key(data=arrays)
    arrays["labels"] = arrays["labels"][::-1]
    assert key(data=arrays) != before
    caplog.set_level("INFO", "condensec")
    config = configure(model="model.onnx", data="d.npz", **OPTIONS, metric=lambda outputs, samples: 1.0)
    compress(config)
    compress(config)
    assert len(runs) == 2
    assert "not cached: metric is a function" in caplog.text


# -- the store -------------------------------------------------------------------------------------------


def put(cache: ResultCache, key: str, folder: Path, size: int) -> bool:
    path = folder / "blob"
    path.write_bytes(os.urandom(size))
    with cache.held(key) as usable:
        return usable and cache.store(key, "m.onnx", {"sub/blob": path, "report.json": path})


def test_the_least_recently_used_go_first(folder: Path) -> None:
    cache = ResultCache(folder / "c", limit=2500)
    for number, name in enumerate(("a1", "b2")):
        assert put(cache, name, folder, 500)
        os.utime(folder / "c" / name / "entry.json", (number + 1, number + 1))
    assert cache.fetch("a1", folder / "out", {})
    assert (folder / "out" / "sub" / "blob").stat().st_size == 500
    assert put(cache, "c3", folder, 500)
    assert [e.key for e in cache.entries()] == ["a1", "c3"]
    assert not put(cache, "d4", folder, 1300), "larger than all that may be kept"
    with cache.held("a1"):
        assert put(cache, "e5", folder, 1200)
        assert {e.key for e in cache.entries()} == {"a1", "e5"}, "what is in use stays"
    assert cache.clear() == 2
    assert cache.entries() == []


@pytest.mark.parametrize("damage", ["content", "gone", "json", "outside"])
def test_a_damaged_entry_is_computed_anew(folder: Path, runs: list[str], damage: str) -> None:
    config = configure(model="model.onnx", data="d.npz", **OPTIONS)
    compress(config)
    (entry,) = entries(folder)
    plan = entry / "files" / "plan.json"
    if damage == "content":
        plan.write_text(plan.read_text().replace("1", "2"))
    elif damage == "gone":
        plan.unlink()
    elif damage == "json":
        (entry / "entry.json").write_text("{")
    else:
        text = (entry / "entry.json").read_text()
        (entry / "entry.json").write_text(text.replace('"plan.json"', '"../plan.json"'))
    assert not compress(config).cached
    assert compress(config).cached
    assert len(runs) == 2
    assert not (folder / "plan.json").exists()


def test_inputs_that_change_meanwhile_are_not_kept(folder: Path) -> None:
    config = configure(model="model.onnx", data="d.npz", **OPTIONS)

    def meddle(step: str, before: Any, after: Any) -> None:
        if step == "report" and after is None:
            save_samples(mlp(**NET), folder / "d.npz", 65)

    compress(config, meddle)
    assert entries(folder) == []


def test_sizes_and_a_folder_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    for text, size in (("", store.DEFAULT_BYTES), ("0", 0), ("1.5kB", 1500), ("2 MiB", 2 << 20), ("7", 7)):
        monkeypatch.setenv(store.SIZE_VARIABLE, text)
        assert store.size_limit() == size
    for text in ("much", "-1", "3XB"):
        monkeypatch.setenv(store.SIZE_VARIABLE, text)
        with pytest.raises(ConfigError, match="can't be read"):
            store.size_limit()
    monkeypatch.delenv(store.SIZE_VARIABLE)
    (folder / "file").write_text("")
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(folder / "file"))
    config = configure(model="model.onnx", data="d.npz", **OPTIONS)
    assert not compress(config).cached
    assert not compress(config).cached
    assert len(runs) == 2


def test_eight_parallel_identical_builds_share_one_entry(folder: Path) -> None:
    """One computes, the others wait for it; all have the same files, and one entry is kept, whole."""
    command = [sys.executable, "-m", "condensec", "model.onnx", "--data", "d.npz", *FLAGS, "--json", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, "-o", f"out{n}"], stdout=subprocess.PIPE, env=environment, text=True)
        for n in range(8)
    ]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert [process.returncode for process in started] == [0] * 8
    assert sum("cached" not in report for report in reports) == 1
    assert len(entries(folder)) == 1
    made = [files(folder / f"out{n}") for n in range(8)]
    for one in made:
        assert one.pop("condensec.toml")
        assert one == made[0]
    assert len(ResultCache().entries()) == 1


def test_a_waiting_build_takes_over_from_one_that_dies(folder: Path) -> None:
    hold = "import sys, time; from condensec.builds.cache import ResultCache\n"
    hold += "with ResultCache().held(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    config = configure(model="model.onnx", data="d.npz", **OPTIONS)
    process = subprocess.Popen(
        [sys.executable, "-c", hold, fingerprint(config)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    waited: list[float] = []

    def waiting() -> None:
        waited.append(time.monotonic())
        process.kill()

    assert not compress(config, on_wait=waiting).cached
    process.communicate()
    assert len(waited) == 1
    assert compress(config).cached


def test_the_package_says_what_is_in_it() -> None:
    assert "depfile" in (builds.__doc__ or "")
