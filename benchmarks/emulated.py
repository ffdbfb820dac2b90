"""ARM and older x86 processors under qemu: do graphs run there, and how many instructions do they take?

    python benchmarks/emulated.py compare MODEL.onnx ...      mobile-cpu graphs on both, outputs side by side
    python benchmarks/emulated.py check MODEL.onnx ...   whole models: counted, and predicted by the table
    python benchmarks/emulated.py table MODELS ... --seeds --to F     a target's table, from nothing
    python benchmarks/emulated.py profile MODEL.onnx --cpu Haswell-noTSX --target x86-avx2 --to F

Sets itself up in `.cache/emulated` (`emulator.py`; Debian and PyPI only, no root needed). `profile` also
takes x86 models of processors: then this environment itself runs under qemu. Counts repeat within 0.5%; how
well they stand for time was only checked on x86.

`table` makes what `hardware/targets/mobile-cpu.json` is: the nodes of all models (files, or folders of them)
at several widths, and with `--seeds` convolutions and elementwise operators of many sizes. It goes in parts
of `--part` nodes; run again, it goes on where it was. `--target mobile-cpu-v8.0` counts what a Cortex-A72
without dot product and half precision executes (`--cpu cortex-a53`: another core of that level). `--most N`
counts N of the nodes, evenly spread; `--against TABLE` says how far the counts are from another table's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from emulated_nodes import apart, counted, merged, parts, pieces_of, save, seeds
from emulator import RUN, TARGET_CORES, setup


def compare(options: argparse.Namespace) -> list[dict[str, object]]:
    """Each model's graph for a target, here and there."""
    from condensec import data, io
    from condensec.hardware import bench
    from condensec.hardware import emit as emission
    from condensec.hardware.target import get
    from condensec.probe import runnable_shapes

    machine, target = setup(TARGET_CORES[options.target]), get(options.target)
    rows: list[dict[str, object]] = []
    for path in options.models:
        started = time.monotonic()
        row: dict[str, object] = {"model": path.stem, "precision": options.precision}
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                signature = io.signature(io.load(path))
                samples = data.synthetic(
                    signature, seed=options.seed, shapes=runnable_shapes(path, signature, {})
                )
                made = emission.emit(
                    io.load(path), target, folder, precision=options.precision, samples=samples
                )
                feeds = bench.make_feeds(made.path)
                np.savez(folder / "feeds.npz", **feeds)
                runner = common.session(made.path)
                names = [output.name for output in runner.get_outputs()]
                here = runner.run(names, {i.name: feeds[i.name] for i in runner.get_inputs()})
                (folder / "run.py").write_text(RUN)
                machine.run(folder / "run.py", made.path, folder / "feeds.npz", folder / "there.npz")
                there = np.load(folder / "there.npz")
                row |= outputs_apart(here, [there[f"o{i}"] for i in range(len(here))])
                row["precision"] = made.precision
        except Exception as error:
            row["refused"] = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        row["s"] = round(time.monotonic() - started, 1)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def outputs_apart(here: list[np.ndarray], there: list[np.ndarray]) -> dict[str, object]:
    """Largest difference over the largest output, of all outputs; and the smallest cosine."""
    worst, cosine = 0.0, 1.0
    for a, b in zip(here, there, strict=True):
        if a.dtype.kind != "f" or not a.size:
            worst = max(worst, float(not np.array_equal(a, b)))
            continue
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        worst = max(worst, float(np.abs(x - y).max() / max(1e-12, np.abs(x).max())))
        cosine = min(cosine, float(x @ y / max(1e-30, np.linalg.norm(x) * np.linalg.norm(y))))
    return {"largest difference": worst, "cosine": cosine}


