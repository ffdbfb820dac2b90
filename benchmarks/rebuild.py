"""How long does a build take in which nothing changed (CMake, Make, Ninja), and what do eight at once do?

    python benchmarks/rebuild.py [MODEL.onnx] [--data PATH] [--runs 5]

Each example of examples/ is built, then built again while nothing changed. Then the cache: the command that
computes, the same again, and eight of the same at once in folders of their own. Without a model a small one
is made.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = Path(sys.executable).with_name("condensec")
FLAGS = [
    "--target",
    "mobile-cpu",
    "--budget",
    "macs<=0.8x",
    "--max-drop",
    "40",
    "--heal",
    "closed-form",
    "-q",
]


def small_model(folder: Path) -> None:
    """`model.onnx`, three layers on 64 features, and `samples.npz` with the labels it gives itself."""
    rng = np.random.default_rng(0)
    widths = [64, 256, 128, 10]
    nodes, weights = [], []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        weights.append(numpy_helper.from_array(rng.normal(0, a**-0.5, (a, b)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", ["x" if i == 0 else f"r{i - 1}", f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
    nodes.pop()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", widths[0]])
    y = helper.make_tensor_value_info("m2", TensorProto.FLOAT, ["N", widths[-1]])
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
              folder / "model.onnx")  # fmt: skip
    samples = rng.normal(size=(1000, widths[0])).astype(np.float32)
    hidden = samples
    for i, weight in enumerate(weights):
        hidden = hidden @ numpy_helper.to_array(weight)
        hidden = np.maximum(hidden, 0) if i < 2 else hidden
    np.savez(folder / "samples.npz", x=samples, labels=hidden.argmax(axis=1))


def timed(command: list[str], cwd: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def systems(folder: Path, runs: int) -> list[dict[str, object]]:
    """First and no-op build of each example."""
    module = subprocess.run([str(COMMAND), "cmake-dir"], capture_output=True, text=True, check=True).stdout
    configure = [f"-Dcondensec_DIR={module.strip()}", f"-DCONDENSEC_EXECUTABLE={COMMAND}"]
    rows = []
    for name, example, build, setup in (
        ("CMake, Make", "cmake", ["cmake", "--build", "b"], ["-G", "Unix Makefiles"]),
        ("CMake, Ninja", "cmake", ["cmake", "--build", "b"], ["-G", "Ninja"]),
        ("Make", "make", ["make"], None),
        ("Ninja", "ninja", ["ninja"], None),
    ):
        place = folder / name.replace(", ", "-")
        shutil.copytree(EXAMPLES / example, place)
        for file in ("model.onnx", "samples.npz"):
            shutil.copy(folder / file, place)
        if setup is not None:
            timed(["cmake", "-S", ".", "-B", "b", *setup, *configure], place)
        first = timed(build, place)
        again = [timed(build, place) for _ in range(runs)]
        rows.append(
            {"build": name, "first s": first, "no-op s": statistics.median(again), "most s": max(again)}
        )
    return rows


def cached(folder: Path, runs: int) -> list[dict[str, object]]:
    """One command computed, answered from the cache, and eight at once."""
    command = [str(COMMAND), "model.onnx", "--data", "samples.npz", *FLAGS, "--output"]
    first = timed([*command, "first"], folder)
    again = [timed([*command, f"again{n}"], folder) for n in range(runs)]
    subprocess.run([str(COMMAND), "cache", "--clear"], check=True, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    parallel = [
        subprocess.Popen([*command, f"p{n}", "--json"], cwd=folder, stdout=subprocess.PIPE, text=True)
        for n in range(8)
    ]
    outputs = [process.communicate()[0] for process in parallel]
    seconds = time.perf_counter() - started
    computed = sum('"cached": true' not in output for output in outputs)
    same = {(folder / f"p{n}" / "model.onnx").read_bytes() for n in range(8)}
    entries = [p for p in (folder / "cache" / "results").glob("[0-9a-f]*") if p.is_dir()]
    return [
        {"run": "computed", "s": first},
        {"run": "the same again", "s": statistics.median(again)},
        {"run": "eight at once", "s": seconds, "computed": computed, "different models": len(same),
         "entries": len(entries)},
    ]  # fmt: skip


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="rebuild")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="condensec-rebuild-") as name:
        folder = Path(name)
        os.environ["CONDENSEC_CACHE_DIR"] = str(folder / "cache")
        os.environ["CONDENSEC_CACHE_SIZE"] = "2GB"
        os.environ["PATH"] = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
        if options.model is None:
            small_model(folder)
        else:
            shutil.copy(options.model, folder / "model.onnx")
            shutil.copy(options.data, folder / "samples.npz")
        kept = cached(folder, options.runs)
        print(common.table(kept), end="\n\n")
        os.environ["CONDENSEC_CACHE_SIZE"] = "0"
        builds = systems(folder, options.runs)
        print(common.table(builds))
    common.write_json(options.output / "rebuild.json", {"cache": kept, "builds": builds}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
