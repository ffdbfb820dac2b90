"""Training steps a second and memory: the healing worker beside PyTorch, same graph, batch and threads.

    python -m venv .cache/export && .cache/export/bin/pip install -r benchmarks/requirements-export.txt
    python benchmarks/heal_speed.py --torch .cache/export/bin/python [--batch 32 128] [--rounds 9]

A CNN, a depthwise CNN and a transformer, exported by PyTorch; both sides train all weights by AdamW towards
the same random targets. They take turns, a few steps each, in one run; ratio: PyTorch's seconds over the
worker's, so above 1 the worker is faster; its interval is a bootstrap over the rounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

NAMES = ("cnn", "depthwise", "transformer")
HERE = Path(__file__).parent
SAMPLES = 1024


class Trainer:
    """A process that trains on command."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def steps(self, count: int) -> dict[str, float]:
        """Train; seconds, loss and the process's peak memory so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        if "gradient" in found:  # asked first by the worker's side
            from condensec.healing import gradient_graph

            gradient_graph.improve(Path(str(found["gradient"])), int(found["block"]))
            return self.steps(count)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def prepare(folder: Path, name: str, batch: int, threads: int) -> Path:
    """The worker's job: training graph (every thread takes parts of the batch), weights, data."""
    import onnx

    from condensec.healing import gradient_graph, losses, parts
    from condensec.healing.training import prepare

    with np.load(folder / f"{name}.npz") as data:
        x, y = data["x"], data["y"]

    def choose(graph: Any, _: Any) -> list[losses.Term]:
        return losses.choose(graph, {"y": y[:64]}, None, {"mse": 1.0}, 1.0)

    model = onnx.load(folder / f"{name}.onnx")
    part = batch // threads
    training = prepare(model, {"x": x[:part]}, choose, None)
    if parts.fitting(model, training.model, part) != part:
        part = parts.fitting(model, training.model, part)
        training = prepare(model, {"x": x[:part]}, choose, None)
    job = folder / f"{name}-{batch}"
    job.mkdir()
    (job / "forward.onnx").write_bytes(training.model.SerializeToString())
    np.savez(job / "weights.npz", **{f"w{i}": w for i, w in enumerate(training.weights.values())})
    files = {"x": job / "x.npy", next(iter(training.targets)): job / "y.npy"}
    np.save(job / "x.npy", x)
    np.save(job / "y.npy", y)
    (job / "job.json").write_text(
        json.dumps(
            {
                "weights": list(training.weights),
                "part": part,
                "data": {k: str(v) for k, v in files.items()},
                "trials": gradient_graph.trial.write(job),
            }
        )
    )
    return job


def write_data(folder: Path, seed: int) -> None:
    """Random samples and targets for every exported model."""
    import onnx

    rng = np.random.default_rng(seed)
    for name in NAMES:
        graph = onnx.load(folder / f"{name}.onnx").graph
        x, y = (
            rng.standard_normal((SAMPLES, *(d.dim_value for d in v.type.tensor_type.shape.dim[1:])))
            for v in (graph.input[0], graph.output[0])
        )
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), y=y.astype(np.float32))


def compare(folder: Path, name: str, batch: int, options: Any) -> dict[str, object]:
    """Both sides in turns."""
    import condensec.healing.worker as package
    from condensec.healing.environment import ensure

    threads = options.threads
    job = prepare(folder, name, batch, threads)
    sides = {
        "torch": Trainer(options.torch, HERE / "torch_trainer.py", "train", folder, name, threads, batch),
        "worker": Trainer(
            ensure(print), "-I", HERE / "heal_trainer.py", Path(package.__file__).parent, job, threads, batch
        ),
    }
    first = {side: trainer.steps(3) for side, trainer in sides.items()}  # warm-up
    slowest = max(f["seconds"] for f in first.values()) / 3
    count = max(2, round(options.seconds / slowest))
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, trainer in sides.items():
            found[side].append(trainer.steps(count))
    for trainer in sides.values():
        trainer.close()
    seconds = {side: np.array([r["seconds"] for r in rows]) / count for side, rows in found.items()}
    ratios = seconds["torch"] / seconds["worker"]
    peak = {side: rows[-1]["peak_mb"] for side, rows in found.items()}
    return {
        "model": name, "batch": batch,
        "torch samples/s": batch / float(np.median(seconds["torch"])),
        "worker samples/s": batch / float(np.median(seconds["worker"])),
        "ratio": float(np.median(ratios)), "ratio, 95%": common.span(common.bootstrap(ratios, np.median)),
        "torch MB": peak["torch"], "worker MB": peak["worker"], "memory": peak["worker"] / peak["torch"],
    }  # fmt: skip


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="heal_speed")
    parser.add_argument(
        "--torch", required=True, metavar="PYTHON", help="interpreter that has torch and onnx"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn, about (default: 2)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([options.torch, str(HERE / "torch_trainer.py"), "export", str(folder)], check=True)
        write_data(folder, options.seed)
        for model in options.models:
            for batch in options.batch:
                rows.append(compare(folder, model, batch, options))
                print(common.table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(common.table(rows))
    common.write_json(options.output / "heal_speed.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