def table(options: argparse.Namespace) -> list[dict[str, object]]:
    """A table of instructions, part by part."""
    machine = setup(options.cpu or TARGET_CORES[options.target])
    paths = [
        p for given in options.models for p in (sorted(given.glob("*.onnx")) if given.is_dir() else [given])
    ]
    with tempfile.TemporaryDirectory() as name:
        document = pieces_of(
            [*paths, *(seeds(Path(name)) if options.seeds else [])], options.target, options.seed
        )
    if options.most:
        spread = np.linspace(0, len(document["nodes"]) - 1, options.most).round().astype(int)
        document["nodes"] = [document["nodes"][i] for i in dict.fromkeys(spread.tolist())]
    made = json.loads(options.to.read_text()) if options.to.exists() else {"points": {}}
    known = {**made["points"], **made.get("failed", {})}
    print(f"{len(document['nodes'])} nodes, {len(known)} counted already", file=sys.stderr)
    for part in parts(document, known, options.part):
        made = merged(made, counted(machine, part))
        save(made, options.to)
        print(f"{len(made['points'])} counted", file=sys.stderr, flush=True)
    row: dict[str, object] = {"file": options.to.name, "nodes": len(made["points"])}
    row["failed"] = len(made.get("failed", {}))
    return [row | (apart(made, json.loads(options.against.read_text())) if options.against else {})]


def check(options: argparse.Namespace) -> list[dict[str, object]]:
    """Whole models: instructions counted against what the target's table predicts."""
    from condensec.hardware import bench, devicetable
    from condensec.hardware.latency import latency_model
    from condensec.hardware.target import get

    machine, target = setup(TARGET_CORES[options.target]), get(options.target)
    if options.to is not None:
        target = devicetable.attach(target, options.to)
    rows: list[dict[str, object]] = []
    for path in options.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.savez(folder / "feeds.npz", **bench.make_feeds(path))
            (folder / "run.py").write_text(RUN)
            arguments = (folder / "run.py", path, folder / "feeds.npz", folder / "o.npz", folder / "counter")
            try:
                said = machine.run(*arguments, counter=folder / "counter")
            except RuntimeError as error:
                print(path.name, error, file=sys.stderr)
                continue
        counted = float(said.split("counted")[1])
        predicted = latency_model(target, path).dense_seconds * target.peak.vectors
        row = {
            "model": path.stem,
            "counted": counted,
            "predicted": predicted,
            "error %": 100 * (predicted / counted - 1),
        }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    errors = np.abs([float(str(row["error %"])) for row in rows])
    rows.append({"model": "median", "error %": float(np.median(errors)) if len(errors) else float("nan")})
    return rows


def profile(options: argparse.Namespace) -> list[dict[str, object]]:
    """One model's table on another processor."""
    from condensec.hardware import profile as timing
    from condensec.hardware.target import get

    machine = setup(options.cpu or TARGET_CORES[options.target])
    with tempfile.TemporaryDirectory() as name:
        script, counter = Path(name) / "on_device.py", Path(name) / "counter"
        timing.script(get(options.target), options.models[0], script)
        machine.run(script, options.models[0], "-o", options.to, "--counter", counter, counter=counter)
    table = json.loads(options.to.read_text())
    return [
        {"file": str(options.to), "points": len(table["points"]), "instructions": table["model"]["value"]}
    ]


def main() -> None:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="emulated")
    parser.add_argument("what", choices=["compare", "check", "table", "profile"])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx", help="table: folders, too")
    parser.add_argument("--target", default="mobile-cpu")
    parser.add_argument("--cpu", help="qemu's name of a processor; default: the target's")
    parser.add_argument("--precision", default="none", help="compare: none, int8 or fp16")
    parser.add_argument("--seeds", action="store_true", help="table: and convolutions of many sizes")
    parser.add_argument("--part", type=int, default=40, help="table: nodes counted before it is written")
    parser.add_argument("--most", type=int, help="table: only so many nodes")
    parser.add_argument("--against", type=Path, metavar="TABLE", help="table: compare with another one")
    parser.add_argument("--to", type=Path, help="file for the table (check: the table to check)")
    options = parser.parse_args()
    if options.what in ("table", "profile") and options.to is None:
        parser.error("say where to write the table: --to FILE")
    made = {"compare": compare, "check": check, "table": table, "profile": profile}[options.what](options)
    print(common.table(made))
    common.write_json(options.output / f"emulated_{options.what}.json", {"rows": made}, started)


if __name__ == "__main__":
    main()
