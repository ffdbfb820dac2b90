"""The worker's entry point: runs what it is asked for, and says in one line what went wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

# ruff: noqa: TID251 (these are this package's own modules, under whatever name it was started)
from .channel import Channel, peak_rss_mb
from .gradients import collect
from .run import Run

_CROWDED = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def main(arguments: list[str]) -> int:
    """Entry point: `main([request.json])`; the exit code is 0 when the run came to its end."""
    channel = Channel()
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        channel.send("started", pid=os.getpid())
        if request.get("task") == "gradients":
            collect(request, channel)
            return 0
        run = Run(request, channel)
        channel.send("ready", rss=peak_rss_mb())
        run.go()
    except MemoryError:
        channel.send("failed", message="out of memory")
        return 4
    except Exception as error:
        text = " ".join(str(error).split())
        message = f"{type(error).__name__}: {text}"[-600:]
        memory = "bad_alloc" in text or "Failed to allocate memory" in text
        if isinstance(error, OSError) and error.errno in _CROWDED:
            message = f"can't write to {Path(arguments[0]).parent}: {error.strerror}"
        channel.send("failed", message="out of memory" if memory else message)
        return 4 if memory else 1
    return 0
