"""Named steps: timing, memory, observation and failure in one place."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from condensec.errors import CondensecError, Interrupted, PassError

_log = logging.getLogger(__name__)
Observer = Callable[[str, Any, Any], None]
T = TypeVar("T")


def silent(step: str, before: Any, after: Any) -> None:
    """The observer that does nothing."""


class Steps:
    """Runs named steps and keeps what they cost.

    The observer is called as ``observer(step, before, None)`` when a step starts, with a `Progress` as
    ``before`` while it runs, and ``observer(step, before, after)`` when it is done.

    Attributes:
        seconds: step -> wall time, summed over repeats, in the order of first use.
        peak_mb: step -> peak resident memory in MiB of the process when the step ended.
        done: steps that ended well, in order, without repeats.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.observer: Observer = observer or silent
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}
        self.done: list[str] = []
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the first step could start."""
        return time.monotonic() - self._started

    def run(self, name: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run one step.

        Raises:
            CondensecError: as the step raised it.
            PassError: anything else, with the step's name and the steps before it.
            Interrupted: Ctrl-C.
        """
        subject = args[0] if args else None
        self.observer(name, subject, None)
        start = time.monotonic()
        try:
            result = function(*args, **options)
        except CondensecError:
            raise
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted in step '{name}'", hint="run the same command with --resume to go on"
            ) from None
        except Exception as error:
            raise PassError(name, tuple(self.done), error) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.peak_mb[name] = peak_rss_mb()
        _log.info("%s: %.1f s", name, time.monotonic() - start)
        if name not in self.done:
            self.done.append(name)
        self.observer(name, subject, result)
        return result

    def progress(self, name: str, share: float, text: str = "") -> None:
        """Tell the observer how far a running step is."""
        self.observer(name, Progress(share, text), None)


class Progress:
    """How far a step is.

    Attributes:
        share: 0 to 1.
        text: one line for people.
    """

    def __init__(self, share: float, text: str = "") -> None:
        self.share = share
        self.text = text


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB (0 where the platform doesn't say)."""
    try:  # getrusage on Linux also counts what the parent held before this program was started
        status = Path("/proc/self/status").read_text("ascii", "replace")
        return float(next(s.split()[1] for s in status.splitlines() if s.startswith("VmHWM"))) / 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0)
