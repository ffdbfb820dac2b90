"""What the worker exchanges with its parent: JSON lines, files written in one piece, its memory."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np


class Channel:
    """JSON lines to and from the parent; the process ends with the parent."""

    def __init__(self) -> None:
        # What native code prints on stdout must not get between the lines.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._answers: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._answers.put(json.loads(line))
        os._exit(3)  # the parent is gone

    def send(self, event: str, **fields: Any) -> None:
        """One event."""
        print(json.dumps({"event": event, **fields}), file=self._out, flush=True)

    def ask(self, event: str, **fields: Any) -> dict[str, Any]:
        """One event, and the parent's answer to it."""
        self.send(event, **fields)
        return self._answers.get()


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write under a temporary name, then move into place."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def peak_rss_mb() -> float:
    """Largest resident set of this process so far, in MiB; 0 where the system doesn't say."""
    try:  # Linux's getrusage also counts what the parent held before exec; this doesn't
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) / 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
