"""A lock between processes, held by the operating system: it can't outlive its holder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class FileLock:
    """Exclusive lock on a file, as a context manager.

    Args:
        path: the lock file; created, and left there (removing it would race with the next holder).
        on_wait: called once when somebody else holds it.
        poll: seconds between two tries.
    """

    def __init__(self, path: Path, on_wait: Callable[[], None] | None = None, poll: float = 0.2) -> None:
        self._path = path
        self._on_wait = on_wait
        self._poll = poll
        self._fd = -1

    def attempt(self) -> bool:
        """Take the lock if nobody holds it; says whether."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if _try_lock(self._fd):
            return True
        os.close(self._fd)
        return False

    def __enter__(self) -> FileLock:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        told = False
        while not _try_lock(self._fd):
            if not told and self._on_wait:
                self._on_wait()
            told = True
            time.sleep(self._poll)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)  # closing releases the lock


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
