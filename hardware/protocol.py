"""How a time is taken: pinned core, discarded warm-up runs, wall and CPU clocks, robust statistics."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condensec.errors import ConfigError

Array = np.ndarray[Any, np.dtype[np.float64]]
CPU = ("CPUExecutionProvider",)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        threads: intra-op threads; inter-op is always 1.
        discard: runs thrown away before the first that counts.
        pairs: pairs (or runs) at least.
        min_seconds: time the counted runs take at least.
        max_seconds: upper bound; wins over ``pairs`` once 5 are there.
        sample_seconds: a counted sample repeats the run until it takes about this long, so that the clock's
            and the call's own cost don't matter for tiny models.
        providers: execution providers, best first.
        pin: keep to one core (as many as threads) where the OS allows.
        seed: of the bootstrap and of synthetic feeds.
        memory: also measure memory, in a process of its own for each model.
    """

    threads: int = 1
    discard: int = 5
    pairs: int = 30
    min_seconds: float = 1.0
    max_seconds: float = 30.0
    sample_seconds: float = 5e-4
    providers: tuple[str, ...] = CPU
    pin: bool = True
    seed: int = 0
    memory: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1 or self.pairs < 5 or self.discard < 0:
            raise ConfigError("a measurement needs at least 1 thread and 5 pairs")


@dataclass(frozen=True)
class Spread:
    """Seconds a run: smallest, median, 90th and 99th percentile."""

    min: float
    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Array) -> Spread:
        """The spread of these runs."""
        middle, p90, p99 = np.percentile(seconds, [50, 90, 99])
        return cls(float(seconds.min()), float(middle), float(p90), float(p99))

    def to_json(self) -> dict[str, float]:
        """In milliseconds."""
        return {
            "min_ms": self.min * 1e3,
            "median_ms": self.median * 1e3,
            "p90_ms": self.p90 * 1e3,
            "p99_ms": self.p99 * 1e3,
        }


def bootstrap(values: Array, seed: int) -> tuple[float, float, float]:
    """Median and its 95% percentile-bootstrap interval (Efron 1979)."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


@dataclass(frozen=True)
class Clocked:
    """Counted samples: row i holds sample i of every call, in seconds a run."""

    wall: Array
    cpu: Array


def interleave(calls: Sequence[Callable[[], None]], protocol: Protocol) -> Clocked:
    """Time calls in turn, forwards and backwards (ABBA), so that drift hits all of them alike.

    CPU time is that of the calling thread for one thread, of the whole process for more.
    """
    cpu_clock = time.thread_time_ns if protocol.threads == 1 else time.process_time_ns
    repeats = [_warm(call, protocol) for call in calls]
    wall: list[list[float]] = []
    cpu: list[list[float]] = []
    start = time.perf_counter()
    while not _enough(len(wall), time.perf_counter() - start, protocol):
        order = range(len(calls)) if len(wall) % 2 == 0 else reversed(range(len(calls)))
        walls, cpus = [0.0] * len(calls), [0.0] * len(calls)
        for i in order:
            call, count = calls[i], repeats[i]
            cpu0, wall0 = cpu_clock(), time.perf_counter_ns()
            for _ in range(count):
                call()
            wall1, cpu1 = time.perf_counter_ns(), cpu_clock()
            walls[i], cpus[i] = (wall1 - wall0) / count * 1e-9, (cpu1 - cpu0) / count * 1e-9
        wall.append(walls)
        cpu.append(cpus)
    return Clocked(np.array(wall), np.array(cpu))


def _warm(call: Callable[[], None], protocol: Protocol) -> int:
    """Throw the first runs away; how often to repeat the call for one sample."""
    quickest = float("inf")
    for _ in range(max(1, protocol.discard)):
        start = time.perf_counter()
        call()
        quickest = min(quickest, time.perf_counter() - start)
    return max(1, min(1000, round(protocol.sample_seconds / max(quickest, 1e-7))))


def _enough(done: int, seconds: float, protocol: Protocol) -> bool:
    if done >= 5 and seconds >= protocol.max_seconds:
        return True
    return done >= protocol.pairs and seconds >= protocol.min_seconds


@contextlib.contextmanager
def pinned(threads: int, wanted: bool = True) -> Iterator[tuple[int, ...] | None]:
    """Keep the calling thread (and those it starts) to its idlest cores; restores what was before.

    Yields:
        The cores, or None where the OS has no such thing (macOS, Windows) or refuses.
    """
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    cores = tuple(_idlest(before)[:threads])
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        yield None
        return
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _idlest(cores: set[int]) -> list[int]:
    """The cores, idlest over the last 50 ms first."""
    first = _idle_ticks()
    if not first or len(cores) < 2:
        return sorted(cores, reverse=True)
    time.sleep(0.05)
    second = _idle_ticks()
    return sorted(cores, key=lambda core: (first.get(core, 0) - second.get(core, 0), -core))


def _idle_ticks() -> dict[int, int]:
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        return {int(f[0][3:]): int(f[4]) for f in map(str.split, lines) if f and f[0][3:].isdigit()}
    except (OSError, ValueError, IndexError):
        return {}


def load_average() -> float | None:
    """Runnable processes over the last minute, where the OS tells."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
