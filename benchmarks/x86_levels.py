"""One small network compressed for x86-avx2 and for x86-vnni: which graph is faster where?

    python benchmarks/x86_levels.py [MODEL.onnx] [--keep 0.5] [--runs 200]

Needs a processor with AVX-512 VNNI, gcc and objdump. The model (default: the text-line orientation
classifier of rapidocr-onnxruntime) is compressed for both targets with `--quantize auto`, in closed form
only. Both graphs and the original then run on both levels, in turns on one thread; CPU time is compared.

The lower level is this processor with AVX-512 and VNNI hidden from onnxruntime: in a copy of its library
every CPUID instruction is replaced by UD2, as long and never executed otherwise, and a handler answers in
its place (`hide_avx512.c`). So its AVX2 kernels run natively, and times are measured; what an older
processor's caches and clock would add isn't. A control shows that the level took effect: the time of a large
int8 product. Outputs are compared, too: without VNNI sums of u8 x s8 products saturate, so that a graph for
VNNI may say something else on AVX2 ("off").
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import common
import numpy as np

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "x86_levels"
TARGETS = ("x86-avx2", "x86-vnni")
NEAR, SAME = 0.03, "as fast"
CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
RUN = """
import json, sys, time, numpy as np, onnxruntime
feeds, runs, paths = dict(np.load(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
made = [onnxruntime.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for p in paths]
given = [{i.name: feeds[i.name] for i in one.get_inputs()} for one in made]
for _ in range(5):
    for one, some in zip(made, given):
        one.run(None, some)
times = []
for _ in range(runs):
    row = []
    for one, some in zip(made, given):
        start = time.process_time_ns()
        for _ in range(3):
            one.run(None, some)
        row.append((time.process_time_ns() - start) / 3e6)
    times.append(row)
outputs = [[o.tolist() for o in one.run(None, some)] for one, some in zip(made, given)]
json.dump({"times": times, "outputs": outputs}, sys.stdout)
"""


def hidden(folder: Path = CACHE) -> dict[str, str]:
    """The environment in which onnxruntime sees AVX2 at most; made if it isn't there."""
    import onnxruntime

    site = folder / f"site-{onnxruntime.__version__}"
    preload = folder / "hide_avx512.so"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", str(preload), str(HERE / "hide_avx512.c")], check=True
    )
    if not site.is_dir():
        draft = site.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(Path(onnxruntime.__file__).parent, draft / "onnxruntime")
        for library in sorted(draft.rglob("*.so*")):
            print(f"{library.name}: {patched(library)} CPUID replaced", file=sys.stderr)
        draft.rename(site)
    return {"PYTHONPATH": str(site), "LD_PRELOAD": str(preload)}


def patched(library: Path) -> int:
    """Replace every CPUID of a library by UD2, where the disassembler sees the instruction; how many."""
    listed, sections = _objdump("-d", "--no-show-raw-insn", library), _objdump("-h", library)
    text = next(line.split() for line in sections.splitlines() if line.split()[1:2] == [".text"])
    start, offset = int(text[3], 16), int(text[5], 16)
    found = [int(a, 16) - start + offset for a in re.findall(r"^\s*([0-9a-f]+):\s+cpuid\s*$", listed, re.M)]
    content = bytearray(library.read_bytes())
    for at in found:
        if content[at : at + 2] != CPUID:
            raise SystemExit(f"{library.name}: no CPUID at {at:#x}")
        content[at : at + 2] = UD2
    library.write_bytes(content)
    return len(found)


def _objdump(*arguments: str | Path) -> str:
    return subprocess.run(
        ["objdump", *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def timed(
    paths: list[Path], feeds: Path, runs: int, environment: dict[str, str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """CPU milliseconds ``[runs, graphs]`` in turns, and what each graph gave, its outputs in a row."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(feeds), str(runs), *map(str, paths)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-400:])
    found = json.loads(done.stdout)
    outputs = [np.concatenate([np.ravel(o) for o in one]) for one in found["outputs"]]
    return np.array(found["times"]), outputs


def control(folder: Path) -> tuple[Path, Path]:
    """An int8 product, whose time says whether VNNI is used, and what it reads."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).integers(-127, 127, (512, 512)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "control",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [512, 512])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [512, 512])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = folder / "control.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    np.savez(folder / "control.npz", x=np.ones((512, 512), np.uint8))
    return path, folder / "control.npz"


def default_model() -> Path:
    """The orientation classifier of rapidocr-onnxruntime."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    import demo
    from packaged import package_file

    return Path(package_file(*demo.MODEL))


def compressed(model: Path, target: str, options: argparse.Namespace, further: list[str]) -> common.Compiled:
    """The model for one target, at `--keep` of every group's units."""
    return common.condensec(
        model, options.output / target, "--target", target, "--keep", str(options.keep), "--quantize", "auto",
        "--heal", "closed-form", "--max-drop", "inf", "--jobs", "1", "--seed", str(options.seed), *further,
    )  # fmt: skip


def ratio(times: np.ndarray, a: int, b: int) -> tuple[float, tuple[float, float]]:
    """Median of time a over time b, and its interval."""
    pairs = times[:, a] / times[:, b]
    return float(np.median(pairs)), common.bootstrap(pairs, np.median)


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference of outputs, as a share of the largest output."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def verdict(ratio: float, span: tuple[float, float]) -> str:
    """What a target's own graph is, beside the other's: what is nearer than `NEAR` isn't worth a file."""
    if abs(ratio - 1) <= NEAR or span[0] <= 1 <= span[1]:
        return SAME
    return "own is faster" if ratio > 1 else "own is slower"


def main() -> int:
    from condensec.hardware import bench, isa

    started = time.time()
    parser = common.arguments(__doc__ or "", name="x86_levels")
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL.onnx")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=200)
    options, further = parser.parse_known_args()
    if isa.detect() != "avx512_vnni":
        parser.error(f"this processor has {isa.detect()}: avx512_vnni is needed to have both levels")
    options.output.mkdir(parents=True, exist_ok=True)
    model = options.model or default_model()
    made = {target: compressed(model, target, options, further) for target in TARGETS}
    graphs = {target: done.graph(target) for target, done in made.items()}
    feeds = options.output / "feeds.npz"
    np.savez(feeds, **bench.make_feeds(graphs["x86-vnni"]))
    levels = {"x86-avx2": hidden(), "x86-vnni": {}}
    check, given = control(options.output)
    slower = np.median(timed([check], given, 20, levels["x86-avx2"])[0]) / np.median(
        timed([check], given, 20, {})[0]
    )
    if slower < 1.3:
        raise SystemExit(f"hiding VNNI changed nothing: an int8 product takes {slower:.2f} times as long")
    print(f"control: an int8 product takes {slower:.2f} times as long with AVX-512 and VNNI hidden")
    found = {
        level: timed([model, *graphs.values()], feeds, options.runs, environment)
        for level, environment in levels.items()
    }
    rows, native = [], found["x86-vnni"][1]
    for level, (times, outputs) in found.items():
        other = 1 - TARGETS.index(level)
        own, span = ratio(times, 1 + other, 2 - other)
        precision = {t: done.report["targets"][t].get("precision") for t, done in made.items()}
        rows.append({
            "level": level, "how": "native, AVX-512 hidden" if levels[level] else "native",
            "original ms": float(np.median(times[:, 0])),
            **{f"{t} ({precision[t]}) faster": ratio(times, 0, 1 + i)[0] for i, t in enumerate(TARGETS)},
            **{f"{t} off": off(outputs[1 + i], native[1 + i]) for i, t in enumerate(TARGETS)},
            "own graph over the other": own, "95%": common.span(span),
            "verdict": verdict(own, span),
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"\n{model.stem}: each graph on each level, CPU time\n\n{common.table(rows)}")
    if all(row["verdict"] == SAME for row in rows):
        print(f"\none graph serves both levels: they are within {100 * NEAR:g}% of each other on either")
    common.write_json(options.output / "x86_levels.json", {"rows": rows, "control": slower}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
