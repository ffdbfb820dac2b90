"""Depfiles, and the files a run reads."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
from models import mlp, save, save_samples

from condensec.builds.depfile import escaped, rule, write_depfile
from condensec.builds.inputs import config_files, package_file
from condensec.builds.sources import source_files
from condensec.cli import main
from condensec.config import configure
from condensec.errors import ConfigError

FLAGS = ["--budget", "macs<=0.8x", "--max-drop", "inf", "--target", "mobile-cpu", "--heal", "off", "-j", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(mlp(features=8, hidden=(16,), classes=4), tmp_path)
    save_samples(mlp(features=8, hidden=(16,), classes=4), tmp_path / "d.npz", 64)
    return tmp_path


def test_a_rule_with_awkward_names() -> None:
    assert rule("out/r.json", [Path("a b"), Path("c$d#e")]) == (
        "out/r.json: \\\n  a\\ b \\\n  c$$d\\#e\n\na\\ b:\n\nc$$d\\#e:\n"
    )
    with pytest.raises(ConfigError, match="line break"):
        escaped("a\nb")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_reads_it_and_runs_again_only_when_an_input_changes(folder: Path) -> None:
    names = [Path("a b"), Path("c$d#e"), Path("plain")]
    for name in names:
        name.write_text("")
    write_depfile(Path("sub/d.d"), "out", names)
    Path("Makefile").write_text("out:\n\techo made >> log; touch out\ninclude sub/d.d\n")

    def times() -> int:
        subprocess.run(["make", "-s"], check=True)
        return len(Path("log").read_text().split())

    assert times() == 1
    assert times() == 1
    later = Path("out").stat().st_mtime + 5
    for number, name in enumerate(names):
        os.utime(name, (later + number, later + number))
        Path("out").touch()
        os.utime("out", (later + number - 1, later + number - 1))
        assert times() == 2 + number
        os.utime("out", (later + 50, later + 50))
    Path("plain").unlink()
    assert times() == 5, "a deleted file is no error but a reason to run"


def test_the_command_writes_what_it_read(folder: Path) -> None:
    (folder / "scoring.py").write_text(
        "from part import value\ndef score(outputs, samples):\n    return 0.5\n"
    )
    (folder / "part.py").write_text("import numpy\nvalue = 1\n")
    (folder / "settings.toml").write_text('metric = "scoring:score"\n')
    arguments = ["model.onnx", "--data", "d.npz", *FLAGS, "--config", "settings.toml", "-q"]
    assert main([*arguments, "--depfile", "m.d", "--depfile-target", "some where"]) == 0
    first, *rest = Path("m.d").read_text().split("\n\n")
    assert first.split() == [
        "some\\", "where:", "\\", "model.onnx", "\\", "d.npz", "\\", str(folder / "part.py"), "\\",
        str(folder / "scoring.py"), "\\", "settings.toml", "\\", str(package_file()),
    ]  # fmt: skip
    assert len(rest) == 6
    assert main([*arguments, "--depfile", "m.d"]) == 0
    assert Path("m.d").read_text().startswith("model.condensed/report.json:")
    assert main([*arguments, "--depfile", "settings.toml/m.d"]) == 2


def test_external_data_and_folders_of_samples_are_inputs(folder: Path) -> None:
    model = mlp(features=8, hidden=(16,), classes=4)
    Path("net").mkdir()
    onnx.save(model, "net/m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    Path("samples").mkdir()
    for name in ("b.npz", "a.npz", "note.txt"):
        shutil.copy("d.npz", f"samples/{name}")
    found = config_files(configure(model="net/m.onnx", data="samples", val="d.npz"), ["x.toml"])
    names = ["net/m.onnx", "net/m.bin", "samples/a.npz", "samples/b.npz", "d.npz", "x.toml"]
    assert found == tuple(map(Path, names))


def test_source_files_follow_packages_and_nothing_installed(folder: Path) -> None:
    for name, text in {
        "pack/__init__.py": "", "pack/inner/__init__.py": "from ..base import a\n",
        "pack/inner/leaf.py": "from . import side\nimport numpy\n", "pack/inner/side.py": "import pack.far",
        "pack/base.py": "a = 1\n", "pack/far.py": "import broken", "broken.py": "def (",  "unused.py": "",
    }.items():  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    found = [p.relative_to(folder).as_posix() for p in source_files("pack.inner.leaf:f")]
    wanted = ["broken.py", "pack/__init__.py", "pack/base.py", "pack/far.py", "pack/inner/__init__.py"]
    assert found == [*wanted, "pack/inner/leaf.py", "pack/inner/side.py"]
    with pytest.raises(ConfigError, match="nowhere"):
        source_files("nowhere_at_all:f")
