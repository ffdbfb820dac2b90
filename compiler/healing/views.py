"""Augmented training samples, view by view: each is made while the worker trains on the one before."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

Files = dict[str, str]
Make = Callable[[int, Path, Callable[[], bool]], Files]
USES = 2  # epochs a view serves: the teacher's answers to it cost about half an epoch of training


class Views:
    """Makes views ahead of the worker, as a context manager.

    Args:
        make: (view, folder, is_stopped) -> graph input -> file; runs in a thread of its own.
        folder: to write to; a view is a folder in it.
        count: views that are used in turn; 0 = a new one every `USES` epochs.
        epochs: epochs that will be asked for; None = no end.
    """

    def __init__(self, make: Make, folder: Path, count: int, epochs: float | None) -> None:
        self._make, self._folder, self._count, self._epochs = make, folder, count, epochs
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, "condensec-views")
        self._views: dict[int, Future[Files]] = {}

    def __enter__(self) -> Views:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, epoch: int) -> Files:
        """The files of an epoch; waits for them, and starts on the next epoch's.

        Raises:
            DataError: the samples can't be augmented.
            OSError: they can't be written.
        """
        files = self._view(epoch).result()
        if self._epochs is None or epoch + 1 < self._epochs:
            self._view(epoch + 1)
        if not self._count:
            for old in [v for v in self._views if v < self._number(epoch)]:
                self._views.pop(old).cancel()
                shutil.rmtree(self._folder / f"view{old}", ignore_errors=True)
        return files

    def _number(self, epoch: int) -> int:
        return epoch % self._count if self._count else epoch // USES

    def _view(self, epoch: int) -> Future[Files]:
        number = self._number(epoch)
        if number not in self._views:
            folder = self._folder / f"view{number}"
            self._views[number] = self._pool.submit(self._make, number, folder, self._stopped.is_set)
        return self._views[number]
