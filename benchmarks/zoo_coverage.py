"""How much of each model in a folder can be cut, and whether the cut is right.

    python benchmarks/zoo_coverage.py MODELS [--only NAME ...] [--keep 0.5]

For every .onnx in MODELS, in a process of its own: load, find the groups, keep a random half of the units of
*every* group (alignment 1), cut, no healing, and prove the cut against the masked original. In the table:

- MACs kept: of the model's MACs after the cut. A cut that reaches everything leaves about a quarter;
- least: what is left if every group keeps exactly that share, without rounding and the luck of the draw;
- one axis: share of the MACs in nodes with one axis that can be cut, and so half of them left at best; the
  JSON file says why (`why`): the image's channels come in, the classes go out, or a depthwise convolution;
- reachable: share of the MACs in nodes with at least one axis that can be cut;
- error: largest difference to the masked original, relative to the largest output (0.001 is allowed);
- seconds: load, analysis, cut and proof together; peak MB of the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import common
import numpy as np

T = TypeVar("T")


def examine(path: Path, keep: float, seed: int) -> dict[str, object]:
    """One model, in this process. Errors end up in the row, as the command line would show them."""
    row: dict[str, object] = {"model": path.stem}
    seconds: dict[str, float] = {}

    def timed(station: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            seconds[station] = round(time.perf_counter() - started, 2)

    try:
        _examine(path, keep, seed, row, timed)
    except Exception as error:  # every kind of failure is a result here
        reason = (str(error).strip() or "no message").splitlines()[0]
        row["failure"] = f"{list(seconds)[-1] if seconds else 'import'}: {type(error).__name__}: {reason}"
    row["seconds"] = round(sum(seconds.values()), 2)
    row["peak MB"] = _peak_mb()
    row["stations"] = seconds
    return row


def _examine(path: Path, keep: float, seed: int, row: dict[str, object], timed: Callable[..., Any]) -> None:
    from condensec import data, io, verify
    from condensec.passes.groups import analyze
    from condensec.passes.prune import prune

    model = timed("load", lambda: io.load(path))
    analysis = timed("groups", lambda: analyze(model))
    row["groups"], row["reachable %"] = len(analysis.groups), round(100 * analysis.reachable(), 1)
    row["frozen"] = {f.id: f.reason for f in analysis.frozen}

    rng = np.random.default_rng(seed)
    units = {}
    for group in analysis.groups:
        units[group.id] = np.sort(rng.permutation(group.size)[: group.share(keep)]).tolist()
    cut = timed("cut", lambda: prune(analysis, units))
    widths = {atom.id: int(mask.sum()) for atom, mask in _masks(analysis, units)}
    row["MACs"] = analysis.macs()
    row["MACs kept %"] = round(100 * analysis.macs(widths) / max(1, analysis.macs()), 1)

    row["least %"] = round(100 * sum(least_kept(analysis, keep).values()) / max(1, analysis.macs()), 1)
    row["why"] = {k: round(100 * v, 2) for k, v in one_axis(analysis).items()}
    row["one axis %"] = round(sum(row["why"].values()), 1)

    shapes = analysis.world.inputs
    batch = max((shape[0] for shape in shapes.values() if shape), default=1)
    samples = data.synthetic(io.signature(model), seed=seed, count=batch, shapes=shapes)
    proof = timed(
        "proof", lambda: verify.check(io.load(path), cut.plan, cut.model, dict(samples.inputs), threads=2)
    )
    row["error"], row["scale"] = float(proof.relative_error), float(proof.scale)
    row["proof"] = "ok" if proof.passed else "WRONG"


def least_kept(analysis: Any, keep: float) -> dict[str, float]:
    """MACs of every node that are left if every group keeps exactly this share of its units."""
    sizes = {atom.id: atom.size * keep for group in analysis.groups for atom in group.atoms}
    left: dict[str, float] = analysis.node_macs(sizes)
    return left


def one_axis(analysis: Any) -> dict[str, float]:
    """Shares of the MACs in nodes with at most one axis that can be cut, by what fixes the others."""
    free = {atom.id for group in analysis.groups for atom in group.atoms}
    before, half = analysis.node_macs({}), least_kept(analysis, 0.5)
    found: dict[str, float] = {}
    for cost in analysis.context.costs:
        name = cost.node.name or ""
        if half[name] < 0.3 * before[name]:
            continue
        atoms = [a for f in cost.factors if not isinstance(f, int) for a in analysis.axes.atoms(f)]
        fixed = sorted({a.frozen for a in atoms if a.size > 1 and a.id not in free and a.frozen})
        reason = fixed[0] if fixed else "one axis" if isinstance(cost.groups, int) else "depthwise"
        if cost.inputs is None and cost.outputs is not None:
            reason = "the model's input"
        found[reason] = found.get(reason, 0.0) + before[name] / max(1, sum(before.values()))
    return found


def _masks(analysis: Any, units: dict[str, list[int]]) -> list[tuple[Any, Any]]:
    found = []
    for group in analysis.groups:
        mask = np.zeros(group.size, np.bool_)
        mask[units[group.id]] = True
        masks = group.masks(mask)
        found += [(atom, masks[atom.id]) for atom in group.atoms]
    return found


def _peak_mb() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def isolated(path: Path, command: list[str], limit: float) -> dict[str, object]:
    """What a process of its own prints of one model: a crash or a hang costs one row, not the table."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"model": path.stem, "failure": f"longer than {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"model": path.stem, "failure": f"the process ended with {done.returncode}: {last}"}
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="zoo_coverage")
    parser.add_argument("folder", type=Path, nargs="?", metavar="MODELS")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="models whose names contain one"
    )
    parser.add_argument("--keep", type=float, default=0.5, help="share of every group's units (default: 0.5)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model (default: 600)")
    parser.add_argument("--one", type=Path, metavar="MODEL", help="examine one model, here; one line of JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one, options.keep, options.seed)))
        return 0
    if options.folder is None or not options.folder.is_dir():
        parser.error("MODELS has to be a folder with .onnx files")

    rows = []
    further = [f"--keep={options.keep}", f"--seed={options.seed}"]
    for path in sorted(options.folder.glob("*.onnx")):
        if any(part in path.stem for part in options.only):
            command = [sys.executable, __file__, "--one", str(path), *further]
            rows.append(isolated(path, command, options.limit))
            print(common.table([rows[-1]], ["model", *COLUMNS]).splitlines()[-1], file=sys.stderr, flush=True)
    print(common.table(rows, ["model", *COLUMNS]))
    good = [r for r in rows if r.get("proof") == "ok"]
    kept = [float(str(r["MACs kept %"])) for r in good]
    middle = f"; MACs kept, median: {np.median(kept):.1f}%" if kept else ""
    print(f"\n{len(good)} of {len(rows)} proved{middle}")
    common.write_json(options.output / "zoo_coverage.json", {"keep": options.keep, "rows": rows}, started)
    return 0 if len(good) == len(rows) else 1


COLUMNS = (
    "groups",
    "MACs kept %",
    "least %",
    "one axis %",
    "reachable %",
    "error",
    "proof",
    "seconds",
    "peak MB",
    "failure",
)

if __name__ == "__main__":
    sys.exit(main())
