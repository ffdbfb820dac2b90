"""What each part earns: the same model and budget by condensec whole, and with one part taken away at a time.

Each control is a run of `condensec` with other options and no guard, so that all of them end at the same
budget and what they lose can be compared. One more control isn't cut at all: the original, trained on for
as long.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

Judge = Callable[[Path], Mapping[str, object]]


@dataclass(frozen=True)
class Task:
    """One line of the table of goals.

    Attributes:
        model: the original.
        data: `--data`, `--val` and what belongs to them.
        budget: what is asked for.
        minutes: of training.
        judge: figures of a graph, as it is deployed, on test samples that condensec never sees.
        output: folder for the results.
        seed: for all of them.
        step: share of the units a cycle.
        path: folders for PYTHONPATH.
    """

    model: Path
    data: Sequence[str]
    budget: str
    minutes: float
    judge: Judge
    output: Path
    seed: int
    step: float = 0.1
    path: Sequence[Path] = ()


def variants(task: Task) -> dict[str, list[str]]:
    """Options by name of the run; the first is condensec as it is meant."""
    heal = ["--heal", f"minutes={task.minutes:g}"]
    step = ["--step", f"{task.step:g}"]
    budget = ["--budget", task.budget]
    return {
        "condensec": [*budget, *heal, *step],
        "one-shot": [*budget, *heal, "--step", "1"],
        "random choice": [*budget, *heal, *step, "--criterion", "random"],
        "no closed form": [*budget, "--heal", f"minutes={task.minutes:g},closed-form=off", *step],
        "no training": [*budget, "--heal", "closed-form", *step],
        "no healing": [*budget, "--heal", "off", *step],
    }


def run(task: Task, name: str, further: Sequence[str] = ()) -> dict[str, object]:
    """One variant, and how good its graph is."""
    folder = task.output / name.replace(" ", "-")
    done = common.condensec(
        task.model, folder, *task.data, *variants(task)[name],
        "--max-drop", "inf", "--seed", str(task.seed), *further, path=task.path,
    )  # fmt: skip
    report = done.report
    left = report["after"]["macs"] / report["before"]["macs"]
    row: dict[str, object] = {"run": name, "MACs": left, **_ratio(report)}
    row |= {"cycles": len(report["cycles"]), **_rate(report), "seconds": round(done.seconds)}
    return {**row, **task.judge(done.graph("host" if "host" in report["targets"] else None))}


def uniform(task: Task, name: str, share: float, further: Sequence[str] = ()) -> dict[str, object]:
    """Every group cut to the same share by magnitude, healed as the name says (all of it by default)."""
    folder = task.output / name.replace(", ", "-").replace(" ", "-")
    heal = {"no healing": "off", "closed form": "closed-form"}.get(name.partition(", ")[2])
    done = common.condensec(
        task.model, folder, *task.data, "--keep", f"{share:g}", "--criterion", "magnitude",
        "--heal", heal or f"minutes={task.minutes:g}", "--max-drop", "inf", "--seed", str(task.seed),
        *further, path=task.path,
    )  # fmt: skip
    left = done.report["after"]["macs"] / done.report["before"]["macs"]
    row = {"run": name, "MACs": left, **_ratio(done.report), **_rate(done.report)}
    row["seconds"] = round(done.seconds)
    return {**row, **task.judge(done.graph())}


def dense(task: Task, further: Sequence[str] = ()) -> dict[str, object]:
    """The original, trained on for as long as the others: what the training alone is good for.

    Of the further options it takes those that training has.
    """
    trains = [part for pair in pairwise(further) if pair[0] in ("--augment", "--loss") for part in pair]
    task.output.mkdir(parents=True, exist_ok=True)
    path = task.output / "dense-trained.onnx"
    program, model = str(Path(sys.executable).with_name("condensec")), str(task.model)
    command = [
        program, "heal", model, "--teacher", model, *task.data, "--heal", f"minutes={task.minutes:g}",
        "--seed", str(task.seed), "-o", str(path), "--json", *trains,
    ]  # fmt: skip
    started = time.monotonic()
    path.unlink(missing_ok=True)
    environment = common.with_path(task.path)
    done = subprocess.run(command, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"condensec heal ended with exit code {done.returncode}")
    graph = Path(json.loads(done.stdout)["file"])
    row = {"run": "dense, trained on", "MACs": 1.0, "seconds": round(time.monotonic() - started)}
    return {**row, **task.judge(graph)}


def _ratio(report: Mapping[str, Any]) -> dict[str, object]:
    target = report["targets"].get("host")
    return {"precision": target["precision"], "latency": target["ratio"]} if target else {}


def _rate(report: Mapping[str, Any]) -> dict[str, object]:
    """Training speed; nothing where nothing was trained."""
    rate = (report.get("healing") or {}).get("samples_per_second")
    return {"samples/s": round(rate)} if rate else {}


def compare(
    task: Task, names: Sequence[str], share: float, further: Sequence[str]
) -> list[dict[str, object]]:
    """Rows of the table: the original, condensec, and the controls asked for."""
    rows: list[dict[str, object]] = [{"run": "dense", "MACs": 1.0, **task.judge(task.model)}]
    for name in names:
        if name == "dense, trained on":
            rows.append(dense(task, further))
        elif name.startswith("uniform"):
            rows.append(uniform(task, name, share, further))
        else:
            rows.append(run(task, name, further))
        print(common.table([rows[0], rows[-1]]), file=sys.stderr, flush=True)
    return rows


def seeded(
    task: Task, count: int, compared: Callable[[Task], list[dict[str, object]]]
) -> list[dict[str, object]]:
    """Rows of several seeds, each in a folder of its own; of more than one the medians come last.

    Only what is random in condensec differs: order of training, synthetic draws, the data's split.
    """
    rows: list[dict[str, object]] = []
    for seed in range(task.seed, task.seed + count):
        output = task.output if count == 1 else task.output / f"seed{seed}"
        found = compared(replace(task, seed=seed, output=output))
        rows += found if count == 1 else [{"run": row.pop("run"), "seed": seed, **row} for row in found]
    return rows + (medians(rows) if count > 1 else [])


def medians(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The median of every number, by run."""
    found: list[dict[str, object]] = []
    for name in dict.fromkeys(str(row["run"]) for row in rows):
        same = [row for row in rows if row["run"] == name]
        numbers = {
            key: statistics.median(float(str(row[key])) for row in same)
            for key, value in same[0].items()
            if isinstance(value, int | float) and key != "seed" and all(key in row for row in same)
        }
        found.append({"run": name, "seed": "median", **numbers})
    return found


NAMES = (
    "condensec", "one-shot", "random choice", "uniform magnitude", "no closed form", "no training",
    "no healing", "uniform, no healing", "uniform, closed form", "dense, trained on",
)  # fmt: skip
