"""The worker's environment: which Python is taken, and that it is built once and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from condensec.errors import HealError
from condensec.healing import environment
from condensec.healing.lock import FileLock

posix = pytest.mark.skipif(os.name == "nt", reason="makes shell scripts")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the user cache folder to an empty place."""
    monkeypatch.delenv("CONDENSEC_HEAL_PYTHON", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *a, **k: str(tmp_path / "cache"))
    return tmp_path / "cache"


def _shim(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@posix
def test_broken_shim_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version manager's shim exists and fails: the next working Python is taken."""
    real = environment.find_python().path
    _shim(tmp_path / "a", "python3.12", "echo 'command not found' >&2; exit 127")
    _shim(tmp_path / "b", "python3.11", f'exec "{real}" "$@"')
    monkeypatch.delenv("CONDENSEC_HEAL_PYTHON", raising=False)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    tried = list(environment._candidates())
    assert tried[0] == str(tmp_path / "a" / "python3.12")
    found = environment.find_python()
    assert found.version in environment.VERSIONS
    assert found.path.exists()


@posix
def test_no_python_at_all_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDENSEC_HEAL_PYTHON", raising=False)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(HealError, match=r"install CPython 3.10, 3.11 or 3.12"):
        environment.find_python()
    assert not environment.status().ready


@posix
def test_named_python_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _shim(tmp_path / "a", "python3.13", 'echo \'[[3, 13], "CPython", "/x"]\'')
    monkeypatch.setenv("CONDENSEC_HEAL_PYTHON", str(old))
    with pytest.raises(HealError, match="CONDENSEC_HEAL_PYTHON"):
        environment.find_python()


def test_ensure_builds_once_and_rebuilds_what_was_left_half_done(own_cache: Path) -> None:
    lines: list[str] = []
    python = environment.ensure(lines.append)
    assert lines, "the first call must report that it installs"
    answer = subprocess.run(
        [python, "-I", "-c", "import onnxruntime; print(onnxruntime.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "1.19.2"
    assert environment.status().ready

    lines.clear()
    assert environment.ensure(lines.append) == python
    assert lines == []

    marker = python.parent.parent / environment.MARKER
    assert json.loads(marker.read_text())["version"]
    marker.unlink()  # as a killed installation leaves it
    (python.parent.parent / "rubbish").write_text("left over")
    assert not environment.status().ready
    assert environment.ensure(lines.append) == python
    assert lines
    assert not (python.parent.parent / "rubbish").exists()


def test_failed_installation_is_one_line_and_leaves_nothing(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requirements", lambda: "no-such-distribution-condensec==1.0\n")
    with pytest.raises(HealError) as caught:
        environment.ensure()
    assert "\n" not in str(caught.value)
    assert not [p for p in own_cache.iterdir() if p.is_dir()]


def test_lock_excludes_and_tells_who_waits(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with FileLock(tmp_path / "x.lock", waiting.set, poll=0.01):
            order.append("second")

    with FileLock(tmp_path / "x.lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
