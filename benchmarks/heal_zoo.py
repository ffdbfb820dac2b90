"""Whether healing by training works on each model of a folder: half of every group cut, a few real steps.

    python benchmarks/heal_zoo.py MODELS [--only NAME ...] [--steps 12]

For every .onnx in MODELS, in a process of its own: cut a random half of the units of every group, then train
the rest towards the original's outputs on seeded made-up samples, in the real worker. In the table:

- loss before, after: of the averaged weights on the samples trained on; `falls`: it came down;
- trained %: parameters trained, of all that are weights; what was frozen and why is in the JSON;
- samples/s of the training steps, and the worker's peak MB.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from zoo_coverage import isolated


def examine(path: Path, options: Any) -> dict[str, object]:
    """One model, in this process. Errors end up in the row."""
    row: dict[str, object] = {"model": path.stem}
    started = time.perf_counter()
    try:
        _examine(path, options, row)
    except Exception as error:  # every kind of failure is a result here
        reason = (str(error).strip() or "no message").splitlines()[0]
        row["failure"] = f"{type(error).__name__}: {reason}"
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def _examine(path: Path, options: Any, row: dict[str, object]) -> None:
    from condensec import data, io
    from condensec.healing import HealOptions, heal
    from condensec.passes.groups import analyze
    from condensec.passes.prune import prune

    analysis = analyze(io.load(path))
    rng = np.random.default_rng(options.seed)
    units = {g.id: np.sort(rng.permutation(g.size)[: g.share(0.5)]).tolist() for g in analysis.groups}
    cut = prune(analysis, units)
    shapes = analysis.world.inputs
    fixed = max((shape[0] for shape in shapes.values() if shape), default=1)
    count = max(fixed, options.batch)
    samples = data.synthetic(io.signature(io.load(path)), seed=options.seed, count=count, shapes=shapes)
    with tempfile.TemporaryDirectory() as folder:
        student = Path(folder) / "student.onnx"
        io.save(cut.model, student)
        asked = HealOptions(
            epochs=float(options.steps) * max(1, options.batch // count), batch=options.batch,
            jobs=options.threads, seed=options.seed,
        )  # fmt: skip
        done = heal(student, path, samples, samples, asked, state=Path(folder) / "state")
    row["before"], row["after"] = done.loss_curve[0].validation_loss, done.loss_curve[-1].validation_loss
    row["falls"] = "yes" if done.loss_curve[-1].validation_loss < done.loss_curve[0].validation_loss else "NO"
    row["trained %"] = round(100 * done.trained_share, 1)
    row["samples/s"], row["peak MB"] = round(done.samples_per_second, 1), round(done.peak_rss_mb)
    row["frozen"] = dict(done.frozen)


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="heal_zoo")
    parser.add_argument("folder", type=Path, nargs="?", metavar="MODELS")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one model (default: 900)")
    parser.add_argument("--one", type=Path, metavar="MODEL", help="examine one model, here; one line of JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one, options)))
        return 0
    if options.folder is None or not options.folder.is_dir():
        parser.error("MODELS has to be a folder with .onnx files")
    rows = []
    further = [f"--{name}={getattr(options, name)}" for name in ("steps", "batch", "threads", "seed")]
    for path in sorted(options.folder.glob("*.onnx")):
        if any(part in path.stem for part in options.only):
            rows.append(
                isolated(path, [sys.executable, __file__, "--one", str(path), *further], options.limit)
            )
            print(common.table([rows[-1]], ["model", *COLUMNS]).splitlines()[-1], file=sys.stderr, flush=True)
    print(common.table(rows, ["model", *COLUMNS]))
    good = [r for r in rows if r.get("falls") == "yes" and float(str(r["trained %"])) >= 95]
    print(f"\n{len(good)} of {len(rows)}: the loss falls, at least 95% of the parameters trained")
    common.write_json(options.output / "heal_zoo.json", {"rows": rows}, started)
    return 0 if len(good) == len(rows) else 1


COLUMNS = ("before", "after", "falls", "trained %", "samples/s", "peak MB", "seconds", "failure")

if __name__ == "__main__":
    sys.exit(main())
