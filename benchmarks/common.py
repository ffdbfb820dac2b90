"""What every benchmark needs: run `condensec` as a user would, count, bound, print a table, write JSON.

A benchmark prints one table and writes one JSON file. The JSON says where it came from (`provenance`):
command line, commit, versions, processor, cores, start and duration. Paths given by the user are recorded
as given; nothing else about the machine is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("condensec", "numpy", "onnx", "onnx-ir", "onnxruntime")
BUDGET_NOT_MET = 3


# ------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Compiled:
    """One finished run of `condensec`.

    Attributes:
        folder: where it wrote.
        report: report.json.
        exit_code: 0, or 3 when the budget was out of reach within the guard.
        seconds: wall time of the process.
    """

    folder: Path
    report: Mapping[str, Any]
    exit_code: int
    seconds: float

    def graph(self, target: str | None = None) -> Path:
        """The graph for a target, or the neutral one."""
        return self.folder / (self.report["targets"][target]["file"] if target else "model.onnx")


def with_path(folders: Sequence[Path]) -> dict[str, str]:
    """The environment with some folders more for PYTHONPATH, for `--metric module:callable`."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, folders), *known]))}


def condensec(model: Path, output: Path, *arguments: str, path: Sequence[Path] = ()) -> Compiled:
    """Shows and runs `condensec MODEL ARGUMENTS -o OUTPUT`; its progress goes to stderr.

    Args:
        model: the original.
        output: folder for the result.
        arguments: further options.
        path: folders for PYTHONPATH.

    Raises:
        SystemExit: it ended with anything but 0 or 3; says the code.
    """
    command = [
        str(Path(sys.executable).with_name("condensec")),
        str(model),
        *arguments,
        "--output",
        str(output),
        "--no-cache",
    ]
    print("$ condensec " + shlex.join(command[1:]), file=sys.stderr, flush=True)
    started = time.monotonic()
    code = subprocess.run(command, check=False, env=with_path(path), stdout=sys.stderr).returncode
    seconds = time.monotonic() - started
    if code not in (0, BUDGET_NOT_MET):
        raise SystemExit(f"condensec ended with exit code {code}")
    return Compiled(output, read_json(output / "report.json"), code, seconds)


def read_json(path: Path) -> Any:
    """The document in a file."""
    return json.loads(path.read_text("utf-8"))


def session(model: Path, threads: int = 2) -> Any:
    """An onnxruntime session on the CPU, quiet."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def outputs(model: Path, inputs: Mapping[str, NDArray[Any]], batch: int = 50) -> NDArray[Any]:
    """The first output for all samples, in order."""
    runner = session(model)
    fixed = runner.get_inputs()[0].shape[0]  # some targets take one sample a call
    batch = fixed if isinstance(fixed, int) and fixed > 0 else batch
    count = len(next(iter(inputs.values())))
    parts = [
        runner.run(None, {k: v[i : i + batch] for k, v in inputs.items()})[0] for i in range(0, count, batch)
    ]
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------- counting


def wilson(hits: NDArray[np.bool_]) -> tuple[float, float]:
    """95% interval of a share of hits (Wilson 1927)."""
    n, p, z = len(hits), float(np.mean(hits)), 1.96
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def paired_change(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """Change of a share on the same samples, in points, and its 95% interval (normal, paired)."""
    difference = after.astype(float) - before.astype(float)
    mean, half = 100 * difference.mean(), 196 * difference.std(ddof=1) / len(difference) ** 0.5
    return float(mean), (float(mean - half), float(mean + half))


def bootstrap(
    values: NDArray[Any], statistic: Any, *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of `statistic(values[index])`, rows resampled (Efron 1979)."""
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(rounds)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def hit_row(name: str, hits: NDArray[np.bool_], before: NDArray[np.bool_] | None = None) -> dict[str, object]:
    """A share of hits for the table, in percent with its interval; and its paired change against `before`."""
    row: dict[str, object] = {name: 100 * float(hits.mean()), "95% interval": span(wilson(hits), ".1f", 100)}
    if before is not None:
        change, interval = paired_change(before, hits)
        row |= {"change": f"{change:+.2f}", "of it, 95%": span(interval, "+.2f")}
    return row


