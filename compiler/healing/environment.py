"""The healing worker's own Python environment: found, created once, checked.

onnxruntime-training-cpu 1.19.2 exists for CPython 3.10-3.12 only and installs the same folder as
onnxruntime, so the two can't share an environment. condensec creates one in the user's cache folder on
first need: pinned and hashed requirements, a lock so that two runs don't build it twice, and a marker
file written last so that a half-built one is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from subprocess import CompletedProcess

from condensec.errors import HealError
from condensec.healing.lock import FileLock

Progress = Callable[[str], None]

VERSIONS = ((3, 12), (3, 11), (3, 10))
MARKER = "ready.json"
HINT = "install CPython 3.10, 3.11 or 3.12 (with the venv module), or set CONDENSEC_HEAL_PYTHON to one"

_PROBE = (
    "import json,sys,platform;"
    "print(json.dumps([sys.version_info[:2],platform.python_implementation(),sys.executable]))"
)
_CHECK = (
    "import json,numpy,onnxruntime;from onnxruntime.capi._pybind_state import GradientGraphBuilder;"
    "print(json.dumps([onnxruntime.__version__,numpy.__version__]))"
)
_UV_NAMES = {  # the same setting under pip's name and uv's
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
}


@dataclass(frozen=True)
class Interpreter:
    """A Python that was run and answered.

    Attributes:
        path: the executable, as it named itself.
        version: (major, minor).
        trains: it can already import the training build of onnxruntime.
    """

    path: Path
    version: tuple[int, int]
    trains: bool


@dataclass(frozen=True)
class Status:
    """What `condensec doctor` shows about healing.

    Attributes:
        ready: a worker could be started now, nothing to install.
        python: the worker's executable, or the one the environment would be made with.
        folder: where the environment is or would be; None when the user named a Python.
        detail: one line for the user.
    """

    ready: bool
    python: Path | None
    folder: Path | None
    detail: str


def requirements() -> str:
    """Text of the pinned and hashed requirements."""
    return files("condensec.healing").joinpath("requirements-heal.txt").read_text(encoding="utf-8")


def find_python() -> Interpreter:
    """The Python to run the worker with, or to make its environment from.

    CONDENSEC_HEAL_PYTHON wins; then this interpreter; then python3.12, 3.11, 3.10 on PATH. Each one is
    run, not only looked up: version managers leave shims that exist and fail.

    Raises:
        HealError: none is there, or the one that was named doesn't run or isn't CPython 3.10-3.12.
    """
    named = os.environ.get("CONDENSEC_HEAL_PYTHON")
    if named:
        found = _probe(named)
        if found is None:
            raise HealError(f"CONDENSEC_HEAL_PYTHON={named} doesn't run as CPython 3.10-3.12", hint=HINT)
        return found
    for candidate in _candidates():
        found = _probe(candidate)
        if found is not None:
            return found
    raise HealError("healing by training needs a CPython 3.10-3.12; none was found on PATH", hint=HINT)


def ensure(progress: Progress | None = None) -> Path:
    """The worker's Python executable, its environment created if it isn't there yet.

    Args:
        progress: gets a line for each slow step.

    Raises:
        HealError: no fitting Python, or the installation failed (with the installer's last lines).
    """
    say = progress or (lambda line: None)
    base = find_python()
    if base.trains:
        return base.path
    folder = _folder(base)
    if not _is_ready(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock"), lambda: say("waiting for another run to set up healing")):
            if not _is_ready(folder):
                _build(folder, base, say)
    return _python_in(folder)


def status() -> Status:
    """Whether healing by training could start now; nothing is created."""
    try:
        base = find_python()
    except HealError as error:
        return Status(False, None, None, str(error))
    label = f"CPython {base.version[0]}.{base.version[1]}"
    if base.trains:
        return Status(True, base.path, None, f"uses {base.path} ({label})")
    folder = _folder(base)
    if _is_ready(folder):
        return Status(True, _python_in(folder), folder, f"ready in {folder} ({label})")
    return Status(
        False, base.path, folder, f"not set up yet; would be made with {base.path} ({label}) on first need"
    )


def fix(progress: Progress | None = None) -> Status:
    """Create the environment anew if it isn't there or doesn't work.

    Raises:
        HealError: as `ensure`.
    """
    python = ensure(progress)
    if _run([str(python), "-I", "-c", _CHECK], timeout=120).returncode != 0:
        folder = python.parent.parent
        (folder / MARKER).unlink(missing_ok=True)
        ensure(progress)
    return status()


def _candidates() -> Iterator[str]:
    if sys.version_info[:2] in VERSIONS and sys.implementation.name == "cpython":
        yield sys.executable
    names = [f"python{major}.{minor}" for major, minor in VERSIONS] + ["python3", "python"]
    for name in names:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = shutil.which(name, path=folder) if folder else None
            if path:
                yield path
    for major, minor in VERSIONS:  # version managers and the Windows installer keep them here
        roots = [Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]
        for root in roots:
            yield from sorted(map(str, root.glob(f"*{major}.{minor}.*/bin/python{major}.{minor}")))
        if os.name == "nt" and shutil.which("py"):
            answer = _run(["py", f"-{major}.{minor}", "-c", "import sys;print(sys.executable)"], timeout=30)
            if answer.returncode == 0:
                yield answer.stdout.strip()


def _probe(executable: str) -> Interpreter | None:
    """Run it; None unless it is a CPython of a fitting version."""
    answer = _run([executable, "-I", "-c", _PROBE], timeout=30)
    try:
        version, implementation, path = json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    if answer.returncode != 0 or implementation != "CPython" or tuple(version) not in VERSIONS:
        return None
    trains = _run([executable, "-I", "-c", _CHECK], timeout=60).returncode == 0
    return Interpreter(Path(path), (version[0], version[1]), trains)


def _run(command: list[str], timeout: float, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    """Run a short command; a failure to start or to end in time counts as exit code 127."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return CompletedProcess(command, 127, "", str(error))


def _folder(base: Interpreter) -> Path:
    import platformdirs

    key = f"{requirements()}|{base.version}|{sys.platform}|{platform.machine()}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("condensec", appauthor=False)) / f"heal-{digest}"


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_ready(folder: Path) -> bool:
    """The marker is there and the interpreter the environment was made from still is."""
    return (folder / MARKER).is_file() and _python_in(folder).exists()


def _build(folder: Path, base: Interpreter, say: Progress) -> None:
    """Make the environment in its final place (its scripts hold absolute paths), the marker last.

    Raises:
        HealError: every way to install failed.
    """
    say(f"setting up healing in {folder} (once; about 25 MB to download)")
    wanted = folder.parent / f"{folder.name}.requirements.txt"
    wanted.write_text(requirements(), encoding="utf-8")
    failures = []
    for name, steps in _ways(folder, base, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        say(f"installing onnxruntime-training with {name}")
        failure = _install(folder, steps)
        if failure is None:
            break
        failures.append(f"{name}: {failure}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        reasons = " | ".join(failures)
        raise HealError(f"can't set up the healing environment: {reasons}", hint=_advice(reasons.lower()))
    wanted.unlink(missing_ok=True)
    marker = folder / (MARKER + ".tmp")
    marker.write_text(json.dumps({"python": str(base.path), "version": base.version}), encoding="utf-8")
    os.replace(marker, folder / MARKER)
    say("healing is set up")


def _ways(folder: Path, base: Interpreter, wanted: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Ways to make and fill the environment, best first: (name, commands)."""
    python, target = str(base.path), str(_python_in(folder))
    hashed = ["--no-deps", "--require-hashes", "-r", str(wanted)]
    uv = shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", "--python", target, *hashed]
        yield "uv", [[uv, "venv", "--python", python, str(folder)], install]
    pip = ["--no-input", "--disable-pip-version-check", "install", "--only-binary=:all:", *hashed]
    yield "pip", [[python, "-m", "venv", str(folder)], [target, "-I", "-m", "pip", *pip]]
    # Debian's Python comes without ensurepip: borrow the pip of the Python condensec runs in.
    bare = [python, "-m", "venv", "--without-pip", str(folder)]
    yield "this environment's pip", [bare, [sys.executable, "-m", "pip", "--python", target, *pip]]


def _install(folder: Path, steps: list[list[str]]) -> str | None:
    """Run the commands, then import what was installed; the reason if anything failed."""
    unset = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    for ours, theirs in _UV_NAMES.items():
        if ours in env and theirs not in env and not env.get("UV_INDEX_URL"):
            env[theirs] = env[ours]
    for command in [*steps, [str(_python_in(folder)), "-I", "-c", _CHECK]]:
        answer = _run(command, timeout=900, env=env)
        if answer.returncode != 0:
            lines = (answer.stderr or answer.stdout).strip().splitlines()
            errors = [line.strip() for line in lines if "error" in line.lower()]
            return (errors or [line.strip() for line in lines] or [f"exit code {answer.returncode}"])[-1]
    return None


def _advice(text: str) -> str:
    if "no matching distribution" in text or "no solution" in text or "unsatisfiable" in text:
        return (
            "onnxruntime-training-cpu 1.19.2 has wheels for Linux x86-64, macOS and Windows x86-64 only; "
            "here use --heal closed-form, or check the index settings (PIP_INDEX_URL, UV_DEFAULT_INDEX)"
        )
    return "check the network and the package index settings, then run `condensec doctor --fix`"
