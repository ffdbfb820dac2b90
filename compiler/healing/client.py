"""Starts the worker, listens to it, and ends it: crashes, hangs and lack of memory become `HealError`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from condensec.errors import HealError

Event = Mapping[str, Any]

# Loads the worker's folder as a package of its own name, without putting any folder on sys.path.
_BOOT = "; ".join(
    (
        "import importlib.util as u, sys",
        "s = u.spec_from_file_location('heal_worker', sys.argv[1] + '/__init__.py', "
        "submodule_search_locations=[sys.argv[1]])",
        "sys.modules['heal_worker'] = m = u.module_from_spec(s)",
        "s.loader.exec_module(m)",
    )
)
_MAIN = "; from heal_worker.main import main; sys.exit(main(sys.argv[2:]))"
_LAST_LINES = 12


class Worker:
    """A running worker, as a context manager; it is gone when the block is left.

    Args:
        python: the executable that has onnxruntime-training.
        arguments: for the worker's `main`.
        stall: seconds without a line after which it is taken for hung.
    """

    def __init__(self, python: Path, arguments: list[str], *, stall: float) -> None:
        self._stall = stall
        self._errors: deque[str] = deque(maxlen=_LAST_LINES)
        self._lines: Queue[str | None] = Queue()
        folder = Path(__file__).parent / "worker"
        try:
            self.process = subprocess.Popen(
                [str(python), "-I", "-u", "-c", _BOOT + _MAIN, str(folder), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=_environment(),
            )
        except OSError as error:
            raise HealError(f"can't start the healing worker {python}: {error}") from error
        self._threads = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """Events until "done".

        Raises:
            HealError: the worker failed, was killed, ran out of memory, or hangs.
        """
        while True:
            try:
                line = self._lines.get(timeout=self._stall)
            except Empty:
                self.close()
                raise HealError(
                    f"the healing worker gave no sign of life for {self._stall:.0f} s and was stopped"
                ) from None
            if line is None:
                raise self._death()
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                self._errors.append(line.rstrip())
                continue
            if event.get("event") == "failed":
                raise HealError(f"the healing worker failed: {event.get('message')}", hint=_hint(str(event)))
            yield event
            if event.get("event") == "done":
                return

    def answer(self, **fields: Any) -> None:
        """Answer a question of the worker.

        Raises:
            HealError: it is no longer there.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(fields) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._death() from error

    def close(self) -> None:
        """End the process, by force if it doesn't go on its own."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=5 if self.process.poll() is None else 0.1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _death(self) -> HealError:
        """Why it is gone, as an error."""
        self.process.wait()
        self._threads[1].join(timeout=5)
        code = self.process.returncode
        if code in (-9, 137):
            return HealError("the healing worker was killed (out of memory?)", hint=_hint("out of memory"))
        last = " | ".join(line for line in self._errors if line)[-600:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return HealError(f"the healing worker ended with {how}: {last or 'it said nothing'}")

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "GraphTransformer" not in line:  # the training build's chatter
                self._errors.append(line.strip())


def follow(worker: Worker, on: Mapping[str, Callable[[Event], Mapping[str, Any] | None]]) -> Event:
    """Listen until the worker is done.

    Args:
        worker: a running one.
        on: event name -> function; what it returns, if anything, is sent as the answer.

    Returns:
        The last event.
    """
    event: Event = {}
    for event in worker.events():
        handler = on.get(str(event.get("event")))
        reply = handler(event) if handler else None
        if reply is not None:
            worker.answer(**reply)
    return event


def _hint(text: str) -> str | None:
    return "heal with a smaller batch or fewer jobs" if "out of memory" in text else None


def _environment() -> dict[str, str]:
    """The parent's, without what would lead the worker's Python to other packages."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if sys.platform == "win32":
        env["PYTHONUTF8"] = "1"
    return env
