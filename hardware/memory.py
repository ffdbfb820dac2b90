"""How much memory a model takes: a process of its own opens it, runs it, and says how far it grew.

Run as ``python -m condensec.hardware.memory MODEL FEEDS.npz THREADS PROVIDER...``: prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.hardware.protocol import Protocol
from condensec.runner import Session

if TYPE_CHECKING:
    from condensec.runner import Arrays

_RUNS = 3
_SECONDS = 120.0


def peak_bytes(model: Path, feeds: Arrays, protocol: Protocol) -> int | None:
    """What opening a model and running it adds to the peak of resident memory, in bytes.

    None where the system doesn't tell (only Linux does), or the process failed.
    """
    if _peak() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="condensec-") as folder:
        arrays = Path(folder) / "feeds.npz"
        with zipfile.ZipFile(arrays, "w") as archive:  # np.savez takes no name that is one of its own
            for name, array in feeds.items():
                with archive.open(f"in.{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array))
        command = [sys.executable, "-m", "condensec.hardware.memory", str(model), str(arrays)]
        command += [str(protocol.threads), *protocol.providers]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
            return int(json.loads(done.stdout)["bytes"])
        except (OSError, subprocess.SubprocessError, ValueError, KeyError):
            return None


def _peak() -> int | None:
    """Peak of resident memory of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _main(model: str, arrays: str, threads: str, *providers: str) -> None:
    import onnxruntime

    onnxruntime.get_available_providers()
    with np.load(arrays, allow_pickle=False) as data:
        feeds = {name.removeprefix("in."): data[name] for name in data.files}
    before = _peak() or 0
    call = Session(model, threads=int(threads), providers=providers).prepared(feeds)
    for _ in range(_RUNS):
        call()
    print(json.dumps({"bytes": max(0, (_peak() or 0) - before)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
