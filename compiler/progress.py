"""Progress on stderr: a bar with time left on a terminal, one plain line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from condensec.console import Console, color

# what the stages of the line are called for people
LABELS = {
    "load": "reading the model",
    "data": "reading the data",
    "groups": "finding what can be cut",
    "baseline": "running the original",
    "latency": "timing nodes",
    "budget": "measuring the original",
    "sensitivity": "measuring sensitivity",
    "choose": "trying what to cut",
    "select": "choosing what to cut",
    "prune": "cutting",
    "repair": "repairing (closed form)",
    "effects": "measuring what zeros in each layer do",
    "pattern": "setting zeros",
    "permute": "sorting channels for zeros",
    "heal": "healing",
    "judge": "judging",
    "watch": "looking for dead layers",
    "verify": "proving the cut",
    "emit": "writing and timing the graphs",
    "pareto": "writing and timing models along the front",
    "report": "writing the report",
}
_SILENCE = 30.0  # seconds without a line, where there is no terminal
_SHORT = 0.5  # seconds; a repeated stage below it isn't worth a line of its own


class Progress:
    """An observer of the line (``(step, before, after)``) that shows how far it is. A context manager.

    Args:
        console: how to speak.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}
        self._seen: set[str] = set()
        self._first: dict[str, tuple[float, float]] = {}  # when a step first told its share, and which
        self._said = 0.0  # when the last plain line of progress was written
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._console.live:
            self._bar = _make_bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: str, before: Any, after: Any) -> None:
        """Told by the line: a step starts (``after`` is None), goes on (``before`` has a share), is done.

        Raises:
            KeyboardInterrupt: Ctrl-C came, and native code swallowed it.
        """
        if self._console.stopping:
            raise KeyboardInterrupt
        if after is None and hasattr(before, "share") and hasattr(before, "text"):
            self.share(step, float(before.share), str(before.text))
        elif after is None:
            self._start(step)
        else:
            self._done(step)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._console.progress(text)

    def _start(self, step: str) -> None:
        self._started[step] = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(LABELS.get(step, step), total=None)

    def share(self, step: str, share: float, text: str) -> None:
        """The running step is so far, from 0 to 1. Without a terminal a long step says so at times."""
        if self._bar is None:
            self._plain(step, share, text)
            return
        if self._task is None:
            self._start(step)
        label = LABELS.get(step, step)
        self._bar.update(
            self._task, total=1.0, completed=min(1.0, share), description=f"{label} {text}".rstrip()
        )

    def _plain(self, step: str, share: float, text: str) -> None:
        """A line of progress, if the last one is long ago."""
        now = time.monotonic()
        begun = self._started.setdefault(step, now)
        if share > 0:  # what goes on before isn't counted by shares
            self._first.setdefault(step, (now, share))
        if now - max(begun, self._said) < _SILENCE or self._console.quiet:
            return
        self._said = now
        since, before = self._first.get(step, (now, share))
        gone = share - before
        rest = (now - since) * (1 - share) / gone if gone > 0.02 else 0.0
        left = f", about {_duration(rest)} left" if rest > 0 else ""
        label = LABELS.get(step, step)
        self.say(f"{now - begun:7.1f} s  {label}: {100 * share:.0f}%{left} {text}".rstrip())

    def _done(self, step: str) -> None:
        seconds = time.monotonic() - self._started.pop(step, time.monotonic())
        self._first.pop(step, None)
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if seconds >= _SHORT or step not in self._seen or self._console.verbose:
            self._seen.add(step)
            if not self._console.quiet:
                self.say(f"{seconds:7.1f} s  {LABELS.get(step, step)}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _make_bar() -> Any:
    """Spinner, label, bar and time left; gone when it stops."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = RichConsole(file=sys.stderr, no_color=not color(sys.stderr))
    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
