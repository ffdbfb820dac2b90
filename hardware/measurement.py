"""What a measurement is: where it was taken, one model's time, two models' times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from condensec.hardware.protocol import Spread

# Above this ratio of wall to CPU time the thread was kept waiting, and the CPU clock is the better one.
_DISTURBED = 1.05


@dataclass(frozen=True)
class Environment:
    """Where a measurement was taken."""

    runtime: str
    isa: str
    provider: str
    threads: int
    cores: tuple[int, ...] | None
    load: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "onnxruntime": self.runtime,
            "isa": self.isa,
            "provider": self.provider,
            "threads": self.threads,
            "pinned_cores": None if self.cores is None else list(self.cores),
            "load_average": self.load,
        }


@dataclass(frozen=True)
class Measurement:
    """One model's time.

    Attributes:
        name: file name, or "a" / "b".
        wall: wall-clock seconds a run.
        cpu: CPU seconds a run (of all threads).
        first_run: seconds of the first run.
        session_creation: seconds to load and optimise the model.
        model_bytes: size of the model with its weights.
        runs: counted samples.
        environment: where.
        command: the line that measures the same with onnxruntime's own tool, or with trtexec.
        peak_bytes: what opening and running it adds to a process; None where that isn't known.
    """

    name: str
    wall: Spread
    cpu: Spread
    first_run: float
    session_creation: float
    model_bytes: int
    runs: int
    environment: Environment
    command: str
    peak_bytes: int | None = None

    @property
    def seconds(self) -> float:
        """The one number: median wall time, or median CPU time where the machine was disturbed."""
        return self.cpu.median if self.basis == "cpu" else self.wall.median

    @property
    def basis(self) -> str:
        """Which clock `seconds` is from: "wall" or "cpu"."""
        return "cpu" if _disturbed(self.environment, self.wall, self.cpu) else "wall"

    def to_json(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        return {
            "name": self.name,
            "latency_ms": self.seconds * 1e3,
            "basis": self.basis,
            "wall": self.wall.to_json(),
            "cpu": self.cpu.to_json(),
            "first_run_ms": self.first_run * 1e3,
            "session_creation_ms": self.session_creation * 1e3,
            "bytes": self.model_bytes,
            "peak_memory_bytes": self.peak_bytes,
            "runs": self.runs,
            "environment": self.environment.to_json(),
            "command": self.command,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models' times, b over a.

    Attributes:
        a: the first model (usually: before).
        b: the second (after).
        ratio: median of the paired ratios b/a; below 1 means that b is faster.
        ci95: its bootstrap interval.
        wall_ratio: the same by the wall clock, with its interval.
        cpu_ratio: the same by CPU time.
        basis: which clock ``ratio`` is from: "cpu" where the machine was disturbed, else "wall".
        pairs: counted pairs.
    """

    a: Measurement
    b: Measurement
    ratio: float
    ci95: tuple[float, float]
    wall_ratio: tuple[float, float, float]
    cpu_ratio: tuple[float, float, float]
    basis: str
    pairs: int

    @property
    def verdict(self) -> str:
        """What b is: "faster" or "slower" only where the interval excludes 1, else "no difference"."""
        if self.ci95[1] < 1:
            return "faster"
        return "slower" if self.ci95[0] > 1 else "no difference"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "ratio": self.ratio,
            "ci95": list(self.ci95),
            "verdict": self.verdict,
            "basis": self.basis,
            "wall_ratio": list(self.wall_ratio),
            "cpu_ratio": list(self.cpu_ratio),
            "pairs": self.pairs,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
        }


def _disturbed(where: Environment, wall: Spread, cpu: Spread) -> bool:
    alone = where.threads == 1 and where.provider == "CPUExecutionProvider"
    return alone and cpu.median > 0 and wall.median > _DISTURBED * cpu.median