# ------------------------------------------------------------------------------------------- writing


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Rows as text, numbers to the right; a column nobody fills is left out.

    Args:
        rows: column name -> value; floats are shown with four significant digits.
        columns: order of the columns; default: as they first occur.
    """
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    names = [n for n in names if any(row.get(n) not in (None, "") for row in rows)]
    cells = [names, *([_cell(row.get(n)) for n in names] for row in rows)]
    right = [all(isinstance(row.get(n), (int, float, type(None))) for row in rows) for n in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def span(pair: Sequence[float] | None, form: str = ".3f", factor: float = 1) -> str:
    """An interval as text."""
    return "" if pair is None else f"[{factor * pair[0]:{form}}, {factor * pair[1]:{form}}]"


def stations(report: Mapping[str, Any]) -> list[dict[str, object]]:
    """Wall time and peak memory of each station of the line, out of report.json."""
    memory = report.get("stage_rss_mb", {})
    return [
        {"station": k, "seconds": float(v), "peak MB": memory.get(k)} for k, v in report["timings"].items()
    ]


def size(figures: Mapping[str, Any]) -> dict[str, object]:
    """Parameters and MACs of report.json's `before` or `after`."""
    return {"params": figures["params"], "MACs": figures["macs"]}


def latency(target: Mapping[str, Any]) -> dict[str, object]:
    """What report.json says of one target's latency, and how it was got."""
    times = target["latency_ms"]
    return {
        "ms before": times["before"],
        "ms after": times["after"],
        "ratio": target["ratio"],
        "ratio, 95%": span(target["ci95"]),
        "got by": target.get("latency_how") or target["verified"],
    }


def result_rows(
    done: Compiled, dense: Mapping[str, object], judge: Callable[[Path], Mapping[str, object]]
) -> list[dict[str, object]]:
    """The dense model, the healed graph, and the graph for every target, one row each.

    Args:
        done: the finished run.
        dense: what was found out about the original.
        judge: the same for any other graph.
    """
    report = done.report
    rows = [
        {"model": "dense", **size(report["before"]), **dense},
        {"model": "healed", **size(report["after"]), **judge(done.graph())},
    ]
    for name, target in report["targets"].items():
        row = {"model": f"for {name}, {target['precision']}", **size(report["after"]), **latency(target)}
        rows.append({**row, **judge(done.graph(name))})
    return rows


def publish(
    path: Path, title: str, done: Compiled, rows: Sequence[Mapping[str, object]], started: float
) -> None:
    """Prints the rows and the stations of the line, and writes both as JSON together with report.json."""
    print(f"\n{title}; status: {done.report['status']}\n\n{table(rows)}\n\n{table(stations(done.report))}")
    payload = {"title": title, "rows": rows, "stations": stations(done.report), "seconds": done.seconds}
    write_json(path, {**payload, "report": done.report}, started)


def provenance(started: float) -> dict[str, object]:
    """Where figures came from. `started` is `time.time()` at the beginning."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "-"
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "started": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
    }


def _commit() -> str:
    """The checkout's commit, with a `+` when files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def write_json(path: Path, payload: Mapping[str, object], started: float) -> None:
    """Writes the payload with its provenance, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps({**payload, "provenance": provenance(started)}, indent=1, default=_plain)
    temporary.write_text(text + "\n", "utf-8")
    os.replace(temporary, path)
    print(f"written: {path}", file=sys.stderr)


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a benchmark's JSON")


def arguments(description: str, *, name: str) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks have: where to write, and the seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(".cache/benchmarks") / name, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    return parser
