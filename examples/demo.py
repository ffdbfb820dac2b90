"""The demo: a trained model made smaller and faster by one command, checked on lines nobody has seen.

The model tells whether a text line is upside down (MobileNetV3-small, PaddleOCR's, out of the package
rapidocr-onnxruntime). The data is rendered here: train, validation and test share neither words nor
numbers, and half of the test fonts occur in no other split. `condensec` sees train and validation; the
table at the end is on test.

    make demo                                   in an environment of its own
    python examples/demo.py -o demo             with condensec and examples/requirements.txt installed

What it leaves in the output folder: data/, the folder condensec wrote (report.html is the thing to look
at, the deployable graphs are in host/ and mobile-cpu/), and demo.json with the figures of the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import textlines
from numpy.typing import NDArray
from packaged import package_file

MODEL = ("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
TARGETS = ("host", "mobile-cpu")
SIZES = {"train": 6000, "validation": 2000, "test": 2000}
RESULT = "orientation.condensed"
NOTE = """
The original has never seen such lines; healing shows the smaller one some, with labels. Accuracy gained
that way is the training's merit, not the cut's: it makes up for what the cut lost."""

Correct = NDArray[np.bool_]


def render(folder: Path, sizes: dict[str, int], seed: int) -> dict[str, Path]:
    """Writes one .npz a split (arrays `x` and `labels`) and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, count in sizes.items():
        x, labels = textlines.orientation(split, count, seed=seed)
        paths[split] = folder / f"{split}.npz"
        np.savez(paths[split], x=x, labels=labels)
    return paths


def condensec(*arguments: str) -> int:
    """Shows the command and runs it; its progress goes straight to the terminal.

    Returns:
        0, or 3 if the budget was out of reach within --max-drop (the best safe model is there all the same).
    """
    print("\n$ condensec " + _shown(arguments) + "\n", flush=True)
    code = subprocess.run(
        [str(Path(sys.executable).with_name("condensec")), *arguments], check=False
    ).returncode
    if code not in (0, 3):
        raise SystemExit(f"condensec ended with exit code {code}")
    return code


def _shown(arguments: tuple[str, ...]) -> str:
    """The command line as one would type it: one option a line, only what needs it quoted."""
    text = ""
    for argument in map(shlex.quote, arguments):
        text += (
            " \\\n      " + argument
            if argument.startswith("-") and text
            else (" " if text else "") + argument
        )
    return text


def correct(model: Path, samples: Path) -> Correct:
    """For each sample whether the model's first choice is its label."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(samples, allow_pickle=False) as data:
        x, labels = data["x"], data["labels"]
    fixed = session.get_inputs()[0].shape[0]  # a graph for a phone takes one line a call
    batch = fixed if isinstance(fixed, int) and fixed > 0 else 50
    scores = [session.run(None, {"x": x[i : i + batch]})[0] for i in range(0, len(x), batch)]
    hits: Correct = np.concatenate(scores).argmax(axis=1) == labels
    return hits


def interval(hits: Correct) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927)."""
    n, p, z = len(hits), float(hits.mean()), 1.96
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def column(figures: dict[str, Any], size: int, hits: Correct) -> dict[str, Any]:
    """The figures of one model: those of the file, and those on the test lines."""
    return {
        "parameters": figures["params"],
        "macs": figures["macs"],
        "bytes": size,
        "accuracy": float(hits.mean()),
        "accuracy_ci95": interval(hits),
    }


def collect(model: Path, result: Path, test: Path) -> dict[str, Any]:
    """Everything in the table: from report.json, and from running the graphs on the test lines."""
    report = json.loads((result / "report.json").read_text("utf-8"))
    before = correct(model, test)
    columns = {"original": column(report["before"], model.stat().st_size, before)}
    for name, target in report["targets"].items():
        file = result / target["file"]
        after = correct(file, test)
        # Both saw the same lines, so the difference is known better than either accuracy.
        difference = after.astype(float) - before
        columns[name] = {
            **column(report["after"], file.stat().st_size, after),
            "latency_ms": target["latency_ms"],
            "ratio": target["ratio"],
            "ratio_ci95": target["ci95"],
            "precision": target["precision"],
            "how": target.get("latency_how") or target["verified"],
            "change_points": 100 * float(difference.mean()),
            "change_ci95": 196 * float(difference.std(ddof=1)) / len(difference) ** 0.5,
        }
    return {"status": report["status"], "test_lines": len(before), "columns": columns}


def _times(c: dict[str, Any]) -> str:
    if "latency_ms" not in c:
        return ""
    times = c["latency_ms"]
    return " -> ".join("?" if times[k] is None else f"{times[k]:.3f}" for k in ("before", "after"))


def _span(pair: Any, factor: float, decimals: int) -> str:
    return "" if pair is None else f"[{factor * pair[0]:.{decimals}f}, {factor * pair[1]:.{decimals}f}]"


def _change(c: dict[str, Any]) -> str:
    return f"{c['change_points']:+.2f} ± {c['change_ci95']:.2f}" if "change_points" in c else ""


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "parameters": lambda c: f"{c['parameters']:,}",
    "MACs": lambda c: f"{c['macs']:,}",
    "bytes": lambda c: f"{c['bytes']:,}",
    "precision": lambda c: str(c.get("precision", "fp32")),
    "latency, ms": _times,
    "  ratio": lambda c: "" if c.get("ratio") is None else f"{c['ratio']:.3f}",
    "  95% interval": lambda c: _span(c.get("ratio_ci95"), 1, 3),
    "  got by": lambda c: str(c.get("how", "")),
    "accuracy, test": lambda c: f"{100 * c['accuracy']:.2f}%",
    "  95% interval ": lambda c: _span(c["accuracy_ci95"], 100, 1),
    "  change, points": _change,
}


def table(columns: dict[str, dict[str, Any]]) -> str:
    """The models side by side; 80 wide for two targets."""
    rows = [["", *columns], *([label, *map(cell, columns.values())] for label, cell in ROWS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[1]), *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description="condensec's demo, on a real model and rendered text lines.")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder (default: demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="latency<=0.5x")
    parser.add_argument("--max-drop", default="0.5", help="points of validation accuracy that may go")
    parser.add_argument("--step", default="0.5", help="share of the remaining units cut per cycle")
    parser.add_argument("--heal", default="minutes=2.5")
    parser.add_argument(
        "--samples", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), default=SIZES.values()
    )
    options = parser.parse_args()
    started = time.monotonic()

    options.output.mkdir(parents=True, exist_ok=True)
    model = Path(shutil.copy(package_file(*MODEL), options.output))
    sizes = dict(zip(SIZES, options.samples, strict=True))
    print("rendering " + ", ".join(f"{n} {split}" for split, n in sizes.items()) + " lines ...", flush=True)
    data = render(options.output / "data", sizes, options.seed)
    result = options.output / RESULT

    targets = [argument for name in TARGETS for argument in ("--target", name)]
    condensec(
        str(model), *targets, "--data", str(data["train"]), "--val", str(data["validation"]),
        "--budget", options.budget, "--max-drop", options.max_drop, "--step", options.step,
        "--heal", options.heal, "--seed", str(options.seed), "--output", str(result), "--no-cache",
    )  # fmt: skip

    figures = collect(model, result, data["test"])
    figures["seconds"] = round(time.monotonic() - started, 1)
    (options.output / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(f"\nOn {figures['test_lines']} test lines that neither condensec nor the training has seen:\n")
    print(table(figures["columns"]))
    print(NOTE)
    print(f"\n{figures['seconds']:.0f} s in all. Report: {result / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
